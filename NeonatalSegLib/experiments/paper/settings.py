"""What an experiment is made with: the training, who is held out, the budget, the transfer.

``Resources/Experiments/paper.json`` is the paper. Every other configuration says what it changes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from NeonatalSegLib.datasets.splits import (
    Aged,
    Member,
    Split,
    by_age,
    leave_out_folds,
    paper_split,
    representative_subset,
    transfer_split,
)
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.networks.network import PRESETS
from NeonatalSegLib.resources import resources_folder
from NeonatalSegLib.training.settings import TrainingSettings

# What an experiment says itself: who is held out, and that an epoch is a pass over the scans.
NOT_SETTINGS = ("validation", "test", "steps_per_epoch", "validate_every", "phantoms", "in_turn", "start")


@dataclass(frozen=True)
class SplitDesign:
    """Who trains, validates and tests (``datasets.splits``).

    Attributes:
        train: scans to train on; with it all runs share one split (``paper_split``) and differ in their seed. None:
            every run keeps other newborns out (``leave_out_folds``) and trains on all the rest.
        more: training scans beside those, for the sparse conditions of the budget; 0 where ``train`` is None.
        validation, test: scans, or newborns where ``train`` is None.
        seed: of the split.
    """

    train: int | None = None
    more: int = 0
    validation: int = 1
    test: int = 3
    seed: int = 0

    def sides(self, subjects: Sequence[Aged], run: int) -> Split:
        """Sides "train", "more", "validation" and "test" of one run; "more" has ages like "train".

        Raises:
            NeonatalSegError: fewer scans or newborns than asked for (both numbers are told), or one without an age.
        """
        if self.train is None:
            folds = leave_out_folds(subjects, self.test, self.validation, seed=self.seed)
            return Split({**folds[run % len(folds)].sides, "more": ()})
        training = self.train + self.more
        split = paper_split(subjects, train=training, validation=self.validation, test=self.test, seed=self.seed)
        train, more = _parted(split.sides["train"], self.train, self.seed)
        return Split({**split.sides, "train": train, "more": more})


@dataclass(frozen=True)
class BudgetDesign:
    """The label budget (paper, section 2 and Table 3).

    Attributes:
        percent: of the slices of a scan that are labelled in a sparse condition.
        scans: fully labelled ones of the base line.
        times: the sparse conditions have so many times more scans.
        full_epochs: of the base line with equal labelled slices (the paper: 20 against 60), a schedule of its own; the
            sparse conditions have those of ``training``.
        selection: "random" slices along the axis, as in the paper's runs, or "equidistant".
        equidistant: axes that are trained once more with equidistant slices, where ``selection`` is "random".
    """

    percent: float = 33.0
    scans: int = 3
    times: int = 3
    full_epochs: int = 20
    selection: str = "random"
    equidistant: tuple[str, ...] = ()


@dataclass(frozen=True)
class TransferDesign:
    """From older to younger newborns (paper, section 2).

    Attributes:
        source: scans of the source (the oldest) and ``target_test`` test scans (of the youngest), both or neither.
            None: thresholds of age part source and target, and every run trains on other newborns.
        source_min_weeks, target_max_weeks: these thresholds.
        target_train: target scans (newborns where ``source`` is None) to train on; the other newborns are tested.
        source_test: source scans (newborns where ``source`` is None) that are tested and not trained on: what a
            strategy loses there. Beside ``source`` they are those next in age.
        source_epochs: of the source model, at the learning rate of ``training``.
        epochs, scratch_epochs: of fine-tuning, and of a new model; both at ``learning_rate``.
    """

    source: int | None = None
    target_test: int | None = None
    source_min_weeks: float = 41.0
    target_max_weeks: float = 40.0
    target_train: int = 2
    source_test: int = 2
    source_epochs: int = 20
    epochs: int = 20
    scratch_epochs: int = 40
    learning_rate: float = 1e-3

    def sides(self, subjects: Sequence[Aged], run: int, seed: int) -> Split:
        """Sides "source", "source-test", "target-train" and "target-test" of one run.

        Raises:
            NeonatalSegError: as ``SplitDesign.sides``, or nobody above or below the thresholds of age.
        """
        if self.source is not None and self.target_test is not None:
            split = transfer_split(
                subjects,
                source=self.source,
                source_test=self.source_test,
                target_train=self.target_train,
                target_test=self.target_test,
                seed=seed,
            )
            return Split({"source-test": (), **split.sides})
        ages = by_age(subjects, self.source_min_weeks, self.target_max_weeks).sides
        source_folds = leave_out_folds(ages["source"], self.source_test, 0, seed=seed)
        # The other way round than the word says: each fold's few newborns are trained on, all others tested.
        target_folds = leave_out_folds(ages["target"], self.target_train, 0, seed=seed)
        of_source, of_target = source_folds[run % len(source_folds)], target_folds[run % len(target_folds)]
        return Split(
            {
                "source": of_source.sides["train"],
                "source-test": of_source.sides["test"],
                "target-train": of_target.sides["test"],
                "target-test": of_target.sides["train"],
            }
        )


@dataclass(frozen=True)
class ExperimentSettings:
    """All of it.

    Attributes:
        training: its ``NOT_SETTINGS`` are the experiments' own; an epoch is a pass over the scans.
        loader_workers: processes that draw patches, for each run.
        splits: from files, instead of drawing them: run i takes the i-th, and the first again after the last.
        notes: sentences about the data and the size that stand beside the tables, by experiment; "all": beside all.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    split: SplitDesign = SplitDesign()
    budget: BudgetDesign = BudgetDesign()
    transfer: TransferDesign = TransferDesign()
    loader_workers: int = 0
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    splits: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        if (self.transfer.source is None) != (self.transfer.target_test is None):
            raise NeonatalSegError("The transfer's source and target_test go together: give both or neither.")
        if not 0 < self.budget.percent <= 90:
            raise NeonatalSegError(f"A budget of {self.budget.percent:g} % is not above 0 and at most 90 %.")
        if self.budget.selection not in ("random", "equidistant"):
            raise NeonatalSegError(f"There is no selection {self.budget.selection!r}: choose random or equidistant.")
        if self.split.more and self.split.train is None:
            raise NeonatalSegError("The split's 'more' means nothing without 'train': all the rest trains already.")

    def sides(self, subjects: Sequence[Aged], run: int) -> Split:
        """Sides "train", "more", "validation" and "test" of one run.

        Raises:
            NeonatalSegError: as ``SplitDesign.sides``, or a given split lacks a side or names a scan that is not there.
        """
        if self.splits:
            split = self.splits[run % len(self.splits)]
            return split.taken(("train", "validation", "test"), ("more",), subjects)
        return self.split.sides(subjects, run)

    def transfer_sides(self, subjects: Sequence[Aged], run: int) -> Split:
        """Sides "source", "source-test", "target-train" and "target-test" of one run.

        Raises:
            NeonatalSegError: as ``TransferDesign.sides``, or as :meth:`sides`.
        """
        if self.splits:
            split = self.splits[run % len(self.splits)]
            return split.taken(("source", "target-train", "target-test"), ("source-test",), subjects)
        return self.transfer.sides(subjects, run, self.split.seed)

    @classmethod
    def paper(cls) -> ExperimentSettings:
        """On the dHCP's third release, as the paper (section 2) and its published code say; for GPUs.

        The sparse conditions have three times the 114 scans of the base line: 342. With 28 validation and 100 test
        scans that takes 470 of the release's 709 usable scans. docs/paper.md says what the paper leaves open.
        """
        return cls.from_json({})

    def to_json(self) -> dict[str, Any]:
        """As a configuration file has it; given splits as {side: names}, and no entry where there are none."""
        training = {k: v for k, v in self.training.to_json().items() if k not in NOT_SETTINGS}
        drawn = {**asdict(replace(self, splits=())), "training": training}
        del drawn["splits"]
        given = [{side: list(split.names(side)) for side in split.sides} for split in self.splits]
        return {**drawn, "splits": given} if given else drawn

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExperimentSettings:
        """The paper's settings with those that ``data`` changes; what is unknown is refused.

        The inverse of :meth:`to_json`, but for what the experiments say themselves of the training, and for splits,
        which are given as tables.
        """
        if "splits" in data:
            raise NeonatalSegError("A configuration holds no splits: give tables of 'neonatalseg split' by --split.")
        base = read_object(resources_folder() / "Experiments" / "paper.json", "paper's configuration")
        data = _merged(base, data)
        training = dict(data.pop("training"))
        if own := [key for key in NOT_SETTINGS if key in training]:
            raise NeonatalSegError(
                f"The training's {own[0]!r} is no setting of an experiment, which says itself who is held out and "
                "makes an epoch a pass over its scans: leave it out."
            )
        known = TrainingSettings.from_json({**training, "validate_every": training["epochs"]})
        parts = {"split": SplitDesign, "budget": BudgetDesign, "transfer": TransferDesign}
        made: dict[str, Any] = {key: _make(kind, data[key]) for key, kind in parts.items()}
        return _make(cls, {**data, **made, "training": known})


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with single values changed, at any depth; a preset's name stands for its values."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if key == "network" and isinstance(value, str) and value in PRESETS:
            value = PRESETS[value].to_json()
        # Notes are of the data of one configuration: they are replaced, not mixed.
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key != "notes":
            value = _merged(old, value)
        merged[key] = value
    return merged


def _parted(members: Sequence[Member], first: int, seed: int) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
    """``first`` of the scans and the others, with like ages; sessions of a newborn stay together."""
    if len(members) == first:
        return tuple(members), ()
    parts = representative_subset(members, first / len(members), seed=seed).sides
    return parts["subset"], parts["rest"]


def epochs_of(training: TrainingSettings, epochs: int) -> TrainingSettings:
    """The training with a schedule of so many epochs of its own."""
    return replace(training, epochs=epochs, validate_every=epochs)


Design = TypeVar("Design")


def _make(kind: type[Design], data: Mapping[str, Any]) -> Design:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - known):
        raise NeonatalSegError(f"Unknown experiment setting {unknown[0]!r}: known are {', '.join(sorted(known))}.")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def read_experiment(path: str | Path) -> ExperimentSettings:
    """The paper's settings with the changes of a JSON file; NeonatalSegError where it is missing or not understood."""
    return ExperimentSettings.from_json(read_object(path, "experiment's configuration"))
