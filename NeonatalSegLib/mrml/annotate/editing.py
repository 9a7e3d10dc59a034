"""What the keys do that edit a slice: the tissue, the brush, paint or erase, undo, the next tissue that errs."""

from __future__ import annotations

from collections.abc import Callable

from NeonatalSegLib.mrml.annotate.slice_editor import BRUSH_STEP
from NeonatalSegLib.mrml.annotate.slice_workspace import SliceWorkspace
from NeonatalSegLib.panel.annotate_state import AnnotateState
from NeonatalSegLib.tissues import TISSUES


def editing_calls(panel: AnnotateState, desk: SliceWorkspace) -> dict[str, Callable[[], None]]:
    """By the names of ``annotate_view.EDITING`` what each key calls; without a slice to edit nothing happens."""
    editor = desk.editor

    def of(call: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            if desk.shown is not None and panel.editable:
                panel.clock.touch()
                call()

        return work

    def select(key: str) -> Callable[[], None]:
        return of(lambda: editor.select(key))

    def next_tissue() -> None:
        assert desk.shown is not None
        if found := panel.next_tissue(desk.shown.read(), editor.selected):
            editor.select(found)

    return {
        "undo": of(editor.undo),
        "redo": of(editor.redo),
        "erase": of(editor.toggle_erase),
        "smaller": of(lambda: editor.scale_brush(1 / BRUSH_STEP)),
        "larger": of(lambda: editor.scale_brush(BRUSH_STEP)),
        "errs": of(next_tissue),
        **{f"tissue {t.index}": select(t.key) for t in TISSUES if t.index > 0},
    }
