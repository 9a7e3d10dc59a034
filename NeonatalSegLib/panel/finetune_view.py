"""What the Fine-tune section shows: texts, what is enabled and why not, from the state alone."""

from __future__ import annotations

from dataclasses import dataclass

from NeonatalSegLib.models.promises import PROMISES
from NeonatalSegLib.panel import controls
from NeonatalSegLib.panel.controls import Control, duration
from NeonatalSegLib.panel.finetune_state import NO_VERSION, RUNNING, FineTuneState, State, slices_text

STAGE_NAMES = {
    **controls.STAGE_NAMES,
    "read": "Reading the study",
    "prepare": "Preparing the slices",
    "measure before": "Scoring the current model",
    "train": "Training",
    "choose": "Choosing the mix of old and new weights",
    "done": "Finishing",
    "write": "Writing the new model",
}


@dataclass(frozen=True)
class View:
    """Everything the section draws. ``kind`` colours the message: "info", "warning" or "error"."""

    state: State
    study: str
    current: str
    strategies: tuple[tuple[str, str], ...]
    strategy: str
    strategy_text: str
    keeps: tuple[tuple[str, str], ...]
    keep: str
    keep_text: str
    settings: Control
    start: Control
    progress: Control
    percent: int | None
    message: str
    kind: str
    versions: tuple[tuple[str, str], ...]
    version: str
    version_list: Control
    rows: tuple[tuple[str, str, str, str], ...]
    rows_text: str
    accept: Control
    discard: Control
    roll_back: Control
    export: Control
    import_: Control


def view_of(state: FineTuneState) -> View:
    """What is to be drawn now."""
    message, kind = state.message, state.kind
    if not message and not state.busy:
        message, kind = state.why_not, "warning" if state.refusal else "info"
    known = next((s for s in state.strategies if s.name == state.strategy), None)
    idle = Control(not state.busy, RUNNING if state.busy else "")
    fraction = state.latest.get("fraction")
    return View(
        state=state.state,
        study=_study_text(state),
        current="\n".join([state.current, *state.store_warnings]),
        strategies=tuple((s.label, s.name) for s in state.strategies),
        strategy=state.strategy,
        strategy_text=known.what if known else "",
        keeps=tuple((promise.label, name) for name, promise in PROMISES.items()),
        keep=state.keep,
        keep_text=PROMISES[state.keep].text,
        settings=idle,
        start=_start_button(state),
        progress=Control(visible=state.busy, text=_progress_text(state)),
        percent=None if fraction is None else round(100 * fraction),
        message=message,
        kind=kind,
        versions=tuple((v.label + (", current" if v.name == state.current else ""), v.name) for v in state.versions),
        version=state.version,
        version_list=idle if state.versions else Control(False, NO_VERSION),
        rows=state.scores.rows,
        rows_text=_rows_text(state),
        accept=_accept_button(state),
        discard=_discard_button(state),
        roll_back=_roll_back_button(state),
        export=_of_version(state, f"Write {state.version} into a file, for another computer."),
        import_=idle if state.busy else Control(True, "Read a model from such a file; it becomes a candidate."),
    )


def _study_text(state: FineTuneState) -> str:
    if not state.study:
        return "none chosen"
    text = f"{state.study}: {state.completed} of {state.planned} slices completed"
    return f"{text}, and {state.earlier} of earlier rounds" if state.earlier else text


def _start_button(state: FineTuneState) -> Control:
    if state.state is State.RUNNING:
        return Control(True, "Stop training and keep the best so far.", text="Stop")
    if state.state is State.STOPPING:
        return Control(False, "The best so far is being scored and written.", text="Stopping ...")
    why = state.why_not
    return Control(not why, why or f"Train a new model from {state.current} on the completed slices.", text="Start")


def _progress_text(state: FineTuneState) -> str:
    told = state.latest
    stage = str(told.get("stage", ""))
    text = STAGE_NAMES.get(stage, stage.capitalize())
    if state.state is State.STOPPING:
        return _stopping_text(state)
    if told.get("step") is not None:
        text += f", step {told['step']} of {told['steps']}" if told.get("steps") else f", step {told['step']}"
    parts = [text]
    if (loss := told.get("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    if (dice := told.get("held_out_dsc")) is not None:
        parts.append(f"held-out DSC {dice:.3f}")
    if (left := told.get("seconds_left")) is not None and state.state is State.RUNNING:
        parts.append(f"{duration(left)} left")
    return "; ".join(parts)


def _stopping_text(state: FineTuneState) -> str:
    """What Stop waits for: said at once, before the compute process has come to it."""
    told = state.latest
    text = "Stopping: keeping the best so far"
    if told.get("held_out_slices"):
        text += f", scoring it on {slices_text(int(told['held_out_slices']))}"
    if told.get("mix") and told.get("mixes"):
        text += f", mix {told['mix']} of {told['mixes']}"
    seconds = told.get("choosing_seconds")
    return text + (f", about {duration(float(seconds))}" if seconds else "")


def _rows_text(state: FineTuneState) -> str:
    if state.unkept is not None:
        return f"DSC of the last run on its {slices_text(state.held_out_slices)}, which were not trained on:"
    if state.chosen_version is None:
        return ""
    made = f"strategy {state.chosen_version.strategy}" if state.chosen_version.strategy else "made elsewhere"
    return f"DSC of {state.chosen_version.parent or 'its parent'} and {state.version} ({made}) on the held-out slices:"


def _of_version(state: FineTuneState, tool_tip: str) -> Control:
    if state.busy:
        return Control(False, RUNNING)
    return Control(True, tool_tip) if state.chosen_version is not None else Control(False, NO_VERSION)


def _accept_button(state: FineTuneState) -> Control:
    if not state.busy and state.chosen_version is not None and state.version == state.current:
        return Control(False, f"{state.version} is the current model already.")
    if not state.busy and state.chosen_version is not None and state.chosen_version.keep == "scanner":
        if not state.study:
            return Control(False, f"{state.version} was made for the scans of one study: choose that study first.")
        return Control(True, f"Let the study {state.study} name {state.version}; {state.current} stays current.")
    return _of_version(state, f"Make {state.version} the current model in place of {state.current}.")


def _discard_button(state: FineTuneState) -> Control:
    if not state.busy and state.chosen_version is not None and state.version == state.current:
        return Control(False, f"{state.version} is the current model: roll back before discarding it.")
    return _of_version(state, f"Remove {state.version} from this computer; {state.current} stays the current model.")


def _roll_back_button(state: FineTuneState) -> Control:
    if state.busy:
        return Control(False, RUNNING)
    if not state.previous:
        return Control(False, f"{state.current} is the first model: none was current before.")
    return Control(True, f"Go back to {state.previous}, which was current before.")
