"""Draws an ``annotate_view.AnnotateView`` onto the widgets of Annotate.ui, as both Qt bindings understand it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.mrml.shared import drawing
from NeonatalSegLib.mrml.shared.drawing import PREFIX, apply, choices, chosen, enable
from NeonatalSegLib.panel.annotate_view import KEYS, PREFILL_TEXTS, AnnotateView
from NeonatalSegLib.tissues import TISSUES

UNITS = [("slices", "slices"), ("percent of the axis", "percent")]
AXES = [(text, text) for text in ("axial", "coronal", "sagittal", "mixed", "random")]
SELECTIONS = [
    ("at equal distances", "equidistant"),
    ("where the model is unsure", "uncertainty"),
    ("at random, more where the brain is large", "foreground-random"),
    ("at random", "random"),
]
START_FROM = [(PREFILL_TEXTS[key], key) for key in ("model", "empty")]
# What the study was filled with when it was made, whatever model is current now.
PREFILLS = [("the study's pre-fill", "model"), *((PREFILL_TEXTS[key], key) for key in ("neighbour", "empty"))]
WITHIN = [("the whole slice", ""), *((f"only within: {t.name}", t.key) for t in TISSUES if t.index > 0)]
ROW_PX, HEADER_PX, ROWS_IN_SIGHT = 23, 30, 5  # of the list of slices; more of them scroll
BUTTONS = ("previous", "next", "done", "skip", "flag", "reopen")
STATE_MARKS = {"to do": "", "in progress": "▸ ", "completed": "✓ ", "flagged": "⚑ ", "skipped": "– "}


def fill_choices(ui: Any) -> None:
    """What the selectors of the section offer."""
    for combo, entries in (
        (ui.unitSelector, UNITS),
        (ui.axisSelector, AXES),
        (ui.selectionSelector, SELECTIONS),
        (ui.startFromSelector, START_FROM),
        (ui.prefillSelector, PREFILLS),
        (ui.withinSelector, WITHIN),
    ):
        choices(combo, entries, entries[0][1])
    for box, name, what in ((ui.fillBox, "fill", "the colours"), (ui.outlineBox, "outline", "the outlines")):
        box.setToolTip(f"Show {what} of the tissues. Key: {KEYS[name]}")
    ui.fillSlider.setToolTip(f"How opaque the colours are. Key for the next step: {KEYS['opacity']}")
    for name in BUTTONS:
        button = getattr(ui, f"{name}Button")
        button.setText(f"{button.property('text')} ({KEYS[name]})")


def settings(ui: Any) -> BudgetSettings:
    """The budget as chosen; NeonatalSegError where it makes no sense."""
    return BudgetSettings(
        amount=float(ui.amountBox.property("value")),
        unit=chosen(ui.unitSelector),
        per="scan",
        axis=chosen(ui.axisSelector),
        selection=chosen(ui.selectionSelector),
    )


def draw(ui: Any, view: AnnotateView, make_item: Callable[[str], Any]) -> None:
    """Bring every control to what ``view`` says; ``make_item(text)`` makes a cell of the table."""
    ui.studyLabel.setText(view.study)
    for button, control in (
        (ui.openButton, view.open),
        (ui.closeButton, view.close),
        (ui.resumeButton, view.resume),
        (ui.nextRoundButton, view.next_round),
    ):
        apply(button, control)
        button.setVisible(control.visible)
    ui.resumeButton.setText(view.resume.text)
    ui.recentSelector.setVisible(view.resume.visible)
    drawing.keep_choices(ui.recentSelector, view.recent, view.recent_chosen)
    ui.newStudyBox.setVisible(view.setup.visible)
    for widget in (ui.amountBox, ui.unitSelector, ui.axisSelector, ui.selectionSelector, ui.startFromSelector):
        enable(widget, view.setup)
    for widget in (ui.raterLabel, ui.raterEdit):
        widget.setVisible(view.setup.visible)
    ui.raterEdit.setEnabled(view.setup.visible and view.setup.enabled)
    apply(ui.makeButton, view.make)
    ui.makeButton.setText(view.make.text)
    for widget in (ui.makingBar, ui.makingLabel):
        widget.setVisible(view.making.visible)
    ui.makingBar.setMaximum(100 if view.making_percent is not None else 0)
    ui.makingBar.setValue(view.making_percent if view.making_percent is not None else -1)
    ui.makingLabel.setText(view.making.text)
    text = PREFIX[view.kind] + view.message if view.message else ""
    ui.annotateMessageLabel.setText(text)
    ui.annotateMessageLabel.setVisible(bool(text))
    ui.workBox.setVisible(view.edit.visible)
    ui.studyBar.setValue(view.percent)
    ui.studyProgressLabel.setText(view.progress)  # macOS draws no text into the bar
    for name, control in view.buttons.items():
        apply(getattr(ui, f"{name}Button"), control)
    for widget in (ui.noteEdit, ui.fillButton, ui.smoothButton, ui.withinSelector):
        enable(widget, view.edit)
    drawing.keep_choices(ui.compareSelector, view.raters, view.rater_chosen)
    ui.compareSelector.setEnabled(len(view.raters) > 1)
    ui.agreementLabel.setText(view.agreement)
    ui.agreementLabel.setVisible(bool(view.agreement))
    _fill(ui.slicesTable, view, make_item)


def _fill(table: Any, view: AnnotateView, make_item: Callable[[str], Any]) -> None:
    table.blockSignals(True)
    if table.property("rowCount") != len(view.rows):
        table.setRowCount(len(view.rows))
        table.setFixedHeight(ROW_PX * min(max(len(view.rows), 1), ROWS_IN_SIGHT) + HEADER_PX)
    for number, row in enumerate(view.rows):
        texts = (STATE_MARKS[row.state] + row.state, row.axis, row.position, row.scan)
        for column, text in enumerate(texts):
            item = table.item(number, column)
            if item is None:
                item = make_item(text)
                table.setItem(number, column, item)
            elif item.text() != text:
                item.setText(text)
            if item.toolTip() != row.tool_tip:
                item.setToolTip(row.tool_tip)
    current = next((number for number, row in enumerate(view.rows) if row.key == view.current), -1)
    if current < 0:
        table.clearSelection()
    elif table.currentRow() != current:
        table.selectRow(current)
    table.blockSignals(False)
