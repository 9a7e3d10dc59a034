"""What a finished segmentation leaves in the scene besides the segments: the table of volumes, the uncertainty map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk
import vtk

from NeonatalSegLib.evaluation.metrics import volume_sums
from NeonatalSegLib.mrml.scene.volumes import place_beside, place_in_folder, volume_from_image
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, TISSUES

BRAIN_ROW = "Brain (tissue)"
INTRACRANIAL_ROW = "Intracranial (brain and fluid)"


def volume_rows(volumes_ml: Mapping[str, float]) -> list[tuple[str, float]]:
    """(name, mL) of the eight tissues, then their two sums: brain tissue alone, and with the fluid spaces."""
    known = {tissue.key: float(volumes_ml.get(tissue.key, 0.0)) for tissue in PHYSIOLOGICAL}
    sums = volume_sums(known)
    rows = [(tissue.name, known[tissue.key]) for tissue in PHYSIOLOGICAL]
    return [*rows, (BRAIN_ROW, sums["brain"]), (INTRACRANIAL_ROW, sums["intracranial"])]


def table_from_volumes(volumes_ml: Mapping[str, float], name: str, reference: Any) -> Any:
    """A new table node (columns "Tissue" and "Volume (mL)", one decimal more than the eye needs) beside its scan."""
    node = reference.GetScene().AddNewNodeByClass("vtkMRMLTableNode", name)
    write_volumes(node, volumes_ml)
    if hasattr(node, "SetUseColumnTitleAsColumnHeader"):
        node.SetUseColumnTitleAsColumnHeader(True)
    else:  # its name before Slicer 5.11
        node.SetUseColumnNameAsColumnHeader(True)
    node.SetColumnUnitLabel("Volume (mL)", "mL")
    place_in_folder(node, reference)
    return node


def write_volumes(node: Any, volumes_ml: Mapping[str, float]) -> None:
    """Fill a table node with these volumes, in place of what it held."""
    names, volumes = vtk.vtkStringArray(), vtk.vtkDoubleArray()
    names.SetName("Tissue")
    volumes.SetName("Volume (mL)")
    for tissue, volume in volume_rows(volumes_ml):
        names.InsertNextValue(tissue)
        volumes.InsertNextValue(round(volume, 2))
    table = vtk.vtkTable()
    table.AddColumn(names)
    table.AddColumn(volumes)
    node.SetAndObserveTable(table)


def rows_from_table(node: Any) -> list[tuple[str, float]]:
    """The rows of such a table node, as ``volume_rows`` gives them."""
    table = node.GetTable()
    return [
        (str(table.GetValue(row, 0).ToString()), float(table.GetValue(row, 1).ToDouble()))
        for row in range(table.GetNumberOfRows())
    ]


def volumes_from_label_map(label_map: sitk.Image) -> dict[str, float]:
    """Millilitres by tissue key, counted on a label map with the values of ``tissues.py``."""
    counts = np.bincount(sitk.GetArrayViewFromImage(label_map).ravel(), minlength=NUMBER_OF_CLASSES)
    voxel_ml = float(abs(np.prod(label_map.GetSpacing()))) / 1000.0
    return {tissue.key: float(counts[tissue.index]) * voxel_ml for tissue in TISSUES if tissue.index > 0}


def volume_from_uncertainty(uncertainty: sitk.Image, name: str, reference: Any, world_to_reference: np.ndarray) -> Any:
    """The entropy map (0 sure - 1 not sure) as volume node: warm colours, window 0-1, sure voxels see-through.

    It is not put into the slice views by itself: the scan and the segments stay in sight.
    """
    node = volume_from_image(uncertainty, name, reference.GetScene())
    place_beside(node, reference, world_to_reference)
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetThreshold(0.05, 1.0)
    display.SetApplyThreshold(True)
    display.SetInterpolate(True)
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileInferno.txt")
    if display.GetColorNode() is None:
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeRed")
    return node
