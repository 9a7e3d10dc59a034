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
