"""The result that is shown: its volumes as they are now, what is seen of it, and the way to correct it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.util import VTKObservationMixin

from NeonatalSegLib.mrml.scene import results, segments
from NeonatalSegLib.mrml.scene.scene_result import EDITED
from NeonatalSegLib.panel.segment_state import SegmentState


class ShownResult(VTKObservationMixin):
    """Follows one segmentation node and keeps table, rows and views with it.

    Args:
        panel: told of new volumes. wake: called when something is to be done by ``work``, from a timer.

    Attributes:
        node, table: the result, None where there is none.
    """

    def __init__(self, panel: SegmentState, wake: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.panel, self._wake = panel, wake
        self.node: Any = None
        self.table: Any = None
        self.entered = False
        self._stale = False

    @property
    def waiting(self) -> bool:
        """True where ``work`` has something to do."""
        return self._stale and self.entered

    def follow(self, node: Any, table: Any) -> None:
        """Another result, or None."""
        if node is not self.node:
            self.removeObservers()
            self.node, self._stale = node, False
            if node is not None:
                edited = slicer.vtkSegmentation.SourceRepresentationModified
                self.addObserver(node.GetSegmentation(), edited, self._on_edited)
        self.table = table

    def _on_edited(self, caller: Any = None, event: Any = None) -> None:
        """Somebody corrects it: counted when the panel is in sight, or every stroke elsewhere would wait for it."""
        self._stale = True
        if not self.node.GetAttribute(EDITED):
            self.node.SetAttribute(EDITED, "1")
        if self.entered:
            self._wake()

    def work(self) -> None:
        """From a timer: count what was edited."""
        if self.waiting and self.node is not None:
            self._stale = False
            volumes = results.volumes_from_label_map(segments.label_map_from_segmentation(self.node))
            if self.table is not None:
                results.write_volumes(self.table, volumes)
            self.panel.recounted(results.volume_rows(volumes))

    def enter(self) -> None:
        """The module is opened: perhaps it was edited meanwhile."""
        self.entered = True
        self.work()

    def look(self, shown_3d: bool, opacity: float) -> None:
        """Bring 3D and opacity to what is chosen; where 3D is new, the 3D views turn to it."""
        if self.node is None:
            return
        if segments.surfaces_shown(self.node) != shown_3d:
            segments.show_surfaces(self.node, shown_3d)
            if shown_3d:
                _centre_3d_views()
        segments.set_opacity(self.node, opacity)

    def go_to(self, key: str) -> None:
        """Turn the slice views to the middle of a tissue."""
        point = segments.centre_of(self.node, key) if self.node is not None else None
        if point is None:
            return
        scene = self.node.GetScene()
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
            scene.GetNthNodeByClass(number, "vtkMRMLSliceNode").JumpSliceByOffsetting(*point)

    def close(self) -> None:
        """Nobody is told any more."""
        self.follow(None, None)


def scan_of(node: Any) -> Any:
    """The volume that a result was made for, None where it is gone."""
    return node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def _centre_3d_views() -> None:
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    for number in range(int(manager.threeDViewCount)):
        manager.threeDWidget(number).threeDView().resetFocalPoint()
