"""Draws a ``panel.View`` onto the widgets of the .ui file. Uses only what both Qt bindings understand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from NeonatalSegLib.panel.segment_state import RESEARCH_ONLY, Control, View

PREFIX = {"info": "", "warning": "Notice: ", "error": "Error: "}


def draw(ui: Any, view: View, make_item: Any) -> None:
    """Bring every control to what ``view`` says; ``make_item(text)`` makes a cell of the table."""
    apply(ui.segmentButton, view.segment)
    ui.segmentButton.setText(view.segment.text)
    for selector in (ui.t1Selector, ui.t2Selector, ui.modelSelector, ui.deviceSelector):
        enable(selector, view.inputs)
    for box in (ui.trustHeadersBox, ui.n4Box, ui.flipsBox, ui.uncertaintyBox):
        enable(box, view.inputs)
    ui.progressBar.setVisible(view.progress.visible)
    ui.progressLabel.setVisible(view.progress.visible)
    ui.progressBar.setMaximum(100 if view.percent is not None else 0)
    ui.progressBar.setValue(view.percent if view.percent is not None else -1)
    ui.progressLabel.setText(view.progress.text)
    text = PREFIX[view.kind] + view.message if view.message else ""
    ui.messageLabel.setText(text)
    ui.messageLabel.setVisible(bool(text))
    ui.deviceLabel.setText(view.device)
    ui.modelLabel.setText(view.model_description)
    ui.modelLabel.setVisible(bool(view.model_description))
    ui.researchLabel.setText(RESEARCH_ONLY)
    for control in (ui.show3DBox, ui.opacitySlider):
        enable(control, view.results)
    for button in (ui.exportNiftiButton, ui.exportSegButton, ui.exportStlButton):
        enable(button, view.export)
    ui.volumesTable.setVisible(bool(view.rows))
    fill(ui.volumesTable, [(name, f"{volume:.1f}") for name, volume in view.rows], make_item)


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
