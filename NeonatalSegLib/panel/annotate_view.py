"""What the Annotate section shows: the list of slices, texts, what is enabled and why not, from the state alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from NeonatalSegLib.annotation.session import SliceItem, StudyProgress
from NeonatalSegLib.panel.annotate_state import NO_STUDY, AnnotateState
from NeonatalSegLib.panel.controls import STAGE_NAMES, Control, duration
from NeonatalSegLib.tissues import TISSUES

KEYS = {
    "done": "D",
    "next": "N",
    "previous": "P",
    "skip": "Shift+S",
    "flag": "Shift+F",
    "reopen": "Shift+R",
    "fill": "O",
    "outline": "L",
    "opacity": "Shift+O",
    "undo": "Z",
    "redo": "Y",
    "erase": "Space",
    "smaller": ",",
    "larger": ".",
    "errs": "E",
    **{f"tissue {t.index}": str(t.index) for t in TISSUES if t.index > 0},
}
EDITING = ("undo", "redo", "erase", "smaller", "larger", "errs", *(f"tissue {t.index}" for t in TISSUES if t.index > 0))
COMPLETED = "done"  # as the ledger of a study has it
STATE_TEXTS = {COMPLETED: "completed"}
DIRECTIONS = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}  # of a slice's position below and above 0
MAKING = "A study is being made. Cancel it, or wait until it is ready."
NO_SLICE = "Choose a slice in the list first."
PREFILL_TEXTS = {"model": "the model's labels", "neighbour": "the nearest completed slice", "empty": "nothing"}


@dataclass(frozen=True)
class Row:
    """One slice in the list."""

    key: str
    state: str
    scan: str
    axis: str
    position: str
    tool_tip: str


@dataclass(frozen=True)
class AnnotateView:
    """Everything the widget draws. ``kind`` colours the message: "info", "warning" or "error"."""

    study: str
    setup: Control
    make: Control
    open: Control
    close: Control
    next_round: Control
    resume: Control
    recent: tuple[tuple[str, str], ...]
    recent_chosen: str
    raters: tuple[tuple[str, str], ...]
    rater_chosen: str
    agreement: str
    making: Control
    making_percent: int | None
    rows: tuple[Row, ...]
    current: str
    percent: int
    progress: str
    buttons: dict[str, Control]
    edit: Control
    message: str
    kind: str


def view_of(state: AnnotateState) -> AnnotateView:
    """What is to be drawn now."""
    project = state.project
    progress = project.progress() if project is not None else None
    return AnnotateView(
        study=f"{project.study.folder.name}, rater {project.rater}" if project is not None else NO_STUDY,
        setup=Control(not state.making, MAKING if state.making else "", visible=project is None),
        make=_make_button(state),
        open=Control(not state.making, MAKING if state.making else "Open a study folder.", visible=project is None),
        close=Control(tool_tip="Close the study; completed slices are on disk.", visible=project is not None),
        next_round=_next_round_button(state, progress),
        resume=_resume_button(state),
        recent=tuple(
            (Path(folder).name, folder) for folder in dict.fromkeys([state.remembered, *state.recent]) if folder
        ),
        recent_chosen=state.remembered,
        raters=_raters(state),
        rater_chosen=state.other_rater,
        agreement=state.agreement.text if state.agreement is not None else "",
        making=Control(visible=state.making, text=_making_text(state)),
        making_percent=None if state.fraction is None else round(100 * state.fraction),
        rows=tuple(_row(item) for item in project.items) if project is not None else (),
        current=state.key,
        percent=round(100 * progress.settled / progress.planned) if progress is not None and progress.planned else 0,
        progress=progress.text if progress is not None else "",
        buttons=_buttons(state),
        edit=Control(state.editable, "" if state.editable else _locked(state), visible=project is not None),
        message=state.message,
        kind=state.kind,
    )


def _recent(state: AnnotateState) -> list[str]:
    return [folder for folder in dict.fromkeys([state.remembered, *state.recent]) if folder]


def _raters(state: AnnotateState) -> tuple[tuple[str, str], ...]:
    others = [name for name in state.project.study.raters() if name != state.project.rater] if state.project else []
    return (("nobody", ""), *((name, name) for name in others)) if others else (("no other rater yet", ""),)


def caption_of(state: AnnotateState, tissue: str) -> str:
    """For the slice view: "sub-01, axial S 12.3 mm, 2 of 6", and below what is painted or why nothing can be."""
    item = state.item
    if state.project is None or item is None:
        return ""
    row, items = _row(item), state.project.items
    place = [one.slice.key for one in items].index(state.key) + 1
    first = f"{row.scan}, {row.axis} {row.position}, {place} of {len(items)}"
    return f"{first}\n{tissue}" if state.editable else f"{first}\n{row.state}: locked"


def _make_button(state: AnnotateState) -> Control:
    if state.making:
        return Control(True, "Stop; nothing is left behind.", text="Cancel")
    refusal = state.refusal
    return Control(
        not refusal, refusal or "Choose an empty folder; the slices are planned there.", text="Make study ..."
    )


def _next_round_button(state: AnnotateState, progress: StudyProgress | None) -> Control:
    what = (
        "Plan as many slices again where the model is unsure: fine-tune and accept first. Fine-tuning the new study "
        "learns the slices of this one as well."
    )
    ended = progress is not None and progress.done > 0 and progress.settled == progress.planned
    return Control(not state.occupied, state.occupied or what, visible=ended, text="Next round ...")


def _resume_button(state: AnnotateState) -> Control:
    name = Path(state.remembered).name if state.remembered else ""
    visible = state.project is None and bool(name)
    return Control(not state.making, f"Go on in {state.remembered}.", visible, "Resume")


def _making_text(state: AnnotateState) -> str:
    # The work on a scan is told by the scan's name.
    name = STAGE_NAMES.get(state.stage, state.stage)
    return name if state.seconds_left is None else f"{name}, {duration(state.seconds_left)} left"


def _locked(state: AnnotateState) -> str:
    item = state.item
    if item is None:
        return NO_SLICE
    return f"This slice is {STATE_TEXTS.get(item.state, item.state)}. Reopen it to change it ({KEYS['reopen']})."


def _buttons(state: AnnotateState) -> dict[str, Control]:
    item, editable = state.item, state.editable
    closed = item is not None and not editable
    why = _locked(state)
    return {
        "previous": _button("previous", bool(state.previous_key()), "The slice before this one.", "No slice before."),
        "next": _button("next", bool(state.next_key()), "The next slice that is left to do.", "Nothing else is left."),
        "done": _button("done", editable, "Complete this slice and go to the next one that is left to do.", why),
        "skip": _button("skip", editable, "Leave this slice out and go on.", why),
        "flag": _button("flag", editable, "Put this slice aside, with the note below, and go on.", why),
        "reopen": _button("reopen", closed, "Take this slice back to change it.", "This slice is open."),
    }


def _button(name: str, enabled: bool, what: str, why_not: str) -> Control:
    return Control(enabled, f"{what} Key: {KEYS[name]}" if enabled else why_not)


def _row(item: SliceItem) -> Row:
    planned = item.slice
    facts = [f"{planned.scan}: {planned.reason}"]
    if item.state == COMPLETED:
        facts.append(f"{duration(item.seconds)}, {item.changed_voxels} voxels changed")
    if item.note:
        facts.append(f"Note: {item.note}")
    side = DIRECTIONS[planned.axis][int(planned.position_mm >= 0)]
    position = f"{side} {abs(planned.position_mm):.1f} mm"
    return Row(
        planned.key, STATE_TEXTS.get(item.state, item.state), planned.scan, planned.axis, position, "\n".join(facts)
    )
