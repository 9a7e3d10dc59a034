"""How every section brings a control, a list or a table onto its widget; only what both Qt bindings understand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from NeonatalSegLib.panel.controls import Control

PREFIX = {"info": "", "warning": "Notice: ", "error": "Error: "}


def choices(combo: Any, entries: list[tuple[str, str]], chosen: str) -> None:
    """Fill a combo box with (text, value) and select ``chosen``, without telling anyone."""
    combo.blockSignals(True)
    combo.clear()
    for text, value in entries:
        combo.addItem(text, value)
    index = combo.findData(chosen)
    combo.setCurrentIndex(index if index >= 0 else 0)
    combo.blockSignals(False)


def keep_choices(combo: Any, entries: Sequence[tuple[str, str]], wanted: str) -> None:
    """As ``choices``, but left alone where nothing changes, or an open list would close under the mouse."""
    there = [(combo.itemText(i), str(combo.itemData(i) or "")) for i in range(combo.property("count"))]
    if there != list(entries) or chosen(combo) != wanted:
        choices(combo, list(entries), wanted)


def chosen(combo: Any) -> str:
    """The value of the selected entry, "" where there is none."""
    return str(combo.itemData(combo.property("currentIndex")) or "")


def apply(widget: Any, control: Control) -> None:
    """Enabled or not, and the tool tip that says why."""
    widget.setEnabled(control.enabled)
    widget.setToolTip(control.tool_tip)


def enable(widget: Any, control: Control) -> None:
    """As ``apply``; while enabled, the tool tip of the .ui file stays, kept in its "what's this" text."""
    widget.setEnabled(control.enabled)
    own = widget.property("whatsThis") or ""
    widget.setToolTip(own if control.enabled and own else control.tool_tip)


def fill(table: Any, rows: Sequence[Sequence[str]], make_item: Any) -> None:
    """Bring a table to ``rows`` of texts; cells that are there are written anew only where their text differs."""
    if table.property("rowCount") != len(rows):
        table.setRowCount(len(rows))
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = table.item(row, column)
            if item is None:
                table.setItem(row, column, make_item(text))
            elif item.text() != text:
                item.setText(text)


def is_ticked(item: Any) -> bool:
    """True where a cell has a tick: a number in one Qt binding, an enumeration in the other."""
    state = item.checkState() if item is not None else 0
    return bool(getattr(state, "value", state) == 2)


def tick(item: Any, ticked: bool) -> None:
    """Tick a cell that can be ticked, or take the tick away."""
    state = item.checkState()
    item.setCheckState(type(state)(2 if ticked else 0))


def fit_height(root: Any) -> None:
    """Make a section claim the height that it needs at its width.

    Slicer's module panel gives a module its minimum height, in which wrapped text counts as one line and buttons that
    flow as one row: what lay below a long message was drawn over it.
    """
    needed = max(0, int(root.heightForWidth(int(root.property("width")))))
    if int(root.property("minimumHeight")) != needed:
        root.setMinimumHeight(needed)
