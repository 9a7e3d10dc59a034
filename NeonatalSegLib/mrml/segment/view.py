"""Draws a ``segment_view.View`` onto the widgets of NeonatalSeg.ui. Uses only what both Qt bindings understand."""

from __future__ import annotations

from typing import Any

from NeonatalSegLib.mrml.shared import drawing
from NeonatalSegLib.panel.controls import RESEARCH_ONLY
from NeonatalSegLib.panel.segment_view import View


def draw(ui: Any, view: View, make_item: Any) -> None:
    """Bring every control to what ``view`` says; ``make_item(text)`` makes a cell of the table."""
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
    for control in (ui.show3DBox, ui.opacitySlider):
        drawing.enable(control, view.results)
    for button in (ui.exportNiftiButton, ui.exportSegButton, ui.exportStlButton):
        drawing.enable(button, view.export)
    ui.volumesTable.setVisible(bool(view.rows))
    drawing.fill(ui.volumesTable, [(name, f"{volume:.1f}") for name, volume in view.rows], make_item)
