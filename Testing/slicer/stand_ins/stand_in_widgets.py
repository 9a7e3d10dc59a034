"""The few CTK and qMRML widgets that the panel uses, with the part of their API that it may rely on."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from strict_qt import Strict


def _number(name: str) -> Any:
    """A Qt property of a slider, kept by its spin box."""
    return QtCore.Property(
        float, lambda self: self._box.property(name), lambda self, value: self._box.setProperty(name, value)
    )


def _flag(name: str) -> Any:
    """A Qt property that is on or off."""

    def write(self: Any, value: bool) -> None:
        self._flags[name] = value

    return QtCore.Property(bool, lambda self: self._flags[name], write)


class ctkCollapsibleButton(Strict, QtWidgets.QWidget):  # noqa: N801 names as in CTK
    """A titled box that can be folded."""

    HEADER = 26
    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed, self._folding = "", False, False
        self.setContentsMargins(0, self.HEADER, 0, 0)

    def _get_text(self) -> str:
        return self._text

    def _set_text(self, value: str) -> None:
        self._text = value
        self.update()

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, value: bool) -> None:
        self._collapsed = value
        self._fold()
        self.contentsCollapsed.emit(value)

    text = QtCore.Property(str, _get_text, _set_text)
    collapsed = QtCore.Property(bool, _get_collapsed, _set_collapsed)

    def _fold(self) -> None:
        """As in CTK: what is hidden in an open box stays hidden, and what is shown in a folded one waits."""
        self._folding = True
        for child in self.children():
            if child.isWidgetType():
                if self._collapsed:
                    child.setProperty("wasShown", not child.isHidden() or bool(child.property("wasShown")))
                    child.hide()
                else:
                    child.setVisible(child.property("wasShown") is not False)
        self._folding = False
        self.setMaximumHeight(self.HEADER if self._collapsed else 16777215)

    def childEvent(self, event: Any) -> None:
        if event.added() and event.child().isWidgetType():
            event.child().installEventFilter(self)

    def eventFilter(self, child: Any, event: Any) -> bool:
        kinds = (QtCore.QEvent.ShowToParent, QtCore.QEvent.HideToParent)
        if event.type() in kinds and not self._folding:
            shown = event.type() == kinds[0]
            child.setProperty("wasShown", shown)
            if shown and self._collapsed:
                self._folding = True
                child.hide()
                self._folding = False
        return False

    def showEvent(self, event: Any) -> None:
        if self._collapsed:
            self._fold()

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() <= self.HEADER:
            self._set_collapsed(not self._collapsed)

    def paintEvent(self, event: Any) -> None:
        painter = QtGui.QPainter(self)
        painter.fillRect(0, 0, self.width, self.HEADER - 4, QtGui.QColor(215, 222, 228))
        painter.drawText(8, 16, ("▸ " if self._collapsed else "▾ ") + self._text)
        painter.end()


class ctkSliderWidget(Strict, QtWidgets.QWidget):  # noqa: N801
    """A slider with a number beside it."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slider, self._box = QtWidgets.QSlider(QtCore.Qt.Horizontal), QtWidgets.QDoubleSpinBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._slider.setRange(0, 1000)
        self._box.valueChanged.connect(self._from_box)
        self._slider.valueChanged.connect(self._from_slider)

    def _from_box(self, value: float) -> None:
        span = (self._box.property("maximum") - self._box.property("minimum")) or 1.0
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - self._box.property("minimum")) / span))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    def _from_slider(self, value: int) -> None:
        low, high = self._box.property("minimum"), self._box.property("maximum")
        self._box.setValue(low + (high - low) * value / 1000)

    value, minimum, maximum = _number("value"), _number("minimum"), _number("maximum")
    singleStep = _number("singleStep")
    decimals = QtCore.Property(
        int, lambda self: self._box.property("decimals"), lambda self, value: self._box.setDecimals(value)
    )


class qMRMLNodeComboBox(Strict, QtWidgets.QComboBox):  # noqa: N801
    """Chooses a node of the scene; follows nodes that come and go."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._tags: list[int] = []
        self._ids: list[str] = []
        self._types: list[str] = []
        self._flags = {"noneEnabled": False, "addEnabled": True, "removeEnabled": True, "renameEnabled": False}
        self._flags |= {"showChildNodeTypes": True, "selectNodeUponCreation": True, "showHidden": False}
        self._none_text = "None"
        self.currentIndexChanged.connect(self._chosen)

    noneEnabled, addEnabled, removeEnabled = _flag("noneEnabled"), _flag("addEnabled"), _flag("removeEnabled")
    renameEnabled, showHidden = _flag("renameEnabled"), _flag("showHidden")
    showChildNodeTypes, selectNodeUponCreation = _flag("showChildNodeTypes"), _flag("selectNodeUponCreation")

    def _get_types(self) -> list[str]:
        return self._types

    def _set_types(self, value: list[str]) -> None:
        self._types = list(value)
        self._fill()

    def _get_none(self) -> str:
        return self._none_text

    def _set_none(self, value: str) -> None:
        self._none_text = value

    nodeTypes = QtCore.Property("QStringList", _get_types, _set_types)
    noneDisplay = QtCore.Property(str, _get_none, _set_none)

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            events = (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent)
            events += (slicer.vtkMRMLScene.EndCloseEvent,)
            self._tags = [scene.AddObserver(event, lambda *_: self._fill()) for event in events]
        self._fill()

    def mrmlScene(self) -> Any:
        return self._scene

    def currentNode(self) -> Any:
        index = self.currentIndex
        identifier = self._ids[index] if 0 <= index < len(self._ids) else ""
        return self._scene.GetNodeByID(identifier) if self._scene is not None and identifier else None

    def setCurrentNode(self, node: Any) -> None:
        if node is None and not self._flags["noneEnabled"]:
            return
        self.setCurrentIndex(self._ids.index(node.GetID() if node is not None else ""))

    def _fill(self) -> None:
        before = self.currentNode()
        had = before is not None or self.currentIndex > 0
        self.blockSignals(True)
        self.clear()
        self._ids = [""] if self._flags["noneEnabled"] else []
        if self._flags["noneEnabled"]:
            self.addItem(self._none_text)
        for node in self._nodes():
            self._ids.append(node.GetID())
            self.addItem(node.GetName())
        if before is not None and before.GetID() in self._ids:
            self.setCurrentIndex(self._ids.index(before.GetID()))
        self.blockSignals(False)
        if had and (before is None or self.currentNode() is not before):
            self._chosen()

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        found = []
        for kind in self._types:
            for index in range(self._scene.GetNumberOfNodesByClass(kind)):
                node = self._scene.GetNthNodeByClass(index, kind)
                if self._flags["showChildNodeTypes"] or node.GetClassName() == kind:
                    found.append(node)
        return found

    def _chosen(self) -> None:
        self.currentNodeChanged.emit(self.currentNode())
