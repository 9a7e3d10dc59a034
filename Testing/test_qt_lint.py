"""What only one Qt binding understands may not enter the module: found by reading the code, not by running it.

Slicer runs it with PythonQt, the tests with PySide6. Each rule has a snippet that it must find, so that a rule that
finds nothing is noticed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "NeonatalSeg").glob("*.py"), *(ROOT / "NeonatalSegLib" / "mrml").rglob("*.py")])

PROPERTIES = {
    *[
        "text",
        "value",
        "count",
        "objectName",
        "currentIndex",
        "currentText",
        "checked",
        "enabled",
        "visible",
        "toolTip",
        "title",
        "minimum",
        "maximum",
        "rowCount",
        "columnCount",
        "windowTitle",
        "collapsed",
        "width",
        "height",
        "size",
        "currentNodeID",
        "icon",
        "singleStep",
        "decimals",
        "nodeTypes",
        "noneEnabled",
        "styleSheet",
        "whatsThis",
        "placeholderText",
        "readOnly",
        "active",
        "interval",
    ]
}
WIDGET_NAMES = {"widget", "button", "combo", "table", "label", "selector", "box", "slider", "bar", "timer"}
QT_MODULES = {"qt", "ctk"}
FOREIGN = ("PythonQt", "PySide2", "PySide6", "PyQt5", "PyQt6", "imp")


def chain(node: ast.AST) -> list[str]:
    """The names of ``a.b.c``, outermost first; [] where the expression is something else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (inner := chain(node.value)):
        return [*inner, node.attr]
    return []


def is_widget(node: ast.AST) -> bool:
    """``ui.x``, ``self.ui.x``, ``self.timer``, or a variable named like a widget."""
    names = chain(node)
    return ("ui" in names[:-1]) or (bool(names) and names[-1] in WIDGET_NAMES)


def is_qt_class(node: ast.AST) -> bool:
    """``qt.QLabel``, ``ctk.ctkX``, ``slicer.qMRMLX``."""
    names = chain(node)
    return len(names) > 1 and (names[0] in QT_MODULES or (names[0] == "slicer" and names[1].startswith("q")))


def findings(source: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) for everything that one of the two bindings would not understand."""
    tree = ast.parse(source)
    methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _in_call(node, methods)
        elif isinstance(node, ast.Attribute):
            yield from _in_attribute(node, called)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in FOREIGN:
                    yield node.lineno, f"imports {name}"


def _in_call(node: ast.Call, methods: dict[str, ast.FunctionDef]) -> Iterator[tuple[int, str]]:
    function = node.func
    if isinstance(function, ast.Name) and function.id == "isinstance" and len(node.args) == 2:
        kinds = node.args[1].elts if isinstance(node.args[1], ast.Tuple) else [node.args[1]]
        if any(is_qt_class(kind) for kind in kinds):
            yield node.lineno, 'isinstance with a Qt class is False in PythonQt: use inherits("...")'
    if is_qt_class(function) and node.keywords:
        yield node.lineno, "keyword arguments of a Qt constructor fail in PythonQt"
    if not isinstance(function, ast.Attribute):
        return
    if function.attr in PROPERTIES and not node.args and is_widget(function.value):
        yield node.lineno, f'{function.attr}() is a value in PythonQt: use property("{function.attr}")'
    first = node.args[0] if node.args else None
    if function.attr == "setText" and isinstance(first, ast.Constant) and first.value is None:
        yield node.lineno, "setText(None) shows None"
    if function.attr == "connect" and node.args:
        yield from _in_connect(node, function, methods)


def _in_connect(
    node: ast.Call, function: ast.Attribute, methods: dict[str, ast.FunctionDef]
) -> Iterator[tuple[int, str]]:
    receiver = node.args[0]
    if isinstance(receiver, ast.Constant) and chain(function.value) != ["slicer", "app"]:
        yield node.lineno, "connect by a signal's name is PythonQt's alone"
    if isinstance(function.value, ast.Subscript):
        yield node.lineno, "signal[type] fails in PythonQt"
    signal = function.value
    if not (isinstance(signal, ast.Attribute) and is_widget(signal.value)):
        return
    if isinstance(receiver, ast.Call):
        yield node.lineno, "a partial gets all arguments in PythonQt"
    if isinstance(receiver, ast.Lambda) and (receiver.args.args or receiver.args.vararg):
        yield node.lineno, "the arguments of a lambda differ between the bindings: take none"
    names = chain(receiver)
    if len(names) == 2 and names[0] == "self" and names[1] in methods:
        arguments = methods[names[1]].args
        if len(arguments.args) > 1 or arguments.vararg:
            yield node.lineno, f"{names[1]} takes arguments, which differ between the bindings: take none"


def _in_attribute(node: ast.Attribute, called: set[int]) -> Iterator[tuple[int, str]]:
    names = chain(node)
    if isinstance(node.ctx, ast.Store) and is_widget(node.value):
        yield node.lineno, f"writing .{node.attr} does nothing in PySide6: use a setter"
    if isinstance(node.ctx, ast.Load) and node.attr in PROPERTIES and is_widget(node.value) and id(node) not in called:
        yield node.lineno, f'.{node.attr} is a method in PySide6: use property("{node.attr}")'
    if names[:2] in (["qt", "QThread"], ["qt", "QTextCodec"]):
        yield node.lineno, f"{'.'.join(names)} is not in PythonQt"
    if len(names) > 3 and names[0] in QT_MODULES and names[1] != "Qt":
        yield node.lineno, f"the scoped enum {'.'.join(names)} fails in PythonQt"
    if names == ["sys", "executable"]:
        yield node.lineno, "sys.executable may be empty in Slicer"


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_understood_by_both_bindings(path: Path) -> None:
    found = [f"{path.name}:{line}: {what}" for line, what in findings(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


BAD = {
    "string connect": 'self.ui.button.connect("clicked()", self.onClick)',
    "overload": "self.ui.box.valueChanged[int].connect(self.onChange)",
    "isinstance": "ok = isinstance(x, qt.QWidget)",
    "isinstance in a tuple": "ok = isinstance(x, (str, slicer.qMRMLWidget))",
    "property called": "name = self.ui.label.text()",
    "property called on a variable": "n = combo.count()",
    "property read": "name = self.ui.label.text",
    "property written": "self.ui.button.enabled = False",
    "keyword": "w = qt.QLabel(parent=p)",
    "thread": "t = qt.QThread()",
    "scoped enum": "s = qt.QProcess.ProcessState.Running",
    "partial": "self.ui.button.clicked.connect(functools.partial(f, 1))",
    "lambda with a default": "self.ui.button.clicked.connect(lambda checked=None: f())",
    "lambda with all": "self.ui.button.clicked.connect(lambda *a: f())",
    "slot with arguments": "class W:\n def on(self, flag): pass\n def s(self): self.ui.box.clicked.connect(self.on)",
    "none as text": "label.setText(None)",
    "binding": "from PySide6 import QtCore",
    "old module": "import imp",
    "interpreter": "p = sys.executable",
}
GOOD = """
class W:
    def setup(self):
        slicer.app.connect("startupCompleted()", register)
        self.ui.button.clicked.connect(self.onClick)
        self.ui.button.setEnabled(False)
        self.timer.timeout.connect(self.onClick)
        name = self.ui.label.property("text") + self.ui.table.item(0, 0).text()
        self.logic.finished.connect(lambda outcome: None)
        flag = qt.Qt.AlignLeft
    def onClick(self):
        pass
"""


@pytest.mark.parametrize("name", BAD)
def test_rule_finds_its_fault(name: str) -> None:
    assert list(findings(BAD[name])), name


def test_rules_leave_good_code_alone() -> None:
    assert list(findings(GOOD)) == []
