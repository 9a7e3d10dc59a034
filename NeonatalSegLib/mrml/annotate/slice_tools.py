"""The small tools beside the Segment Editor: reset, smooth, where to edit, how it looks, how another rater differs."""

from __future__ import annotations

from typing import Any

from NeonatalSegLib.annotation.smoothing import smoothed
from NeonatalSegLib.mrml.annotate.slice_workspace import SliceWorkspace
from NeonatalSegLib.mrml.shared.drawing import chosen
from NeonatalSegLib.mrml.shared.slot import slot
from NeonatalSegLib.panel.annotate_state import AnnotateState

OPACITIES = (0.25, 0.5, 0.75, 1.0)


class SliceTools:
    """What these controls do.

    Args:
        ui: the widgets of Annotate.ui by name. panel: the section's state. desk: the slice that is worked on.
    """

    def __init__(self, ui: Any, panel: AnnotateState, desk: SliceWorkspace) -> None:
        self.ui, self.panel, self.desk = ui, panel, desk
        ui.smoothButton.clicked.connect(self.on_smooth)
        ui.fillButton.clicked.connect(self.on_fill_again)
        ui.prefillSelector.currentIndexChanged.connect(self.on_prefill_chosen)
        ui.compareSelector.currentIndexChanged.connect(self.on_other_rater)
        ui.withinSelector.currentIndexChanged.connect(self.on_within_chosen)
        ui.fillBox.toggled.connect(self.on_look)
        ui.outlineBox.toggled.connect(self.on_look)
        ui.fillSlider.valueChanged.connect(self.on_look)

    @slot
    def on_fill_again(self) -> None:
        """Start the slice anew from the chosen pre-fill; Undo takes it back."""
        if self.desk.shown is not None and self.panel.editable:
            self.desk.fill(self.panel.item.slice, self.panel.fill_again(), self.within())  # type: ignore[union-attr]

    @slot
    def on_smooth(self) -> None:
        """Smooth the tissues' borders within the slice; Undo takes it back."""
        if self.desk.shown is not None and self.panel.editable:
            smooth = smoothed(self.desk.shown.read(), self.desk.shown.editable)
            self.desk.fill(self.panel.item.slice, smooth, self.within())  # type: ignore[union-attr]
            self.panel.clock.touch()

    @slot
    def on_opacity_key(self) -> None:
        """The next of four opacities."""
        now = float(self.ui.fillSlider.property("value"))
        following = next((step for step in OPACITIES if step > now + 0.01), OPACITIES[0])
        self.ui.fillSlider.setProperty("value", following)

    @slot
    def on_prefill_chosen(self) -> None:
        """What slices start from, those after this one included."""
        self.panel.prefill = chosen(self.ui.prefillSelector) or "model"

    @slot
    def on_other_rater(self) -> None:
        """The user wants to see where another rater differs."""
        self.panel.compare_with(chosen(self.ui.compareSelector))
        self.show_difference()

    def show_difference(self) -> None:
        """Mark where the other rater differs in the slice that is shown, if both have completed it."""
        if self.desk.shown is not None:
            self.desk.shown.show_difference(self.panel.differing())

    @slot
    def on_within_chosen(self) -> None:
        """Where effects may edit."""
        if self.desk.shown is not None and self.panel.editable:
            self.desk.shown.allow(self.within())

    @slot
    def on_look(self) -> None:
        """Fill, outline and opacity."""
        if self.desk.shown is not None:
            fill, outline = self.ui.fillBox.isChecked(), self.ui.outlineBox.isChecked()
            self.desk.shown.look(fill, outline, float(self.ui.fillSlider.property("value")))

    def within(self) -> str:
        """The key of the tissue within which effects may edit, "" for the whole slice."""
        return chosen(self.ui.withinSelector)
