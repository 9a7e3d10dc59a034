"""Files from the segmentation in the scene: what the user has corrected by hand is what is written."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import slicer

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import volumes_table
from NeonatalSegLib.files.atomic import write_file, write_text
from NeonatalSegLib.mrml.scene.file_grid import in_order_of_file
from NeonatalSegLib.mrml.scene.results import volumes_from_label_map
from NeonatalSegLib.mrml.scene.segments import WithoutSurfaces, label_map_from_segmentation, write_surfaces
from NeonatalSegLib.scans.write import check_whole, replace_image


def export_label_map(node: Any, folder: Path) -> dict[str, Path]:
    """Write ``<node>_dseg.nii.gz`` (uint8, values of ``tissues.py``, world space) and ``<node>_volumes.tsv``.

    Both are what ``neonatalseg segment`` would write: the voxels of the scan's file in its own order, all ten classes.

    Returns the files by "label_map" and "volumes". Raises NeonatalSegError where the folder cannot be written to.
    """
    folder = _folder(folder)
    label_map = label_map_from_segmentation(node)
    reference = node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())
    if reference is not None:
        label_map = in_order_of_file(label_map, reference)
    volumes = volumes_from_label_map(label_map)
    files = {"label_map": folder / f"{_stem(node)}_dseg.nii.gz", "volumes": folder / f"{_stem(node)}_volumes.tsv"}
    try:
        replace_image(label_map, files["label_map"])
        write_text(files["volumes"], volumes_table(volumes))
    except (OSError, RuntimeError) as error:
        raise _unwritable(folder, error) from error
    return files


def export_seg_nrrd(node: Any, folder: Path) -> Path:
    """Write Slicer's own ``<node>.seg.nrrd``, without the closed surfaces; the node's file of before stays its file."""
    folder = _folder(folder)
    target = folder / f"{_stem(node)}.seg.nrrd"
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
