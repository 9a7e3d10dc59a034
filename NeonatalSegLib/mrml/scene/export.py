"""Files from the segmentation in the scene: what the user has corrected by hand is what is written."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import slicer

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import volumes_table
from NeonatalSegLib.files.atomic import write_file, write_text
from NeonatalSegLib.mrml.scene.file_grid import in_order_of_file
from NeonatalSegLib.mrml.scene.results import volumes_from_label_map
from NeonatalSegLib.mrml.scene.scene_result import ATTRIBUTE, EDITED, judgement_of
from NeonatalSegLib.mrml.scene.segments import (
    WithoutSurfaces,
    label_map_from_segmentation,
    surface_file,
    write_surfaces,
)
from NeonatalSegLib.scans.write import check_whole, replace_image
from NeonatalSegLib.tissues import PHYSIOLOGICAL, TISSUES

NOTICE = "Research use only, not for diagnosis."  # as in segmentation/outputs.py, which Slicer need not load


def label_map_files(node: Any, folder: Path) -> dict[str, Path]:
    """What :func:`export_label_map` writes, by kind."""
    names = {"label_map": "dseg.nii.gz", "volumes": "volumes.tsv", "sidecar": "dseg.json"}
    return {kind: Path(folder) / f"{_stem(node)}_{name}" for kind, name in names.items()}


def seg_nrrd_file(node: Any, folder: Path) -> Path:
    """What :func:`export_seg_nrrd` writes."""
    return Path(folder) / f"{_stem(node)}.seg.nrrd"


def surface_files(node: Any, folder: Path) -> list[Path]:
    """What :func:`export_surfaces` writes where every tissue is there."""
    return [surface_file(Path(folder), _stem(node), tissue) for tissue in PHYSIOLOGICAL]


def export_label_map(node: Any, folder: Path) -> dict[str, Path]:
    """Write ``<node>_dseg.nii.gz`` (uint8, values of ``tissues.py``, world space), ``<node>_volumes.tsv`` and
    ``<node>_dseg.json``.

    The first two are what ``neonatalseg segment`` would write: the voxels of the scan's file in its own order with both
    its positions, all ten classes. The last has what is known of the model and of its result.

    Returns the files by "label_map", "volumes" and "sidecar". Raises NeonatalSegError where the folder cannot be
    written to.
    """
    folder = _folder(folder)
    label_map, forms = label_map_from_segmentation(node), None
    reference = node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())
    if reference is not None:
        label_map, forms = in_order_of_file(label_map, reference)
    volumes = volumes_from_label_map(label_map)
    files = label_map_files(node, folder)
    try:
        replace_image(label_map, files["label_map"], forms=forms)
        write_text(files["volumes"], volumes_table(volumes))
        write_text(files["sidecar"], json.dumps(_facts(node), indent=1) + "\n")
    except (OSError, RuntimeError) as error:
        raise _unwritable(folder, error) from error
    return files


def _facts(node: Any) -> dict[str, Any]:
    """For the side-car, under the names that ``segmentation/outputs.py`` uses; what is not known is left out.

    It begins with other words than the command's: in the folder of a study it is no result of its own.
    """
    model, judged = node.GetAttribute(ATTRIBUTE + "model_name"), judgement_of(node)
    facts: dict[str, Any] = {
        "Description": "Export from 3D Slicer of a segmentation by NeonatalSeg",
        "Notice": NOTICE,
        "Labels": {str(tissue.index): tissue.name for tissue in TISSUES},
    }
    if model:
        facts["Model"] = {"Name": model, "SHA256": node.GetAttribute(ATTRIBUTE + "model_hash") or ""}
    if judged.verdict:
        facts["Plausibility"] = {"Verdict": judged.verdict, "Findings": judged.findings}
        facts["Warnings"] = judged.warnings
    if node.GetAttribute(EDITED):  # verdict and warnings are of the result before that
        facts["Edited"] = True
    return facts


def export_seg_nrrd(node: Any, folder: Path) -> Path:
    """Write Slicer's own ``<node>.seg.nrrd``, without the closed surfaces; the node's file of before stays its file."""
    folder = _folder(folder)
    target = seg_nrrd_file(node, folder)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetScene(node.GetScene())
    storage.SetUseCompression(True)

    def write(part: Path) -> None:
        storage.SetFileName(str(part))
        if not storage.WriteData(node):
            raise OSError(errno.EIO, "Slicer could not write it")
        check_whole(part)

    try:
        with WithoutSurfaces(node):
            write_file(target, write)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return target


def export_surfaces(node: Any, folder: Path) -> list[Path]:
    """Write one STL file (mm, RAS, world space) per tissue; returns the files."""
    return write_surfaces(node, _folder(folder), _stem(node))


def _folder(folder: Path) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(Path(folder), error) from error
    return Path(folder)


def _stem(node: Any) -> str:
    """The node's name as a file name: blanks and signs that a file system may refuse become underscores."""
    name = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in node.GetName())
    return name.strip("_") or "segmentation"


def _unwritable(folder: Path, error: Exception | None) -> NeonatalSegError:
    reason = f" ({getattr(error, 'strerror', None) or error})" if error is not None else ""
    return NeonatalSegError(
        f"Nothing could be written to {folder}{reason}. Choose a folder on a disk with room that you may write to."
    )
