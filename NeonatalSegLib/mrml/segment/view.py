"""Draws a ``segment_view.View`` onto the widgets of NeonatalSeg.ui. Uses only what both Qt bindings understand."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from NeonatalSegLib.mrml.shared import drawing
from NeonatalSegLib.panel.controls import RESEARCH_ONLY
from NeonatalSegLib.panel.segment_view import View
from NeonatalSegLib.tissues import PHYSIOLOGICAL

# As in the .ui file. All rows are in sight: the panel scrolls, and no table inside it.
ROW_PX, HEADER_PX = 23, 30


def draw(ui: Any, view: View, make_item: Any, shown: Set[str] = frozenset()) -> None:
    """Bring every control to what ``view`` says.

    ``make_item(text, colour, right, ticked)`` makes a cell of the table; ``shown`` are the tissues that are seen.
    """
    drawing.apply(ui.segmentButton, view.segment)
    ui.segmentButton.setText(view.segment.text)
    for selector in (ui.t1Selector, ui.t2Selector, ui.modelSelector, ui.deviceSelector):
        drawing.enable(selector, view.inputs)
    for box in (ui.trustHeadersBox, ui.n4Box, ui.flipsBox, ui.uncertaintyBox):
        drawing.enable(box, view.inputs)
    ui.progressBar.setVisible(view.progress.visible)
    ui.progressLabel.setVisible(view.progress.visible)
    ui.progressBar.setMaximum(100 if view.percent is not None else 0)
    ui.progressBar.setValue(view.percent if view.percent is not None else -1)
    ui.progressLabel.setText(view.progress.text)
    text = drawing.PREFIX[view.kind] + view.message if view.message else ""
    ui.messageLabel.setText(text)
    ui.messageLabel.setVisible(bool(text))
    ui.deviceLabel.setText(view.device)
    ui.modelLabel.setText(view.model_description)
    ui.modelLabel.setVisible(bool(view.model_description))
    ui.researchLabel.setText(RESEARCH_ONLY)
    for control in (ui.show3DBox, ui.opacitySlider, ui.correctButton):
        drawing.enable(control, view.results)
    for button in (ui.exportNiftiButton, ui.exportSegButton, ui.exportStlButton):
        drawing.enable(button, view.export)
    ui.volumesTable.setVisible(bool(view.rows))
    _fill(ui.volumesTable, view.rows, make_item, shown)


def ticked(table: Any) -> set[str]:
    """The keys of the tissues whose rows are ticked."""
    return {t.key for row, t in enumerate(PHYSIOLOGICAL) if drawing.is_ticked(table.item(row, 0))}


def _fill(table: Any, rows: Sequence[tuple[str, float]], make_item: Any, shown: Set[str]) -> None:
    """A colour and a tick for each tissue, the volume to the right, so that the decimals stand below each other."""
    table.blockSignals(True)
    if table.property("rowCount") != len(rows):
        table.setRowCount(len(rows))
        table.setFixedHeight(ROW_PX * len(rows) + HEADER_PX)
    for row, (name, volume) in enumerate(rows):
        tissue = PHYSIOLOGICAL[row] if row < len(PHYSIOLOGICAL) else None
        item = table.item(row, 0)
        if item is None or item.text() != name:
            item = make_item(name, tissue.colour if tissue else None, False, tissue.key in shown if tissue else None)
            table.setItem(row, 0, item)
        if tissue is not None and drawing.is_ticked(item) != (tissue.key in shown):
            drawing.tick(item, tissue.key in shown)
        text, cell = f"{volume:.1f}", table.item(row, 1)
        if cell is None:
            table.setItem(row, 1, make_item(text, None, True, None))
        elif cell.text() != text:
            cell.setText(text)
    table.blockSignals(False)
