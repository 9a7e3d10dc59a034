"""What an experiment is made with: settings as files, and who trains and who is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_experiments import SETTINGS
from test_splits import ALBERTS, ages_of, assert_newborns_together, distance, release, scan, significant

from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.datasets.splits import leave_out_folds
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.designs import EXPERIMENTS
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings, SplitDesign, TransferDesign, read_experiment


def test_settings_travel_as_json_and_shipped_ones_are_understood(tmp_path: Path) -> None:
    assert ExperimentSettings.from_json(json.loads(json.dumps(SETTINGS.to_json()))) == SETTINGS
    paper = ExperimentSettings.paper()
    assert ExperimentSettings.from_json(json.loads(json.dumps(paper.to_json()))) == paper
    for file in (ROOT / "Resources" / "Experiments").glob("*.json"):
        assert read_experiment(file).training.network.spacing_mm > 0
    for text, words in (
        ('{"budgets": {}}', "Unknown experiment setting 'budgets'"),
        ('{"budget": {"percentage": 3}}', "Unknown experiment setting 'percentage'"),
        ('{"budget": {"percent": 95}}', "not above 0 and at most 90"),
        ('{"transfer": {"source": 3}}', "go together"),
        ('{"split": {"more": 3}}', "means nothing without 'train'"),
        ("{", "could not be read"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(NeonatalSegError, match=words):
            read_experiment(tmp_path / "x.json")


def test_the_papers_experiments_fit_into_the_release() -> None:
    subjects = release(0, singles=527)
    assert len(subjects) == 709
    paper = ExperimentSettings.paper()
    split = paper.split.sides(subjects, run=0)
    counts = {side: len(members) for side, members in split.sides.items()}
    assert counts == {"train": 114, "more": 228, "validation": 28, "test": 100}
    assert paper.budget.scans == 114 and paper.budget.scans * paper.budget.times == 114 + 228
    assert_newborns_together(split)
    population = ages_of(subjects)
    for side in ("train", "more"):
        assert distance(ages_of(split.sides[side]), population) < significant(counts[side], 709) / 2
    transfer = paper.transfer.sides(subjects, run=0, seed=0)
    counts = {side: len(members) for side, members in transfer.sides.items()}
    assert counts == {"source": 100, "source-test": 25, "target-train": 40, "target-test": 80}
    assert_newborns_together(transfer)
    young = max(ages_of(transfer.sides["target-train"])[-1], ages_of(transfer.sides["target-test"])[-1])
    assert min(ages_of(transfer.sides[side])[0] for side in ("source", "source-test")) > young


class NotRunError(Exception):
    """Raised instead of running."""


def jobs_of(name: str, settings: ExperimentSettings, subjects: list[Subject]) -> dict[str, dict[str, Any]]:
    """The runs that an experiment asks for first."""
    jobs: dict[str, dict[str, Any]] = {}

    def execute(asked: Any) -> Any:
        jobs.update(asked)
        raise NotRunError

    with pytest.raises(NotRunError):
        EXPERIMENTS[name](subjects, settings, 1, execute)
    return jobs


def test_the_papers_budget_and_transfer_have_the_papers_numbers() -> None:
    ages = np.random.default_rng(0).normal(39.5, 3, 709).clip(26.7, 45.1)
    subjects = [Subject(f"sub-{i:03d}_ses-1", None, None, None, float(age)) for i, age in enumerate(ages)]
    jobs = jobs_of("budget", ExperimentSettings.paper(), subjects)
    trained = {key.removesuffix("-run0"): set(job["train"]) for key, job in jobs.items()}
    assert {len(trained[f"budget-{axis}"]) for axis in ("random", "sagittal", "coronal", "axial")} == {342}
    assert len(trained["full"]) == 114
    assert trained["budget-full"] == trained["budget-full-iterations"] == trained["full"] < trained["budget-axial"]
    assert {(len(j["evaluate"]["validation"]), len(j["evaluate"]["test"])) for j in jobs.values()} == {(28, 100)}
    for job in jobs.values():
        assert not set(job["train"]) & {*job["evaluate"]["validation"], *job["evaluate"]["test"]}
    (source,) = jobs_of("transfer", ExperimentSettings.paper(), subjects).values()
    assert [len(source["train"]), *map(len, source["evaluate"].values())] == [100, 80, 25]


def test_designs_by_fold_train_on_all_the_rest() -> None:
    subjects = [scan(f"sub-ALBERT{i:02d}", age) for i, age in enumerate(ALBERTS)]
    split = SplitDesign(validation=1, test=3).sides(subjects, run=5)  # of four folds the second
    assert {side: len(m) for side, m in split.sides.items()} == {"train": 9, "validation": 1, "test": 3, "more": 0}
    assert split.sides["test"] == leave_out_folds(subjects, 3)[1].sides["test"]
    transfer = TransferDesign(target_max_weeks=39, target_train=1, source_test=2).sides(subjects, run=0, seed=0)
    counts = {side: len(members) for side, members in transfer.sides.items()}
    assert counts == {"source": 5, "source-test": 2, "target-train": 1, "target-test": 1}
