"""The Fine-tune section, as plain Python: its states and what can happen.

The controller calls ``FineTuneState``'s methods when something happens, and draws ``finetune_view.view_of(state)`` when
``FineTuneState.changed`` is emitted. Nothing here knows Qt, MRML or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from NeonatalSegLib.models.promises import PROMISES
from NeonatalSegLib.models.scores import Scores, dice_text
from NeonatalSegLib.models.versions import Version
from NeonatalSegLib.networks.strategies import STRATEGIES
from NeonatalSegLib.panel.controls import duration
from NeonatalSegLib.panel.signals import Signal

NO_STUDY = "Choose or start a study in the Annotate section: fine-tuning learns from its completed slices."
NO_SLICES = "No slice of this study is completed yet. Complete some in the Annotate section first."
RUNNING = "A fine-tuning is running. Stop it, or wait until it is done."
NOISE_ON_ONE_SLICE = 0.01
KEPT = ("held_out_dsc", "held_out_slices", "choosing_seconds")  # told now and then, and kept in sight
NO_VERSION = "There is no fine-tuned model yet. Fine-tune or import one first."


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
        """For the list, which has to fit a narrow panel: "shallow: 25 % trained"."""
        return self.name if self.percent is None else f"{self.name}: {self.percent:.3g} % trained"

    @property
    def what(self) -> str:
        """What it trains: "Trains everything: 4.1 of 16.2 million parameters."."""
        if self.name == "none":
            return "Trains nothing: only scores."
        if self.trained is None or self.total is None:
            return f"Trains {self.text}."
        return f"Trains {self.text}: {_count(self.trained, self.total)} parameters."


@dataclass
class FineTuneState:
    """The state machine. Methods are what can happen; ``view`` is what is seen.

    Attributes:
        changed: emitted, without arguments, after every change.
        state: the state, ``State.NO_STUDY`` at the start.
        current: name of the current model, told by the model store.
        strategy: the chosen strategy.
        keep: the chosen promise, one of ``PROMISES``.
        study: the folder name of the study, "" for none.
        version: name of the chosen version, "" for none.
    """

    changed: Signal = field(default_factory=Signal)
    state: State = State.NO_STUDY
    current: str = ""
    strategy: str = "full"
    keep: str = "everything"
    version: str = ""
    strategies: Sequence[Strategy] = tuple(Strategy(name, text) for name, text in STRATEGIES.items())
    study: str = ""
    completed: int = 0
    planned: int = 0
    earlier: int = 0
    refusal: str = ""
    occupied: str = ""
    previous: str = ""
    store_warnings: Sequence[str] = ()
    versions: Sequence[Version] = ()
    unkept: Scores | None = None
    held_out_slices: int = 0
    latest: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    kind: str = "info"

    # What is there

    def set_study(self, name: str, done: int = 0, total: int = 0, earlier: int = 0, refusal: str = "") -> None:
        """The study ("" for none), its completed slices, those of the rounds before it, and why it cannot be read."""
        told = (name, done, total, earlier, refusal)
        if told == (self.study, self.completed, self.planned, self.earlier, self.refusal):
            return
        other = name != self.study
        self.study, self.completed, self.planned, self.earlier, self.refusal = told
        if not self.busy and (other or self.state in (State.NO_STUDY, State.READY)):
            self._rest()
        self.changed.emit()

    def set_store(
        self, current: str, versions: Sequence[Version], previous: str = "", warnings: Sequence[str] = ()
    ) -> None:
        """What the model store holds: the current model, the user's own, and which one was current before ("": none).

        ``warnings`` say why another one is current than the last that was accepted.
        """
        self.current, self.versions, self.previous = current, tuple(versions), previous
        self.store_warnings = tuple(warnings)
        if self.chosen_version is None:
            self.version = versions[-1].name if versions else ""
        self._rest_unless_told()
        self.changed.emit()

    def set_strategies(self, strategies: Sequence[Strategy]) -> None:
        """The compute process has counted what each strategy trains in the current model."""
        self.strategies = tuple(strategies)
        self.changed.emit()

    def set_occupied(self, why: str) -> None:
        """The compute process is busy with something else, or, with "", no more."""
        if why != self.occupied:
            self.occupied = why
            self.changed.emit()

    def choose_strategy(self, name: str) -> None:
        """The user's choice; a name that is not known, from a newer scene perhaps, is passed over."""
        if name != self.strategy and any(name == known.name for known in self.strategies):
            self.strategy = name
            self.changed.emit()

    def choose_keep(self, name: str) -> None:
        """What the new model is to be good for; a name that is not known is passed over."""
        if name != self.keep and name in PROMISES:
            self.keep = name
            self.changed.emit()

    def choose_version(self, name: str) -> None:
        """The version whose scores are shown, and that Accept, Discard and Export mean."""
        self.version, self.unkept = name, None
        self._rest_unless_told()
        self.changed.emit()

    # What happens

    def start(self) -> bool:
        """A fine-tuning starts; False, and nothing changes, where it cannot."""
        if self.why_not:
            return False
        self.state, self.latest = State.RUNNING, {"stage": "start"}
        self.message, self.kind, self.unkept = "", "info", None
        self.changed.emit()
        return True

    def progress(self, fields: Mapping[str, Any]) -> None:
        """How far it is: "stage", "fraction", "seconds_left", "step", "steps", "loss", "held_out_dsc", each optional.

        The held-out Dice is measured now and then only: the last one is kept in sight.
        """
        if not self.busy:
            return
        kept = {key: self.latest.get(key) for key in KEPT}
        told = {key: value for key, value in fields.items() if value is not None}
        self.latest = {**kept, **told}
        self.changed.emit()

    def stop(self) -> None:
        """The user asks to stop; the best so far is kept, and the result still comes."""
        if self.state is State.RUNNING:
            self.state = State.STOPPING
            self.changed.emit()

    def finished(self, result: Mapping[str, Any]) -> None:
        """The operation's result is there, and the store was read again."""
        name, scores = result.get("model"), Scores.of(result)
        self.held_out_slices = int(result.get("held_out_slices") or 0)
        if name:
            self.state, self.version, self.unkept = State.CANDIDATE, str(name), None
            text = f"{name} is ready. {self._means(scores)} The current model is still {self.current}: accept or "
            text += "discard the new one."
            if self.chosen_version is not None and self.chosen_version.keep == "scanner":
                text += " It was made for scans like these: accepting lets the study name it, and changes nothing else."
        else:
            self.state, self.unkept = State.READY, scores
            text = f"Nothing was trained: this strategy leaves {self.current} as it is. {self._means(scores)}"
            if result.get("strategy") != "none":
                text = f"Stopped before the first step: nothing was trained, {self.current} is as it was."
        if result.get("stopped_early") and name:
            text = f"Stopped early; the best so far was taken. {text}"
        if result.get("seconds"):
            text += f" It took {duration(float(result['seconds']))} on {result.get('device') or 'this computer'}."
        warnings = [str(warning) for warning in result.get("warnings") or []]
        self.message, self.kind = "\n".join([*warnings, text]), "warning" if warnings else "info"
        self.changed.emit()

    def failed(self, message: str) -> None:
        """A button that was clicked has failed, with one sentence for the user; what runs goes on."""
        self.message, self.kind = message, "error"
        if not self.busy:
            self.state = State.ERROR
        self.changed.emit()

    def ended(self, message: str) -> None:
        """The fine-tuning itself has failed, with one sentence for the user."""
        self.state, self.message, self.kind = State.ERROR, message, "error"
        self.changed.emit()

    def cancelled(self, why: str) -> None:
        """It has stopped without a result; ``why`` is told."""
        self._rest()
        self.message = why
        self.changed.emit()

    def notice(self, message: str, kind: str = "info") -> None:
        """Something was done: a model was accepted, a file written."""
        if not self.busy:
            self._rest()
        self.message, self.kind = message, kind
        self.changed.emit()

    def scene_closed(self) -> None:
        """The scene is gone, and with it the study that was chosen; what was running was discarded."""
        was_busy = self.busy
        self.study, self.completed, self.planned, self.earlier, self.refusal = "", 0, 0, 0, ""
        self.unkept, self.latest = None, {}
        self._rest()
        if was_busy:
            self.message = "The scene was closed, so the fine-tuning was stopped and discarded."
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
        return self.refusal or ("" if self.completed else NO_SLICES) or self.occupied

    @property
    def chosen_version(self) -> Version | None:
        return next((v for v in self.versions if v.name == self.version), None)

    @property
    def scores(self) -> Scores:
        if self.unkept is not None:
            return self.unkept
        return self.chosen_version.scores if self.chosen_version is not None else Scores()

    def _rest(self) -> None:
        """Back to the state in which nothing runs."""
        self.message, self.kind = "", "info"
        if not self.study:
            self.state = State.NO_STUDY
        else:
            waits = self.chosen_version is not None and self.chosen_version.state == "candidate"
            self.state = State.CANDIDATE if waits else State.READY

    def _rest_unless_told(self) -> None:
        """As ``_rest`` where there is nothing that the user still has to read."""
        if not self.busy and not self.message:
            self._rest()

    def _means(self, scores: Scores) -> str:
        if scores.before_mean is None or scores.after_mean is None:
            return "No slice was held out, so it could not be scored."
        where = f"on {slices_text(self.held_out_slices)}"
        text = f"Mean DSC {where}: {dice_text(scores.before_mean)} before, {dice_text(scores.after_mean)} after."
        if within_noise(scores.before_mean, scores.after_mean, self.held_out_slices):
            text += " So small a difference is within noise."
        return text


def within_noise(before: float, after: float, slices: int) -> bool:
    """True where a difference of mean DSC says nothing on so few held-out slices.

    A rule of thumb, not a test of significance: ``NOISE_ON_ONE_SLICE`` on one slice, on several by the root of their
    number less.
    """
    return abs(after - before) < NOISE_ON_ONE_SLICE / max(1, slices) ** 0.5


def slices_text(number: int) -> str:
    return f"{number} held-out slice" + ("" if number == 1 else "s")


def _count(trained: int, total: int) -> str:
    if total >= 100_000:
        return f"{trained / 1e6:.2f} of {total / 1e6:.2f} million"
    return f"{trained} of {total}"
