"""PySide6 made to look like PythonQt, and as strict: the modules ``qt`` and ``ctk`` for tests outside Slicer.

As in PythonQt, a Qt property is an attribute (``label.text`` is a str, so ``label.text()`` raises), and writing an
attribute that a Qt object does not have raises. Keyword arguments of constructors raise. Signals cut their arguments.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

NOT_AS_PROPERTY = {"sizeHint", "minimumSizeHint"}
_patched = False


class Strict:
    """Marks a stand-in for a C++ class. Other Python subclasses of Qt classes take any attribute, as in PythonQt."""


def application() -> Any:
    """The one QApplication, with a font (the offscreen platform brings none)."""
    existing = QtWidgets.QApplication.instance()
    if existing is not None:
        return existing
    _keep_singletons_alive()
    made = QtWidgets.QApplication([])
    made.setStyle("Fusion")
    _add_font(made)
    return made


def install() -> None:
    """Make ``import qt`` and ``import ctk`` work; once per process."""
    global _patched
    if _patched:
        return
    _patched = True
    qt = types.ModuleType("qt")
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):
            found = getattr(module, name)
            if name.startswith("Q") and isinstance(found, type):
                _patch(found)
                setattr(qt, name, found)
    qt.Qt = QtCore.Qt  # type: ignore[attr-defined]
    qt.QUiLoader = _UiLoader  # type: ignore[attr-defined]
    del qt.QThread  # type: ignore[attr-defined]  # PythonQt has none
    sys.modules["qt"] = qt
    sys.modules["ctk"] = types.ModuleType("ctk")


def register(widget_class: type, module: str) -> None:
    """Make a stand-in, with Qt properties of its own, known to the .ui loader, and as ``ctk.X`` or ``slicer.X``."""
    _UiLoader.known.append(widget_class)
    setattr(sys.modules[module], widget_class.__name__, widget_class)


class _UiLoader(QtUiTools.QUiLoader):
    known: list[type] = []
    loading = False

    def __init__(self) -> None:
        super().__init__()
        for widget_class in self.known:
            self.registerCustomWidget(widget_class)

    def load(self, *arguments: Any) -> Any:
        _UiLoader.loading = True  # PySide6's loader hangs the children onto the root as attributes
        try:
            return super().load(*arguments)
        finally:
            _UiLoader.loading = False


def _patch(cls: type) -> None:
    if not issubclass(cls, QtCore.QObject):
        return
    _properties(cls)

    def strict(self: Any, name: str, value: Any) -> None:
        stands_for_c = type(self).__module__.startswith("PySide6") or isinstance(self, Strict)
        if stands_for_c and not name.startswith("_") and not hasattr(type(self), name) and not _UiLoader.loading:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        found = next((vars(base)[name] for base in type(self).__mro__ if name in vars(base)), None)
        if isinstance(found, QtCore.Property):
            self.setProperty(name, value)
        elif hasattr(type(found), "__set__"):
            type(found).__set__(found, self, value)
        else:
            self.__dict__[name] = value

    construct = cls.__init__

    def without_keywords(self: Any, *arguments: Any, **keywords: Any) -> None:
        if keywords and type(self).__module__.startswith("PySide6"):
            raise TypeError(f"{type(self).__name__}: PythonQt's constructors take no keyword arguments")
        construct(self, *arguments, **keywords)

    try:
        cls.__setattr__ = strict  # type: ignore[assignment]
        cls.__init__ = without_keywords  # type: ignore[misc]
    except TypeError:  # a class that lets nothing be changed
        return


def _properties(cls: type) -> None:
    meta = cls.staticMetaObject  # type: ignore[attr-defined]
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if name not in NOT_AS_PROPERTY:
            setattr(cls, name, _attribute(name))
    if cls is QtCore.QObject:
        cls.name = _attribute("objectName")  # type: ignore[attr-defined]


def _attribute(name: str) -> property:
    return property(lambda self: self.property(name), lambda self, value: self.setProperty(name, value))


def _keep_singletons_alive() -> None:
    """Give None, True and False more references than a run can use up, for Pythons before 3.12 (they are mortal there).

    PySide6 6.12 gives back one reference too many to None in each call that returns None, and to True in each
    ``Signal.emit`` and ``disconnect``, which return it. When the last one is gone, the process ends.
    """
    if sys.version_info < (3, 12):
        import ctypes

        for singleton in (None, True, False):
            ctypes.c_ssize_t.from_address(id(singleton)).value += 1 << 40


def _add_font(made: Any) -> None:
    """DejaVu from matplotlib, so that texts are drawn as letters and not as boxes."""
    try:
        import matplotlib
    except ImportError:
        return
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for file in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"):
        QtGui.QFontDatabase.addApplicationFont(str(folder / file))
    made.setFont(QtGui.QFont("DejaVu Sans", 9))
