"""The scans of a study themselves: segmented by a model, the annotated slices as a person completed them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.annotation.completed import AnnotatedScan, read_rounds
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import volumes_ml
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.outputs import write_outputs
from NeonatalSegLib.segmentation.segmenter import Segmentation, Segmenter


def complete_study(
    study: str | Path,
    out: str | Path,
    segmenter: Segmenter,
    raters: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Iterator[dict[str, Path]]:
    """Segment every annotated scan of a study and of the rounds before it; the model fills what was not annotated.

    What was annotated stays exactly.

    Yields:
        What was written for a scan, by kind, as ``segmentation.outputs.write_outputs`` gives it.

    Raises:
        NeonatalSegError: no completed slice, or a scan that cannot be read; earlier scans are written by then.
    """
    for annotated in read_rounds(study, raters=raters):
        scan = load_scan(annotated.t1, annotated.t2, name=annotated.name, age_weeks=annotated.age_weeks)
        found = keep_annotated(segmenter.segment(scan, progress=progress), annotated)
        yield write_outputs(found, scan, out, overwrite=overwrite)


def keep_annotated(segmentation: Segmentation, annotated: AnnotatedScan) -> Segmentation:
    """Put the completed slices into a segmentation of the same scan, in place; volumes and verdict follow.

    Raises:
        NeonatalSegError: they lie on another grid.
    """
    labels = sitk.GetArrayFromImage(segmentation.label_map)
    if labels.shape != annotated.labels.shape:
        raise NeonatalSegError(f"The annotation of {annotated.name} does not lie on the grid of its segmentation.")
    labels = np.where(annotated.mask > 0, annotated.labels, labels).astype(np.uint8)
    segmentation.label_map = annotated.grid.image(labels)
    segmentation.volumes_ml = volumes_ml(labels, annotated.grid.voxel_volume_mm3)
    number, whose = len(annotated.slices), ", ".join(annotated.raters)
    segmentation.notices.append(
        f"{number} {'slice is' if number == 1 else 'slices are'} as annotated by {whose}, not by the model."
    )
    segmentation.judge()  # of the model's own map nothing is told
    return segmentation
