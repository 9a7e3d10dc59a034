"""What the Fine-tune section shows, as plain Python: states, texts, what is enabled and why not.

As in ``panel``: the controller calls ``FineTuneState``'s methods when something happens, and draws
``FineTuneState.view()`` when ``FineTuneState.changed`` is emitted. Nothing here knows Qt, MRML or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from NeonatalSegLib.models.scores import Scores, Version, dice_text
from NeonatalSegLib.networks.strategies import STRATEGIES
from NeonatalSegLib.panel.segment_state import STAGE_NAMES as SEGMENT_STAGES
from NeonatalSegLib.panel.segment_state import Control, Signal, duration

NO_STUDY = "Choose or start a study in the Annotate section: fine-tuning learns from its completed slices."
NO_SLICES = "No slice of this study is completed yet. Complete some in the Annotate section first."
RUNNING = "A fine-tuning is running. Stop it, or wait until it is done."
NO_VERSION = "There is no fine-tuned model yet. Fine-tune or import one first."
STAGE_NAMES = {
    **SEGMENT_STAGES,
    "read": "Reading the study",
    "prepare": "Preparing the slices",
    "measure before": "Scoring the current model",
    "train": "Training",
    "choose": "Choosing the mix of old and new weights",
    "done": "Finishing",
    "write": "Writing the new model",
}


class State(Enum):
    """Where the section is."""

    NO_STUDY = "no study"
    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"
    CANDIDATE = "candidate"
    ERROR = "error"


@dataclass(frozen=True)
class Strategy:
    """A transfer strategy; the counts are None until the compute process has told them for the current model."""

    name: str
    text: str
    trained: int | None = None
    total: int | None = None
    percent: float | None = None

    @property
    def label(self) -> str:
        """For the list: "shallow: 4.1 of 16.2 million parameters, 25 %"."""
        if self.trained is None or self.total is None or self.percent is None:
            return self.name
        return f"{self.name}: {_count(self.trained, self.total)} parameters, {self.percent:.3g} %"


@dataclass(frozen=True)
class View:
    """Everything the section draws. ``kind`` colours the message: "info", "warning" or "error"."""

    state: State
    study: str
    current: str
    strategies: tuple[tuple[str, str], ...]
    strategy: str
    strategy_text: str
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


@dataclass
class FineTuneState:
    """The state machine. Methods are what can happen; ``view`` is what is seen.

    Attributes:
        changed: emitted, without arguments, after every change.
        state: the state, ``State.NO_STUDY`` at the start.
        current: name of the current model, told by the model store.
        strategy: the chosen strategy.
        study: the folder name of the study, "" for none.
        version: name of the chosen version, "" for none.
    """

    changed: Signal = field(default_factory=Signal)
    state: State = State.NO_STUDY
    current: str = ""
    strategy: str = "full"
    version: str = ""
    strategies: Sequence[Strategy] = tuple(Strategy(name, text) for name, text in STRATEGIES.items())
    study: str = ""
    _done: int = 0
    _total: int = 0
    _refusal: str = ""
    _occupied: str = ""
    _previous: str = ""
    _store_warnings: Sequence[str] = ()
    _versions: Sequence[Version] = ()
    _unkept: Scores | None = None
    _held_out: int = 0
    _progress: Mapping[str, Any] = field(default_factory=dict)
    _message: str = ""
    _kind: str = "info"

    # What is there

    def set_study(self, name: str, done: int = 0, total: int = 0, refusal: str = "") -> None:
        """The study ("" for none), how many of its slices are completed, and why it cannot be read."""
        told = (name, done, total, refusal)
        if told == (self.study, self._done, self._total, self._refusal):
            return
        other = name != self.study
        self.study, self._done, self._total, self._refusal = told
        if not self.busy and (other or self.state in (State.NO_STUDY, State.READY)):
            self._rest()
        self.changed.emit()

    def set_store(
        self, current: str, versions: Sequence[Version], previous: str = "", warnings: Sequence[str] = ()
    ) -> None:
        """What the model store holds: the current model, the user's own, and which one was current before ("": none).

        ``warnings`` say why another one is current than the last that was accepted.
        """
        self.current, self._versions, self._previous = current, tuple(versions), previous
        self._store_warnings = tuple(warnings)
        if self._chosen is None:
            self.version = versions[-1].name if versions else ""
        self._rest_unless_told()
        self.changed.emit()

    def set_strategies(self, strategies: Sequence[Strategy]) -> None:
        """The compute process has counted what each strategy trains in the current model."""
        self.strategies = tuple(strategies)
        self.changed.emit()

    def set_occupied(self, why: str) -> None:
        """The compute process is busy with something else, or, with "", no more."""
        if why != self._occupied:
            self._occupied = why
            self.changed.emit()

    def choose_strategy(self, name: str) -> None:
        """The user's choice; a name that is not known, from a newer scene perhaps, is passed over."""
        if name != self.strategy and any(name == known.name for known in self.strategies):
            self.strategy = name
            self.changed.emit()

    def choose_version(self, name: str) -> None:
        """The version whose scores are shown, and that Accept, Discard and Export mean."""
        self.version, self._unkept = name, None
        self._rest_unless_told()
        self.changed.emit()

    # What happens

    def start(self) -> bool:
        """A fine-tuning starts; False, and nothing changes, where it cannot."""
        if self.why_not:
            return False
        self.state, self._progress = State.RUNNING, {"stage": "start"}
        self._message, self._kind, self._unkept = "", "info", None
        self.changed.emit()
        return True

    def progress(self, fields: Mapping[str, Any]) -> None:
        """How far it is: "stage", "fraction", "seconds_left", "step", "steps", "loss", "held_out_dsc", each optional.

        The held-out Dice is measured now and then only: the last one is kept in sight.
        """
        if not self.busy:
            return
        kept = {"held_out_dsc": self._progress.get("held_out_dsc")}
        told = {key: value for key, value in fields.items() if value is not None}
        self._progress = {**kept, **told}
        self.changed.emit()

    def stop(self) -> None:
        """The user asks to stop; the best so far is kept, and the result still comes."""
        if self.state is State.RUNNING:
            self.state = State.STOPPING
            self.changed.emit()

    def finished(self, result: Mapping[str, Any]) -> None:
        """The operation's result is there, and the store was read again."""
        name, scores = result.get("model"), Scores.of(result)
        self._held_out = int(result.get("held_out_slices") or 0)
        if name:
            self.state, self.version, self._unkept = State.CANDIDATE, str(name), None
            text = f"{name} is ready. {self._means(scores)} The current model is still {self.current}: accept or "
            text += "discard the new one."
        else:
            self.state, self._unkept = State.READY, scores
            text = f"Nothing was trained: this strategy leaves {self.current} as it is. {self._means(scores)}"
            if result.get("strategy") != "none":
                text = f"Stopped before the first step: nothing was trained, {self.current} is as it was."
        if result.get("stopped_early") and name:
            text = f"Stopped early; the best so far was taken. {text}"
        if result.get("seconds"):
            text += f" It took {duration(float(result['seconds']))} on {result.get('device') or 'this computer'}."
        warnings = [str(warning) for warning in result.get("warnings") or []]
        self._message, self._kind = "\n".join([*warnings, text]), "warning" if warnings else "info"
        self.changed.emit()

    def failed(self, message: str) -> None:
        """A button that was clicked has failed, with one sentence for the user; what runs goes on."""
        self._message, self._kind = message, "error"
        if not self.busy:
            self.state = State.ERROR
        self.changed.emit()

    def ended(self, message: str) -> None:
        """The fine-tuning itself has failed, with one sentence for the user."""
        self.state, self._message, self._kind = State.ERROR, message, "error"
        self.changed.emit()

    def cancelled(self, why: str) -> None:
        """It has stopped without a result; ``why`` is told."""
        self._rest()
        self._message = why
        self.changed.emit()

    def notice(self, message: str, kind: str = "info") -> None:
        """Something was done: a model was accepted, a file written."""
        if not self.busy:
            self._rest()
        self._message, self._kind = message, kind
        self.changed.emit()

    def scene_closed(self) -> None:
        """The scene is gone, and with it the study that was chosen; what was running was discarded."""
        was_busy = self.busy
        self.study, self._done, self._total, self._refusal = "", 0, 0, ""
        self._unkept, self._progress = None, {}
        self._rest()
        if was_busy:
            self._message = "The scene was closed, so the fine-tuning was stopped and discarded."
        self.changed.emit()

    # What is seen

    @property
    def busy(self) -> bool:
        """True while a fine-tuning runs or is being stopped."""
        return self.state in (State.RUNNING, State.STOPPING)

    @property
    def why_not(self) -> str:
        """Why Start cannot be clicked, "" where it can."""
        if self.busy:
            return RUNNING
        if not self.study:
            return NO_STUDY
        return self._refusal or ("" if self._done else NO_SLICES) or self._occupied

    def view(self) -> View:
        """What is to be drawn now."""
        message, kind = self._message, self._kind
        if not message and not self.busy:
            message, kind = self.why_not, "warning" if self._refusal else "info"
        known = next((s for s in self.strategies if s.name == self.strategy), None)
        idle = Control(not self.busy, RUNNING if self.busy else "")
        fraction = self._progress.get("fraction")
        return View(
            state=self.state,
            study=self._study_text(),
            current="\n".join([self.current, *self._store_warnings]),
            strategies=tuple((s.label, s.name) for s in self.strategies),
            strategy=self.strategy,
            strategy_text=f"Trains {known.text}." if known and known.name != "none" else "Trains nothing: only scores.",
            settings=idle,
            start=self._start_button(),
            progress=Control(visible=self.busy, text=self._progress_text()),
            percent=None if fraction is None or self.state is State.STOPPING else round(100 * fraction),
            message=message,
            kind=kind,
            versions=tuple((v.label + (", current" if v.name == self.current else ""), v.name) for v in self._versions),
            version=self.version,
            version_list=idle if self._versions else Control(False, NO_VERSION),
            rows=self._scores.rows,
            rows_text=self._rows_text(),
            accept=self._accept_button(),
            discard=self._discard_button(),
            roll_back=self._roll_back_button(),
            export=self._of_version(f"Write {self.version} into a file, for another computer."),
            import_=idle if self.busy else Control(True, "Read a model from such a file; it becomes a candidate."),
        )

    @property
    def _chosen(self) -> Version | None:
        return next((v for v in self._versions if v.name == self.version), None)

    @property
    def _scores(self) -> Scores:
        if self._unkept is not None:
            return self._unkept
        return self._chosen.scores if self._chosen is not None else Scores()

    def _rest(self) -> None:
        """Back to the state in which nothing runs."""
        self._message, self._kind = "", "info"
        if not self.study:
            self.state = State.NO_STUDY
        else:
            waits = self._chosen is not None and self._chosen.state == "candidate"
            self.state = State.CANDIDATE if waits else State.READY

    def _rest_unless_told(self) -> None:
        """As ``_rest`` where there is nothing that the user still has to read."""
        if not self.busy and not self._message:
            self._rest()

    def _study_text(self) -> str:
        return f"{self.study}: {self._done} of {self._total} slices completed" if self.study else "none chosen"

    def _start_button(self) -> Control:
        if self.state is State.RUNNING:
            return Control(True, "Stop training and keep the best so far.", text="Stop")
        if self.state is State.STOPPING:
            return Control(False, "The best so far is being scored and written.", text="Stopping ...")
        why = self.why_not
        return Control(not why, why or f"Train a new model from {self.current} on the completed slices.", text="Start")

    def _progress_text(self) -> str:
        told = self._progress
        stage = str(told.get("stage", ""))
        text = STAGE_NAMES.get(stage, stage.capitalize())
        if self.state is State.STOPPING:
            text = "Stopping; the best so far is kept"
        if told.get("step") is not None:
            text += f", step {told['step']} of {told['steps']}" if told.get("steps") else f", step {told['step']}"
        parts = [text]
        if (loss := told.get("loss")) is not None:
            parts.append(f"loss {loss:.3f}")
        if (dice := told.get("held_out_dsc")) is not None:
            parts.append(f"held-out DSC {dice:.3f}")
        if (left := told.get("seconds_left")) is not None and self.state is State.RUNNING:
            parts.append(f"{duration(left)} left")
        return "; ".join(parts)

    def _rows_text(self) -> str:
        if self._unkept is not None:
            return f"DSC of the last run on its {_slices(self._held_out)}, which were not trained on:"
        if self._chosen is None:
            return ""
        made = f"strategy {self._chosen.strategy}" if self._chosen.strategy else "made elsewhere"
        return f"DSC of {self._chosen.parent or 'its parent'} and {self.version} ({made}) on the held-out slices:"

    def _of_version(self, tool_tip: str) -> Control:
        if self.busy:
            return Control(False, RUNNING)
        return Control(True, tool_tip) if self._chosen is not None else Control(False, NO_VERSION)

    def _accept_button(self) -> Control:
        if not self.busy and self._chosen is not None and self.version == self.current:
            return Control(False, f"{self.version} is the current model already.")
        return self._of_version(f"Make {self.version} the current model in place of {self.current}.")

    def _discard_button(self) -> Control:
        if not self.busy and self._chosen is not None and self.version == self.current:
            return Control(False, f"{self.version} is the current model: roll back before discarding it.")
        return self._of_version(f"Remove {self.version} from this computer; {self.current} stays the current model.")

    def _roll_back_button(self) -> Control:
        if self.busy:
            return Control(False, RUNNING)
        if not self._previous:
            return Control(False, f"{self.current} is the first model: none was current before.")
        return Control(True, f"Go back to {self._previous}, which was current before.")

    def _means(self, scores: Scores) -> str:
        if scores.before_mean is None or scores.after_mean is None:
            return "No slice was held out, so it could not be scored."
        where = f"on {_slices(self._held_out)}"
        return f"Mean DSC {where}: {dice_text(scores.before_mean)} before, {dice_text(scores.after_mean)} after."


def _slices(number: int) -> str:
    return f"{number} held-out slice" + ("" if number == 1 else "s")


def _count(trained: int, total: int) -> str:
    if total >= 100_000:
        return f"{trained / 1e6:.2f} of {total / 1e6:.2f} million"
    return f"{trained} of {total}"
