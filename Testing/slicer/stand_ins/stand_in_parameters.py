"""A small ``slicer.parameterNodeWrapper``: typed attributes kept in a vtkMRMLScriptedModuleNode, and tied to widgets.

Knows bool, float, int, str and node types, with ``WithinRange``; anything else raises, as unsupported types do there.
Strict where Slicer is (unknown names in the .ui, values out of range), lax where Slicer is (undeclared attributes).
As in Slicer, a value is read from the node once, and again when the node says that it was modified: a node that a
parameter refers to and that comes later, as in the import of a scene, is not seen before.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

import slicer
import vtk


@dataclass
class WithinRange:
    """Annotation: the value lies between both limits, or writing raises ValueError."""

    minimum: float
    maximum: float


def parameterNodeWrapper(cls: type) -> type:
    """Class decorator: declared attributes become parameters."""
    parameters = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        annotations = list(getattr(hint, "__metadata__", ()))
        kind = hint.__origin__ if annotations else hint
        if kind not in (bool, float, int, str) and not issubclass(kind, slicer.vtkMRMLNode):
            raise TypeError(f"Unable to create serializer for {cls} member {name}")
        default = getattr(cls, name) if hasattr(cls, name) else (None if _is_node(kind) else kind())
        parameters[name] = _Parameter(name, kind, annotations, default)
        setattr(cls, name, _property(name))

    def construct(self: Any, node: Any) -> None:
        self.parameterNode = node
        self._ties: dict[int, list[Any]] = {}
        self._updating, self._next_tag = False, 0
        for parameter in parameters.values():
            if not parameter.is_in(node):
                parameter.write(self, parameter.default)
        self._writing = False
        self._cache = {name: parameter.read(self) for name, parameter in parameters.items()}

        def read_again(*_: Any) -> None:
            if not self._writing:
                self._cache = {name: parameter.read(self) for name, parameter in parameters.items()}

        node.AddObserver(vtk.vtkCommand.ModifiedEvent, read_again, 1.0)  # before all others

    cls.__init__ = construct  # type: ignore[misc]
    cls.allParameters = parameters  # type: ignore[attr-defined]
    for method in (connectGui, connectParametersToGui, disconnectGui, AddObserver, RemoveObserver, getValue, setValue):
        setattr(cls, method.__name__, method)
    return cls


def _property(name: str) -> property:
    return property(lambda self: getValue(self, name), lambda self, value: setValue(self, name, value))


@dataclass
class _Parameter:
    name: str
    kind: type
    annotations: list[Any]
    default: Any

    def is_in(self, node: Any) -> bool:
        return _is_node(self.kind) or bool(node.GetParameter(self.name))

    def read(self, wrapper: Any) -> Any:
        node = wrapper.parameterNode
        if _is_node(self.kind):
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if not text:  # a scene that was closed took it away
            return self.default
        return text == "True" if self.kind is bool else self.kind(text[1:] if self.kind is str else text)

    def write(self, wrapper: Any, value: Any) -> None:
        node = wrapper.parameterNode
        if _is_node(self.kind):
            if value is not None and not value.IsA(self.kind.__name__):
                raise TypeError(f"{self.name}: expected {self.kind.__name__}")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        if not isinstance(value, self.kind) and not (self.kind is float and isinstance(value, int)):
            raise TypeError(f"{self.name}: expected {self.kind.__name__}, got {type(value).__name__}")
        for limits in self.annotations:
            if not limits.minimum <= value <= limits.maximum:
                raise ValueError(f"{self.name}: {value} is not in [{limits.minimum}, {limits.maximum}]")
        node.SetParameter(self.name, ("=" + value) if self.kind is str else str(self.kind(value)))


class _Tie:
    """One widget and one parameter."""

    READERS = {
        "QCheckBox": ("checked", "stateChanged"),
        "QSpinBox": ("value", "valueChanged"),
        "ctkSliderWidget": ("value", "valueChanged"),
    }

    def __init__(self, wrapper: Any, name: str, widget: Any) -> None:
        self.wrapper, self.name, self.widget = wrapper, name, widget
        kind = type(widget).__name__
        if kind == "qMRMLNodeComboBox":
            self.signal = widget.currentNodeChanged
        elif kind in self.READERS:
            self.signal = getattr(widget, self.READERS[kind][1])
        else:
            raise RuntimeError(f"Unable to create GUI connector for {name} to {kind}")
        for limits in wrapper.allParameters[name].annotations:
            widget.minimum, widget.maximum = limits.minimum, limits.maximum
        self.show()
        self.signal.connect(self.changed)

    def show(self) -> None:
        value = self.wrapper.getValue(self.name)
        if hasattr(self.widget, "setCurrentNode"):
            self.widget.setCurrentNode(value)
        else:
            setattr(self.widget, self.READERS[type(self.widget).__name__][0], value)

    def changed(self) -> None:
        if self.wrapper._updating:
            return
        node = hasattr(self.widget, "currentNode")
        value = self.widget.currentNode() if node else getattr(self.widget, self.READERS[type(self.widget).__name__][0])
        self.wrapper.setValue(self.name, value)


def connectGui(self: Any, ui: Any) -> None:
    """Tie every widget with the property SlicerParameterName. Returns nothing, as in some versions of Slicer."""
    tied = {widget.property("SlicerParameterName"): widget for widget in vars(ui).values()}
    self.connectParametersToGui({name: widget for name, widget in tied.items() if name})


def connectParametersToGui(self: Any, mapping: dict[str, Any]) -> int:
    """Tie widgets to parameters by name; unknown names raise. Returns the tag for ``disconnectGui``."""
    for name in mapping:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
    tag = self._next_tag
    self._next_tag += 1
    self._ties[tag] = [_Tie(self, name, widget) for name, widget in mapping.items()]

    def show(*_: Any) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            for tie in self._ties.get(tag, []):
                tie.show()
        finally:
            self._updating = False

    self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, show)
    return tag


def disconnectGui(self: Any, tag: int) -> None:
    """Cut the ties made by one ``connectGui``."""
    for tie in self._ties.pop(tag, []):
        tie.signal.disconnect(tie.changed)


def AddObserver(self: Any, event: Any, callback: Any, priority: float = 0.0) -> int:
    return int(self.parameterNode.AddObserver(event, callback, priority))


def RemoveObserver(self: Any, tag: int) -> None:
    self.parameterNode.RemoveObserver(tag)


def getValue(self: Any, name: str) -> Any:
    return self._cache[name]


def setValue(self: Any, name: str, value: Any) -> None:
    self._writing = True
    was = self.parameterNode.StartModify()  # the value is there before anyone is told
    try:
        self.allParameters[name].write(self, value)
        self._cache[name] = self.allParameters[name].read(self)
    finally:
        self.parameterNode.EndModify(was)
        self._writing = False


def _is_node(kind: type) -> bool:
    return issubclass(kind, slicer.vtkMRMLNode)
