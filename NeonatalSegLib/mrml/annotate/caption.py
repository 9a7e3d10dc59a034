"""A line of text in the slice view itself: which slice this is and what is painted, where the eye is."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

SIZE_PT = 14


class SliceCaption:
    """Text at the top of one slice view; without views (no main window) nothing happens."""

    def __init__(self) -> None:
        self.text = ""
        self._actor: Any = None
        self._view: Any = None

    def show(self, name: str, text: str) -> None:
        """Write ``text`` into the slice view with the layout name ``name`` ("Red"); "" takes it away."""
        manager = slicer.app.layoutManager()
        widget = manager.sliceWidget(name) if manager is not None and text else None
        view = widget.sliceView() if widget is not None else None
        if view is not self._view:
            self.hide()
        if view is None or (view is self._view and text == self.text):
            return
        if self._actor is None:
            self._actor = _text_actor()
            self._view = view
            view.renderWindow().GetRenderers().GetFirstRenderer().AddViewProp(self._actor)
        self.text = text
        self._actor.SetInput(text)
        view.scheduleRender()

    def hide(self) -> None:
        """Take it out of the view."""
        view, self._view = self._view, None
        if view is not None:
            view.renderWindow().GetRenderers().GetFirstRenderer().RemoveViewProp(self._actor)
            view.scheduleRender()
        self._actor, self.text = None, ""


def _text_actor() -> Any:
    actor = vtk.vtkTextActor()
    look = actor.GetTextProperty()
    look.SetFontSize(SIZE_PT)
    look.SetColor(1.0, 0.9, 0.4)
    look.SetShadow(True)
    look.SetJustificationToCentered()
    look.SetVerticalJustificationToTop()
    actor.GetPositionCoordinate().SetCoordinateSystemToNormalizedViewport()
    actor.SetPosition(0.5, 0.97)
    return actor
