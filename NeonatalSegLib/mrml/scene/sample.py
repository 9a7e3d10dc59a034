"""The synthetic newborn for Slicer's Sample Data: drawn when asked for, nothing is downloaded."""

from __future__ import annotations

from typing import Any

import slicer

from NeonatalSegLib.mrml.scene.volumes import volume_from_image

AGE_WEEKS = 40.0
NAME = "Synthetic newborn"


def load_sample(source: Any = None) -> list[Any]:
    """Draw the newborn into the scene; returns its T1 and T2 volume nodes. ``source`` is Slicer's, and unused."""
    from NeonatalSegLib.datasets.phantom import draw_newborn

    scan = draw_newborn(age_weeks=AGE_WEEKS, seed=0).scan
    nodes = []
    for name, image in (("T1", scan.t1), ("T2", scan.t2)):
        if image is not None:
            nodes.append(volume_from_image(image, f"{NAME} {name}", slicer.mrmlScene))
            nodes[-1].GetDisplayNode().SetAutoWindowLevel(True)
    if slicer.app.layoutManager() is not None and nodes:
        slicer.util.setSliceViewerLayers(background=nodes[-1], fit=True)
    return nodes
