"""The module's parameters, kept in the scene and restored with it."""

from __future__ import annotations

from typing import Annotated

from slicer import (
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
)
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class NeonatalSegParameterNode:
    """What the user has chosen, and what came of it.

    t1, t2: the scan, either alone will do. model: name or folder, "" for the default. device: "auto", "cpu", "cuda".
    trustHeaders, n4, flips, uncertainty: as in SegmentOptions. show3D, opacity: how the result is shown.
    studyFolder, rater: of the Annotate section, "" for none.
    tuneStrategy, tuneKeep, tuneSteps (0: automatic), tuneRehearsal, tunePlot: as in the Fine-tune section.
    segmentation, volumes, uncertaintyMap: the last result.
    """

    t1: vtkMRMLScalarVolumeNode
    t2: vtkMRMLScalarVolumeNode
    model: str = ""
    device: str = "auto"
    trustHeaders: bool = False
    n4: bool = False
    flips: bool = False
    uncertainty: bool = False
    show3D: bool = False
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    studyFolder: str = ""
    rater: str = ""
    tuneStrategy: str = "full"
    tuneKeep: str = "everything"
    tuneSteps: Annotated[int, WithinRange(0, 100000)] = 0
    tuneRehearsal: bool = True
    tunePlot: bool = True
    segmentation: vtkMRMLSegmentationNode
    volumes: vtkMRMLTableNode
    uncertaintyMap: vtkMRMLScalarVolumeNode


def segment_options(parameters: NeonatalSegParameterNode) -> dict[str, bool]:
    """The fields of SegmentOptions that the panel offers."""
    return {
        "trust_headers": parameters.trustHeaders,
        "n4": parameters.n4,
        "flips": parameters.flips,
        "uncertainty": parameters.uncertainty,
    }
