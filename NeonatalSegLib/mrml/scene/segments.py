"""Label map to segmentation node and back; how the eight tissues are shown.

All segments share one binary label map whose values are the class indices of ``tissues.py``, so a label value means
the same tissue on every way out: no renumbering, whatever tissue is missing from a scan.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
from vtk.util.numpy_support import vtk_to_numpy

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_file
from NeonatalSegLib.mrml.scene.volumes import (
    array_to_matrix,
    parent_to_world,
    place_beside,
    ras_affine,
    set_ras_affine,
    vtk_voxels,
)
from NeonatalSegLib.resources import terminology_file
from NeonatalSegLib.tissues import CATEGORY, PHYSIOLOGICAL, TISSUES, Tissue

# The eight tissues, and what lies inside the skull and is none of them: hidden, but in every file that is written.
SEGMENTED: tuple[Tissue, ...] = tuple(tissue for tissue in TISSUES if tissue.index > 0)
NOT_IN_3D = "csf"  # it encloses all the others

BINARY_LABEL_MAP = "Binary labelmap"
CLOSED_SURFACE = "Closed surface"
TERMINOLOGY_CONTEXT = "NeonatalSeg tissues"
ANATOMY_CONTEXT = "Anatomic codes - DICOM master list"
DEFAULT_OPACITY = 0.5
STL_HEADER_BYTES, STL_TRIANGLE_BYTES = 84, 50


def terminology_entry(tissue: Tissue) -> str:
    """The seven-part terminology string that Slicer keeps on a segment."""
    kind = f"SCT^{tissue.snomed_code}^{tissue.snomed_meaning}"
    return f"{TERMINOLOGY_CONTEXT}~{'^'.join(CATEGORY)}~{kind}~^^~{ANATOMY_CONTEXT}~^^~^^"


def load_terminology(logic: Any) -> bool:
    """Make our terminology known to Slicer's terminology logic, so that its selector names our tissues."""
    file = terminology_file()
    return file.is_file() and bool(logic.LoadTerminologyFromFile(str(file)))


def segmentation_from_label_map(
    label_map: sitk.Image, name: str, reference: Any, world_to_reference: np.ndarray | None = None
) -> Any:
    """A new segmentation node with the nine classes of ``label_map``, beside ``reference`` in the scene.

    Args:
        label_map: uint8, values 0-9, in world space on the grid of the scan (LPS, mm).
        name: name of the node.
        reference: the volume node that was segmented; it gives scene, folder, parent transform and geometry.
        world_to_reference: 4 x 4, world to the space of ``reference`` when it was segmented; the inverse of its
            parent transform now, if left out.

    Every class but the background outside gets its segment, an absent one an empty segment. The background inside the
    skull is hidden; CSF is hidden in 3D, where it would enclose all the others.
    """
    if world_to_reference is None:
        world_to_reference = np.linalg.inv(parent_to_world(reference))
    node = reference.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    place_beside(node, reference)  # before the geometry is taken: Slicer expresses it in the space of this node
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    voxels = _shared_voxels(label_map, world_to_reference)
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(BINARY_LABEL_MAP)
    for tissue in SEGMENTED:
        segmentation.AddSegment(_segment(tissue, voxels), tissue.key)
    for tissue in SEGMENTED:
        if tissue.background:
            node.GetDisplayNode().SetSegmentVisibility(tissue.key, False)
    node.GetDisplayNode().SetSegmentVisibility3D(NOT_IN_3D, False)
    set_opacity(node, DEFAULT_OPACITY)
    return node


def label_map_from_segmentation(node: Any) -> sitk.Image:
    """The segmentation as uint8 label map with the values of ``tissues.py``, in world space on the reference grid.

    Segments that are not ours (no fixed id) are left out. Raises NeonatalSegError where none of ours is there.
    """
    ids = [tissue.key for tissue in PHYSIOLOGICAL if node.GetSegmentation().GetSegment(tissue.key) is not None]
    if not ids:
        raise NeonatalSegError(
            f"{node.GetName()} holds none of the tissues of NeonatalSeg ({PHYSIOLOGICAL[0].name}, "
            f"{PHYSIOLOGICAL[1].name} ...). Choose a segmentation made by this module."
        )
    oriented = slicer.vtkOrientedImageData()
    merged: np.ndarray | None = None
    geometry = _reference_geometry(node)
    there = [tissue for tissue in SEGMENTED if node.GetSegmentation().GetSegment(tissue.key) is not None]
    for tissue in sorted(there, key=lambda tissue: not tissue.background):  # where two overlap, a tissue wins
        mask = _segment_mask(node, tissue.key, geometry, oriented)
        merged = np.zeros(mask.shape, np.uint8) if merged is None else merged
        merged[mask > 0] = tissue.index
    assert merged is not None
    image = sitk.GetImageFromArray(merged)
    set_ras_affine(image, parent_to_world(node) @ _affine(oriented))
    return image


def show_surfaces(node: Any, shown: bool) -> None:
    """Switch the closed surfaces in the 3D views on (computing them when needed) or off."""
    if shown:
        node.CreateClosedSurfaceRepresentation()
    display = node.GetDisplayNode()
    if display is not None:
        display.SetVisibility3D(bool(shown))


def surfaces_shown(node: Any) -> bool:
    """True where the node's closed surfaces exist and are switched on."""
    display = node.GetDisplayNode()
    there = node.GetSegmentation().ContainsRepresentation(CLOSED_SURFACE)
    return bool(there and display is not None and display.GetVisibility3D())


def show_tissues(node: Any, shown: set[str]) -> None:
    """Show the tissues with these keys, in slices and in 3D, and hide the others."""
    display = node.GetDisplayNode()
    if display is None:
        return
    for tissue in PHYSIOLOGICAL:
        if bool(display.GetSegmentVisibility(tissue.key)) != (tissue.key in shown):
            display.SetSegmentVisibility(tissue.key, tissue.key in shown)


def shown_tissues(node: Any) -> set[str]:
    """The keys of the tissues that are shown."""
    display = node.GetDisplayNode()
    return {t.key for t in PHYSIOLOGICAL if display is not None and display.GetSegmentVisibility(t.key)}


def centre_of(node: Any, key: str) -> tuple[float, float, float] | None:
    """A point in the middle of a tissue, RAS in mm of the world; None where it has no voxel."""
    if node.GetSegmentation().GetSegment(key) is None:
        return None
    point = node.GetSegmentCenterRAS(key)
    return (float(point[0]), float(point[1]), float(point[2])) if point is not None else None


def set_opacity(node: Any, opacity: float) -> None:
    """Opacity (0-1) of the fills in the slice views; outlines stay as strong as they are."""
    display = node.GetDisplayNode()
    if display is not None:
        display.SetOpacity2DFill(float(opacity))


class WithoutSurfaces:
    """Takes the closed surfaces away while a file is written, and puts the same ones back.

    A file that says it had surfaces takes seconds more to load, because Slicer computes them anew.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        self._surfaces: dict[str, Any] = {}

    def __enter__(self) -> None:
        segmentation = self._node.GetSegmentation()
        if not segmentation.ContainsRepresentation(CLOSED_SURFACE):
            return
        for key in segmentation.GetSegmentIDs():
            self._surfaces[key] = segmentation.GetSegment(key).GetRepresentation(CLOSED_SURFACE)
        self._node.RemoveClosedSurfaceRepresentation()

    def __exit__(self, *failure: object) -> None:
        for key, surface in self._surfaces.items():
            segment = self._node.GetSegmentation().GetSegment(key)
            if segment is not None and surface is not None:
                segment.AddRepresentation(CLOSED_SURFACE, surface)


def surface_file(folder: Path, stem: str, tissue: Tissue) -> Path:
    """The STL file of one tissue."""
    return folder / f"{stem}_{tissue.key}.stl"


def write_surfaces(node: Any, folder: Path, stem: str) -> list[Path]:
    """One STL file (mm, RAS) per tissue that is there, named ``<stem>_<tissue key>.stl``; returns the files."""
    import vtk

    had = node.GetSegmentation().ContainsRepresentation(CLOSED_SURFACE)
    node.CreateClosedSurfaceRepresentation()
    to_world = vtk.vtkTransform()
    to_world.SetMatrix(array_to_matrix(parent_to_world(node)))
    written: list[Path] = []
    for tissue in PHYSIOLOGICAL:
        segment = node.GetSegmentation().GetSegment(tissue.key)
        surface = segment.GetRepresentation(CLOSED_SURFACE) if segment is not None else None
        if surface is None or surface.GetNumberOfPoints() == 0:
            continue
        moved = vtk.vtkTransformPolyDataFilter()
        moved.SetInputData(surface)
        moved.SetTransform(to_world)
        triangles = vtk.vtkTriangleFilter()
        triangles.SetInputConnection(moved.GetOutputPort())
        target = surface_file(folder, stem, tissue)
        try:
            write_file(target, lambda part, triangles=triangles: _write_stl(part, triangles))  # type: ignore[misc]
        except OSError as error:
            raise NeonatalSegError(
                f"{target} could not be written ({error.strerror or error}). Check that the disk has room and may be "
                "written to."
            ) from error
        written.append(target)
    if not had:
        node.RemoveClosedSurfaceRepresentation()
    return written


def _write_stl(path: Path, triangles: Any) -> None:
    import vtk

    writer = vtk.vtkSTLWriter()
    writer.SetFileName(str(path))
    writer.SetFileTypeToBinary()
    writer.SetInputConnection(triangles.GetOutputPort())
    needed = STL_HEADER_BYTES + STL_TRIANGLE_BYTES * triangles.GetOutput().GetNumberOfPolys() if writer.Write() else 0
    if not needed or path.stat().st_size < needed:  # VTK does not always report a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _shared_voxels(label_map: sitk.Image, world_to_reference: np.ndarray) -> Any:
    """The label map, unknown values emptied, as the oriented image that all segments share."""
    array = sitk.GetArrayFromImage(label_map)
    kept = np.zeros(256, np.uint8)
    for tissue in SEGMENTED:
        kept[tissue.index] = tissue.index
    cleaned = sitk.GetImageFromArray(kept[array.astype(np.uint8)])
    cleaned.CopyInformation(label_map)
    oriented = slicer.vtkOrientedImageData()
    oriented.ShallowCopy(vtk_voxels(cleaned))
    oriented.SetImageToWorldMatrix(array_to_matrix(world_to_reference @ ras_affine(label_map)))
    return oriented


def _segment(tissue: Tissue, voxels: Any) -> Any:
    segment = slicer.vtkSegment()
    segment.SetName(tissue.name)
    segment.SetColor(*[value / 255.0 for value in tissue.colour])
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology_entry(tissue))
    segment.SetLabelValue(tissue.index)
    segment.AddRepresentation(BINARY_LABEL_MAP, voxels)
    return segment


def _reference_geometry(node: Any) -> str:
    """The node's reference grid as Slicer's own text; empty where nobody has set one."""
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    return str(node.GetSegmentation().GetConversionParameter(name) or "")


def _segment_mask(node: Any, key: str, geometry: str, oriented: Any) -> np.ndarray:
    """One segment as array (K, J, I) on the reference grid; ``oriented`` is filled and tells the geometry."""
    node.GetBinaryLabelmapRepresentation(key, oriented)
    if geometry:
        grid = slicer.vtkOrientedImageData()
        slicer.vtkSegmentationConverter.DeserializeImageGeometry(geometry, grid)
        resampled = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            oriented, grid, resampled, False, False
        )
        oriented.DeepCopy(resampled)
    columns, rows, slices = oriented.GetDimensions()
    return vtk_to_numpy(oriented.GetPointData().GetScalars()).reshape(slices, rows, columns)


def _affine(oriented: Any) -> np.ndarray:
    """IJK to RAS of an oriented image, its first voxel being index 0."""
    import vtk

    from NeonatalSegLib.mrml.scene.volumes import matrix_to_array

    matrix = vtk.vtkMatrix4x4()
    oriented.GetImageToWorldMatrix(matrix)
    affine = matrix_to_array(matrix)
    extent = oriented.GetExtent()
    affine[:3, 3] += affine[:3, :3] @ np.array([extent[0], extent[2], extent[4]], dtype=float)
    return affine
