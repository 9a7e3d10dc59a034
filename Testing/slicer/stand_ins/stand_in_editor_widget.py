"""``qMRMLSegmentEditorWidget`` for tests: the calls the panel may make, in the order that the real one needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from stand_in_editor import modify
from strict_qt import Strict

ALL_EFFECTS = ("Paint", "Draw", "Erase", "Level tracing", "Grow from seeds", "Fill between slices", "Threshold")
ALL_EFFECTS += ("Margin", "Hollow", "Smoothing", "Scissors", "Islands", "Logical operators", "Mask volume")


class Effect:
    """One editor effect, with its common parameters."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.common: dict[str, Any] = {}
        self.parameters: dict[str, str] = {}

    def setParameter(self, name: str, value: str) -> None:
        self.parameters[name] = value

    def setCommonParameter(self, name: str, value: Any) -> None:
        self.common[name] = value

    def doubleParameter(self, name: str) -> float:
        return float(self.parameters.get(name, self.common.get(name, 0.0)))


class SegmentsTable(QtWidgets.QListWidget):
    """``qMRMLSegmentsTableView``: a list that leaves hidden segments out."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("SegmentsTableView")
        self.setMaximumHeight(150)
        self.node: Any = None
        self.hidden: list[str] = []
        self.eyes = True

    def fill(self, node: Any) -> None:
        self.node = node
        self.clear()
        if node is not None:
            segmentation = node.GetSegmentation()
            shown = [key for key in segmentation.GetSegmentIDs() if key not in self.hidden]
            self.addItems([segmentation.GetSegment(key).GetName() for key in shown])

    def setHideSegments(self, keys: list[str]) -> None:
        self.hidden = list(keys)
        self.fill(self.node)

    def setVisibilityColumnVisible(self, visible: bool) -> None:
        self.eyes = visible


def _option(name: str, kind: type) -> Any:
    return QtCore.Property(kind, lambda self: self.options[name], lambda self, value: self._set_option(name, value))


class qMRMLSegmentEditorWidget(Strict, QtWidgets.QWidget):  # noqa: N801 as in Slicer
    """Buttons for the effects and a list of the segments; edits go through the real vtkSlicerSegmentEditorLogic."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.options = {
            "segmentationNodeSelectorVisible": True,
            "sourceVolumeNodeSelectorVisible": True,
            "switchToSegmentationsButtonVisible": True,
            "unorderedEffectsVisible": True,
            "addRemoveSegmentButtonsVisible": True,
            "show3DButtonVisible": True,
            "maskingSectionVisible": True,
            "undoEnabled": True,
            "readOnly": False,
            "maximumNumberOfUndoStates": 10,
        }
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._scene: Any = None
        self._order = list(ALL_EFFECTS)
        self._effects = {name: Effect(name) for name in ALL_EFFECTS}
        self._active: Effect | None = None
        self._shortcuts: list[Any] = []
        self._observing = False
        self._buttons = QtWidgets.QLabel()
        self._buttons.setWordWrap(True)  # there the buttons flow into the next line
        self._list = SegmentsTable()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._list)
        layout.addWidget(self._buttons)

    segmentationNodeSelectorVisible = _option("segmentationNodeSelectorVisible", bool)
    sourceVolumeNodeSelectorVisible = _option("sourceVolumeNodeSelectorVisible", bool)
    switchToSegmentationsButtonVisible = _option("switchToSegmentationsButtonVisible", bool)
    unorderedEffectsVisible = _option("unorderedEffectsVisible", bool)
    addRemoveSegmentButtonsVisible = _option("addRemoveSegmentButtonsVisible", bool)
    show3DButtonVisible = _option("show3DButtonVisible", bool)
    maskingSectionVisible = _option("maskingSectionVisible", bool)
    undoEnabled = _option("undoEnabled", bool)
    readOnly = _option("readOnly", bool)
    maximumNumberOfUndoStates = _option("maximumNumberOfUndoStates", int)

    def _set_option(self, name: str, value: Any) -> None:
        self.options[name] = value
        if name == "undoEnabled" and value:
            self._logic.ClearUndoState()
        if name == "maximumNumberOfUndoStates":
            self._logic.SetMaximumNumberOfUndoStates(value)
        if name == "readOnly" and value:
            self.setActiveEffect(None)

    # Set-up: the node before the scene, the segmentation before its source volume

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self._logic.SetSegmentEditorNode(node)

    def mrmlSegmentEditorNode(self) -> Any:
        return self._logic.GetSegmentEditorNode()

    def setMRMLScene(self, scene: Any) -> None:
        assert scene is None or self.mrmlSegmentEditorNode() is not None, "the editor node has to be set first"
        self._scene = scene
        if scene is not None:
            self._logic.SetMRMLScene(scene)

    def mrmlScene(self) -> Any:
        return self._scene

    def setSegmentationNode(self, node: Any) -> None:
        assert node is None or self._scene is not None, "the scene has to be set first"
        self._logic.SetSegmentationNode(node)
        self._list.fill(node)

    def segmentationNode(self) -> Any:
        return self._logic.GetSegmentationNode()

    def setSourceVolumeNode(self, node: Any) -> None:
        assert self.segmentationNode() is not None, "the segmentation has to be set first"
        self._logic.SetSourceVolumeNode(node)

    def sourceVolumeNode(self) -> Any:
        return self._logic.GetSourceVolumeNode()

    # Effects

    def setEffectNameOrder(self, names: list[str]) -> None:
        assert set(names) <= set(ALL_EFFECTS), names
        self._order = list(names)
        self._buttons.setText("Effects: " + ", ".join(names))

    def effectNameOrder(self) -> list[str]:
        return self._order

    def effectByName(self, name: str) -> Any:
        return self._effects.get(name)

    def activeEffect(self) -> Any:
        return self._active

    def setActiveEffect(self, effect: Any) -> None:
        assert effect is None or slicer.app.layoutManager() is not None, "an effect without a main window: a crash"
        if effect is None or not self.options["readOnly"]:
            self._active = effect

    def setActiveEffectByName(self, name: str) -> None:
        self.setActiveEffect(self._effects[name])

    # Keys and views

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        """As there: keys that anyone else has on the same window work for none of the two."""
        keys = [*"1234567890", "Esc", "Space", "Z", "Y", "Ctrl+Z", "Ctrl+Y", *"QW/*,.><I"]
        for key in keys:
            made = QtGui.QShortcut(parent if parent is not None else self.window())
            made.setKey(QtGui.QKeySequence(key))
            self._shortcuts.append(made)

    def uninstallKeyboardShortcuts(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
        self._shortcuts = []

    def setupViewObservations(self) -> None:
        self._observing = True

    def removeViewObservations(self) -> None:
        self._observing = False

    # Editing

    def saveStateForUndo(self) -> None:
        assert not self.options["readOnly"]
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        self._logic.Undo()

    def redo(self) -> None:
        self._logic.Redo()

    def _works(self, name: str) -> bool:
        """A stroke needs its effect; where there are no views to be active in, tests stroke all the same."""
        if self.options["readOnly"]:
            return False
        return slicer.app.layoutManager() is None or (self._active is not None and self._active.name == name)

    def canUndo(self) -> bool:
        """For tests alone: whether the Undo button is enabled."""
        return bool(self._logic.CanUndo())

    def paint(self, segment: str, voxels: np.ndarray) -> None:
        """For tests alone: a stroke of the Paint effect over ``voxels`` (z, y, x of the source volume)."""
        if self._works("Paint"):
            self.saveStateForUndo()
            modify(self._logic, segment, voxels, self._logic.ModificationModeAdd)

    def erase(self, segment: str, voxels: np.ndarray) -> None:
        """For tests alone: a stroke of the Erase effect."""
        if self._works("Erase"):
            self.saveStateForUndo()
            modify(self._logic, segment, voxels, self._logic.ModificationModeRemove)
