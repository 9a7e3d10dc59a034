"""Slicer's Segment Editor without its Qt: the real C++ editing logic, and a widget as strict as the real one on top."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from vtk.util.numpy_support import vtk_to_numpy


class Brush:
    """Paints and erases as every editor effect does, through the masks of a vtkMRMLSegmentEditorNode.

    Args:
        segmentation, volume: as set in the editor. node: the editor's node; a new one where None.
    """

    def __init__(self, segmentation: Any, volume: Any, node: Any = None) -> None:
        scene = volume.GetScene()
        self.node = node if node is not None else scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene)
        self.logic.SetSegmentEditorNode(self.node)
        self.logic.SetSegmentationNode(segmentation)
        self.logic.SetSourceVolumeNode(volume)
        self.logic.SetMaximumNumberOfUndoStates(10)

    def paint(self, segment: str, voxels: np.ndarray) -> None:
        """Paint ``voxels`` (z, y, x of the volume node, bool) as ``segment``."""
        modify(self.logic, segment, voxels, self.logic.ModificationModeAdd)

    def erase(self, segment: str, voxels: np.ndarray) -> None:
        """Take ``voxels`` away from ``segment``."""
        modify(self.logic, segment, voxels, self.logic.ModificationModeRemove)


def modify(logic: Any, segment: str, voxels: np.ndarray, mode: Any) -> None:
    """What an effect does when it applies ``voxels`` (z, y, x of the source volume, bool)."""
    logic.SetCurrentSegmentID(segment)
    logic.UpdateReferenceGeometryImage()
    if not logic.UpdateAlignedSourceVolume():
        raise RuntimeError("the editor has no usable source volume")
    logic.ResetModifierLabelmapToDefault()
    modifier = logic.GetModifierLabelmap()
    columns, rows, slices = modifier.GetDimensions()
    scalars = vtk_to_numpy(modifier.GetPointData().GetScalars()).reshape(slices, rows, columns)
    assert scalars.shape == voxels.shape
    scalars[voxels] = 1
    modifier.Modified()
    logic.UpdateMaskLabelmap()
    logic.ModifySegmentByLabelmap(logic.GetSegmentationNode(), segment, modifier, mode, False, False)
