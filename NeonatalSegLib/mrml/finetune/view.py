"""Draws a ``finetune_view.View`` onto the widgets of FineTune.ui. Uses only what both Qt bindings understand."""

from __future__ import annotations

from typing import Any

from NeonatalSegLib.mrml.shared import drawing as drawing
from NeonatalSegLib.panel.finetune_view import View


def draw(ui: Any, view: View, make_item: Any) -> None:
    """Bring every control to what ``view`` says; ``make_item(text)`` makes a cell of the table."""
    ui.studyLabel.setText(view.study)
    ui.currentModelLabel.setText(view.current)
    drawing.keep_choices(ui.strategySelector, view.strategies, view.strategy)
    ui.strategyLabel.setText(view.strategy_text)
    drawing.keep_choices(ui.keepSelector, view.keeps, view.keep)
    ui.keepLabel.setText(view.keep_text)
    for widget in (ui.strategySelector, ui.keepSelector, ui.stepsBox, ui.rehearsalBox):
        drawing.enable(widget, view.settings)
    drawing.apply(ui.startButton, view.start)
    ui.startButton.setText(view.start.text)
    ui.tuneProgressBar.setVisible(view.progress.visible)
    ui.tuneProgressLabel.setVisible(view.progress.visible)
    ui.tuneProgressBar.setMaximum(100 if view.percent is not None else 0)
    ui.tuneProgressBar.setValue(view.percent if view.percent is not None else -1)
    ui.tuneProgressLabel.setText(view.progress.text)
    text = drawing.PREFIX[view.kind] + view.message if view.message else ""
    ui.tuneMessageLabel.setText(text)
    ui.tuneMessageLabel.setVisible(bool(text))
    drawing.keep_choices(ui.versionSelector, view.versions or (("none yet", ""),), view.version)
    drawing.enable(ui.versionSelector, view.version_list)
    ui.scoresLabel.setText(view.rows_text)
    ui.scoresLabel.setVisible(bool(view.rows))
    ui.scoresTable.setVisible(bool(view.rows))
    drawing.fill(ui.scoresTable, view.rows, make_item)
    for button, control in (
        (ui.acceptButton, view.accept),
        (ui.discardButton, view.discard),
        (ui.rollBackButton, view.roll_back),
        (ui.exportModelButton, view.export),
        (ui.importModelButton, view.import_),
    ):
        drawing.apply(button, control)
