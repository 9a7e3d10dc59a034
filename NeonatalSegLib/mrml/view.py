"""Draws a ``panel.View`` onto the widgets of the .ui file. Uses only what both Qt bindings understand."""

from __future__ import annotations

from typing import Any

from ..panel import RESEARCH_ONLY, Control, View

PREFIX = {"info": "", "warning": "Notice: ", "error": "Error: "}


def draw(ui: Any, view: View, make_item: Any) -> None:
    """Bring every control to what ``view`` says; ``make_item(text)`` makes a cell of the table."""
    _apply(ui.segmentButton, view.segment)
    ui.segmentButton.setText(view.segment.text)
    for selector in (ui.t1Selector, ui.t2Selector, ui.modelSelector, ui.deviceSelector):
        _enable(selector, view.inputs)
    for box in (ui.trustHeadersBox, ui.n4Box, ui.flipsBox, ui.uncertaintyBox):
        _enable(box, view.inputs)
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
        _enable(control, view.results)
    for button in (ui.exportNiftiButton, ui.exportSegButton, ui.exportStlButton):
        _enable(button, view.export)
    _fill(ui.volumesTable, view, make_item)


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


def _apply(widget: Any, control: Control) -> None:
    widget.setEnabled(control.enabled)
    widget.setToolTip(control.tool_tip)


def _enable(widget: Any, control: Control) -> None:
    """As ``_apply``; while enabled, the tool tip of the .ui file stays, kept in its "what's this" text."""
    widget.setEnabled(control.enabled)
    own = widget.property("whatsThis") or ""
    widget.setToolTip(own if control.enabled and own else control.tool_tip)


def _fill(table: Any, view: View, make_item: Any) -> None:
    table.setVisible(bool(view.rows))
    if table.property("rowCount") != len(view.rows):
        table.setRowCount(len(view.rows))
    for row, (name, volume) in enumerate(view.rows):
        for column, text in enumerate((name, f"{volume:.1f}")):
            item = table.item(row, column)
            if item is None:
                table.setItem(row, column, make_item(text))
            elif item.text() != text:
                item.setText(text)
