"""What an experiment is made with, from one JSON file: the training, who is held out, the budget, the transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from NeonatalSegLib.augmentation.transforms import AugmentationSettings
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
from NeonatalSegLib.training.settings import TrainingSettings


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
        full_epochs: of the base line with equal labelled slices (the paper: 20 against 60); its second row and the
            sparse conditions have those of ``training``.
        selection: "equidistant" or "random" slices along the axis.
    """

    percent: float = 33.0
    scans: int = 3
    times: int = 3
    full_epochs: int = 20
    selection: str = "equidistant"


@dataclass(frozen=True)
class TransferDesign:
    """From older to younger newborns (paper, section 2).

    Attributes:
        source: scans of the source (the oldest) and ``target_test`` test scans (of the youngest), both or neither.
            None: thresholds of age part source and target, and every run trains on other newborns.
        source_min_weeks, target_max_weeks: these thresholds.
        target_train: target scans (newborns where ``source`` is None) to train on; the other newborns are tested.
        source_test: source scans (newborns where ``source`` is None) that are tested and not trained on, beside
            ``source``: what a strategy loses there.
        epochs, learning_rate: of fine-tuning; a model from scratch trains as ``training`` says.
    """

    source: int | None = None
    target_test: int | None = None
    source_min_weeks: float = 41.0
    target_max_weeks: float = 40.0
    target_train: int = 2
    source_test: int = 2
    epochs: int = 20
    learning_rate: float = 1e-3

    def sides(self, subjects: Sequence[Aged], run: int, seed: int) -> Split:
        """Sides "source", "source-test", "target-train" and "target-test" of one run.

        Raises:
            NeonatalSegError: as ``SplitDesign.sides``, or nobody above or below the thresholds of age.
        """
        if self.source is not None and self.target_test is not None:
            oldest = self.source + self.source_test
            split = transfer_split(
                subjects, source=oldest, target_train=self.target_train, target_test=self.target_test, seed=seed
            )
            source, tested = _parted(split.sides["source"], self.source, seed)
            return Split({**split.sides, "source": source, "source-test": tested})
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

        An epoch is 114 patches in every condition. The sparse conditions have three times the 114 scans of the base
        line: 342, where the published code has four fifths of three fifths of 709. With 28 validation and 100 test
        scans that takes 470 of the release's 709 usable scans. The 25 source scans that are held out of the transfer
        are ours, the next oldest beside the 100: the paper does not measure what is lost on the source.
        """
        training = TrainingSettings(
            network=PRESETS["paper-big"],
            epochs=60,
            steps_per_epoch=57,
            batch_size=2,
            validate_every=60,
            augmentation=AugmentationSettings.paper(),
        )
        return cls(
            training,
            SplitDesign(train=114, more=228, validation=28, test=100),
            BudgetDesign(scans=114),
            TransferDesign(source=100, source_test=25, target_train=40, target_test=80),
            loader_workers=4,
        )

    def to_json(self) -> dict[str, Any]:
        """As a configuration file has it; given splits as {side: names}, and no entry where there are none."""
        drawn = {**asdict(replace(self, splits=())), "training": self.training.to_json()}
        del drawn["splits"]
        given = [{side: list(split.names(side)) for side in split.sides} for split in self.splits]
        return {**drawn, "splits": given} if given else drawn

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExperimentSettings:
        """The inverse of :meth:`to_json`; what is left out has its default, what is unknown is refused.

        Splits are given as tables (``datasets.split_files.read_split``), not in a configuration.
        """
        data = dict(data)
        if "splits" in data:
            raise NeonatalSegError("A configuration holds no splits: give tables of 'neonatalseg split' by --split.")
        return _make(
            cls,
            {
                **data,
                "training": TrainingSettings.from_json(data.get("training", {})),
                "split": _make(SplitDesign, data.get("split", {})),
                "budget": _make(BudgetDesign, data.get("budget", {})),
                "transfer": _make(TransferDesign, data.get("transfer", {})),
            },
        )


def _parted(members: Sequence[Member], first: int, seed: int) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
    """``first`` of the scans and the others, with like ages; sessions of a newborn stay together."""
    if len(members) == first:
        return tuple(members), ()
    parts = representative_subset(members, first / len(members), seed=seed).sides
    return parts["subset"], parts["rest"]


Design = TypeVar("Design")


def _make(kind: type[Design], data: Mapping[str, Any]) -> Design:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - known):
        raise NeonatalSegError(f"Unknown experiment setting {unknown[0]!r}: known are {', '.join(sorted(known))}.")
    return kind(**data)


def read_experiment(path: str | Path) -> ExperimentSettings:
    """Settings from a JSON file; NeonatalSegError where it is missing or not understood."""
    return ExperimentSettings.from_json(read_object(path, "experiment's configuration"))
