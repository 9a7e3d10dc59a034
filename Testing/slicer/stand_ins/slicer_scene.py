"""A scene to test on: Slicer's own inside Slicer, the slicer-core wheel's elsewhere.

On the wheel the real MRML, segmentation and subject hierarchy classes work; what is missing is everything that hangs
on Qt. ``new_scene()`` is all that a test of MRML needs; the widget needs ``slicer_qt`` as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer

ROOT = Path(__file__).resolve().parents[3]
for folder in (ROOT, Path(__file__).resolve().parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

_logics: list[Any] = []


def in_slicer() -> bool:
    """True inside a real Slicer, where nothing is stood in for."""
    return hasattr(slicer, "app") and not getattr(slicer.app, "is_stand_in", False)


def new_scene() -> Any:
    """An empty scene that is ``slicer.mrmlScene``: emptied in Slicer, made with its logics on the wheel."""
    if in_slicer():
        slicer.mrmlScene.Clear(False)  # with True the views' singletons go too, and Slicer ends
        return slicer.mrmlScene
    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    application_logic.SetMRMLScene(scene)
    colours = application_logic.GetColorLogic()
    colours.SetMRMLScene(scene)
    colours.AddDefaultColorNodes()
    application_logic.SetModuleLogic("Colors", colours)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    logics = {
        "Volumes": slicer.vtkSlicerVolumesLogic(),
        "Terminologies": slicer.vtkSlicerTerminologiesModuleLogic(),
        "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
        "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic(),
        "Plots": slicer.vtkSlicerPlotsLogic(),
    }
    _tell_terminologies(logics["Terminologies"])
    for name, logic in logics.items():
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application_logic)
        application_logic.SetModuleLogic(name, logic)
    _logics[:] = [application_logic, *logics.values()]  # the scene alone does not keep them alive
    slicer.mrmlScene = scene
    slicer.modules = SimpleNamespace(
        segmentations=SimpleNamespace(logic=lambda: logics["Segmentations"]),
        terminologies=SimpleNamespace(logic=lambda: logics["Terminologies"]),
        subjecthierarchy=SimpleNamespace(logic=lambda: logics["SubjectHierarchy"]),
        plots=SimpleNamespace(logic=lambda: logics["Plots"]),
    )
    return scene


def _tell_terminologies(logic: Any) -> None:
    try:
        from trame_slicer.resources import resources_path
    except ImportError:
        return
    logic.SetModuleShareDirectory((Path(resources_path()) / "terminologies").as_posix())
