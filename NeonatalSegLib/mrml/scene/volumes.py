"""Volume node to SimpleITK image and back, through the affine of the node.

Slicer's world is RAS (x to the right), SimpleITK's is LPS (x to the left); the bridge converts the matrix and never
flips the voxels. A linear parent transform is composed into the affine of the image, the node stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.read import header_warnings

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHEAR_TOLERANCE = 1e-3


def matrix_to_array(matrix: Any) -> np.ndarray:
    """A vtkMatrix4x4 as a 4 x 4 float64 array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def array_to_matrix(values: np.ndarray) -> Any:
    """A 4 x 4 array as a vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(values[row, column]))
    return matrix


def ijk_to_ras(node: Any) -> np.ndarray:
    """The node's own affine (4 x 4, mm), parent transforms left out."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix_to_array(matrix)


def parent_to_world(node: Any) -> np.ndarray:
    """The linear transform from the node's own space to the world (identity without a parent).

    Raises:
        NeonatalSegError: where a parent is not linear: no affine can say where such a voxel lies.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise NeonatalSegError(
            f"{node.GetName()} lies under the non-linear transform {parent.GetName()}. A straight grid of voxels is "
            "needed: harden the transform on a copy of the volume (Data module, right click, Harden transform), or "
            "take the volume out of the transform."
        )
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return matrix_to_array(matrix)


def check_volume(node: Any) -> None:
    """Refuse, in words, a node that cannot be segmented at all; nothing is copied.

    Raises:
        NeonatalSegError: no image data, not three-dimensional, several components, a non-linear or shearing parent.
    """
    name = node.GetName()
    data = node.GetImageData()
    if data is None or data.GetPointData() is None or data.GetPointData().GetScalars() is None:
        raise NeonatalSegError(
            f"{name} holds no image data. Load the scan again, or choose another volume in the input selector."
        )
    if data.GetNumberOfScalarComponents() != 1:
        raise NeonatalSegError(
            f"{name} has {data.GetNumberOfScalarComponents()} values per voxel (a colour or vector volume); one grey "
            "value per voxel was expected. Choose the T1- or T2-weighted scan itself."
        )
    if min(data.GetDimensions()) < 2:
        size = " x ".join(str(length) for length in data.GetDimensions())
        raise NeonatalSegError(f"{name} is a single slice ({size} voxels); a three-dimensional scan was expected.")
    _check_straight(name, world_affine(node)[:3, :3])


def file_warnings(node: Any) -> list[str]:
    """What is doubtful about the position in the file that a volume was loaded from: whoever read it may have guessed.

    Nothing where it came from elsewhere (DICOM, another module) or where the file is gone.
    """
    storage = node.GetStorageNode()
    name = storage.GetFileName() if storage is not None else None
    if not name or not Path(name).is_file():
        return []
    return [f"{node.GetName()}: {text}" for text in header_warnings(name)]


def world_affine(node: Any) -> np.ndarray:
    """IJK to RAS of the world: the node's affine with its linear parent transforms (4 x 4, mm)."""
    return parent_to_world(node) @ ijk_to_ras(node)


def image_from_volume(node: Any) -> sitk.Image:
    """The volume node as a SimpleITK image in world space, voxels in the node's own order.

    Raises:
        NeonatalSegError: as ``check_volume``.
    """
    check_volume(node)
    data = node.GetImageData()
    extent = data.GetExtent()
    columns, rows, slices = data.GetDimensions()
    voxels = vtk_to_numpy(data.GetPointData().GetScalars()).reshape(slices, rows, columns)
    affine = world_affine(node)
    affine[:3, 3] += affine[:3, :3] @ np.array([extent[0], extent[2], extent[4]], dtype=float)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    set_ras_affine(image, affine)
    return image


def set_ras_affine(image: sitk.Image, affine: np.ndarray) -> None:
    """Give a SimpleITK image the geometry of an IJK-to-RAS matrix (4 x 4, mm)."""
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection([float(value) for value in (lps[:3, :3] / spacing).ravel()])


def ras_affine(image: sitk.Image) -> np.ndarray:
    """The IJK-to-RAS matrix (4 x 4, mm) of a SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return RAS_TO_LPS @ affine


def vtk_voxels(image: sitk.Image) -> Any:
    """The voxels of a scalar image as vtkImageData with unit geometry (MRML keeps the affine in the node)."""
    array = sitk.GetArrayViewFromImage(image)
    data = vtk.vtkImageData()
    data.SetDimensions(*image.GetSize())
    scalars = numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    data.GetPointData().SetScalars(scalars)
    return data


def volume_from_image(image: sitk.Image, name: str, scene: Any = None, *, label_map: bool = False) -> Any:
    """A new scalar volume (or label map) node in the scene with a display node, lying where the image lies."""
    scene = scene if scene is not None else slicer.mrmlScene
    kind = "vtkMRMLLabelMapVolumeNode" if label_map else "vtkMRMLScalarVolumeNode"
    node = scene.AddNewNodeByClass(kind, name)
    node.SetIJKToRASMatrix(array_to_matrix(ras_affine(image)))
    node.SetAndObserveImageData(vtk_voxels(image))
    node.CreateDefaultDisplayNodes()
    return node


def place_beside(node: Any, reference: Any, world_to_reference: np.ndarray | None = None) -> None:
    """Put a result node into the folder of its input in the subject hierarchy and under the same parent transform.

    ``world_to_reference`` (4 x 4), for volume nodes only, takes the node's world affine into the input's own space,
    so that the result moves with its input afterwards.
    """
    if world_to_reference is not None:
        node.SetIJKToRASMatrix(array_to_matrix(world_to_reference @ ijk_to_ras(node)))
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    place_in_folder(node, reference)


def place_in_folder(node: Any, reference: Any) -> None:
    """Put any result node into the folder of its input in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    if hierarchy is None:
        return
    sibling = hierarchy.GetItemByDataNode(reference)
    parent = hierarchy.GetItemParent(sibling) if sibling else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:  # without Qt nobody makes the items of new nodes
        hierarchy.CreateItem(parent, node)


def _check_straight(name: str, axes: np.ndarray) -> None:
    """The three voxel axes have to be perpendicular: file formats and the network know no sheared grid."""
    unit = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    off_diagonal = np.abs(unit.T @ unit - np.eye(3)).max()
    if not np.isfinite(off_diagonal) or off_diagonal > SHEAR_TOLERANCE:
        raise NeonatalSegError(
            f"The voxel axes of {name} are not perpendicular in the world (gantry tilt, or a parent transform that "
            "shears it). Resample the volume onto a straight grid first (module Resample Scalar/Vector/DWI Volume)."
        )
