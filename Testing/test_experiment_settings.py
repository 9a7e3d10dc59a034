"""What an experiment is made with: settings as files, and who trains and who is held out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from populations import ALBERTS, ages_of, assert_newborns_together, distance, release, scan, significant
from small_experiments import SETTINGS

from NeonatalSegLib.augmentation.transforms import AugmentationSettings
from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.datasets.splits import leave_out_folds
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.designs import JOBS, Study, names_in, without
from NeonatalSegLib.experiments.paper.preflight import hours
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings, SplitDesign, TransferDesign, read_experiment
from NeonatalSegLib.networks.network import PRESETS
from NeonatalSegLib.training.settings import read_settings


def test_settings_travel_as_json_and_shipped_ones_are_understood(tmp_path: Path) -> None:
    for settings in (SETTINGS, ExperimentSettings.paper()):
        text = json.loads(json.dumps(settings.to_json()))
        assert ExperimentSettings.from_json(text) == settings
    for file in (ROOT / "Resources" / "Experiments").glob("*.json"):
        assert read_experiment(file).training.network.spacing_mm > 0
    for text, words in (
        ('{"budgets": {}}', "Unknown experiment setting 'budgets'"),
        ('{"budget": {"percentage": 3}}', "Unknown experiment setting 'percentage'"),
        ('{"budget": {"percent": 95}}', "not above 0 and at most 90"),
        ('{"transfer": {"source": null}}', "go together"),
        ('{"split": {"train": null}}', "means nothing without 'train'"),
        ('{"budget": {"selection": "every third"}}', "no selection 'every third'"),
        ('{"training": {"steps_per_epoch": 57}}', "'steps_per_epoch' is no setting of an experiment"),
        ('{"training": {"head_weights": "half"}}', "no head_weights 'half'"),
        ("{", "could not be read"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(NeonatalSegError, match=words):
            read_experiment(tmp_path / "x.json")


def test_the_papers_file_is_the_paper_and_says_everything() -> None:
    """As the text and the published code say; a value that the file left out would be this project's own."""
    text = json.loads((ROOT / "Resources" / "Experiments" / "paper.json").read_text(encoding="utf-8"))
    whole = ExperimentSettings.paper().to_json()

    def left_out(stated: dict[str, Any], known: dict[str, Any], where: str) -> list[str]:
        missing = [f"{where}{key}" for key in known if key not in stated]
        inner = [key for key in known if isinstance(known[key], dict) and isinstance(stated.get(key), dict)]
        return missing + [name for key in inner for name in left_out(stated[key], known[key], f"{where}{key}.")]

    beyond = {"training.randomisation", "training.randomisation_end", "training.phantom_share"}
    beyond |= {"training.template_share", "transfer.source_min_weeks", "transfer.target_max_weeks"}
    new = ("whole_brain", "done_epochs", "warmup_steps", "ema", "pool", "pool_uses", "compiled")
    beyond |= {f"training.{name}" for name in new}
    assert set(left_out(text, whole, "")) <= beyond
    paper = ExperimentSettings.paper().training
    assert paper.network == PRESETS["paper-big"] and paper.augmentation == AugmentationSettings.paper()
    assert (paper.optimizer, paper.learning_rate, paper.batch_size, paper.epochs) == ("sgd", 1e-2, 2, 60)
    assert paper.head_weights == "sum"


def test_a_configuration_changes_single_values_of_the_paper(tmp_path: Path) -> None:
    """Nothing else of the paper's set-up goes: not the network, not the modalities, not the split."""
    file = tmp_path / "mine.json"

    def read(text: str) -> ExperimentSettings:
        file.write_text(text)
        return read_experiment(file)

    paper = ExperimentSettings.paper()
    assert read('{"loader_workers": 2}') == dataclasses.replace(paper, loader_workers=2)
    slower = dataclasses.replace(paper.training, learning_rate=1e-3)
    assert read('{"training": {"learning_rate": 1e-3}}') == dataclasses.replace(paper, training=slower)
    finer = read('{"training": {"network": {"spacing_mm": 0.6}, "augmentation": {"elastic": 0.5}}}').training
    assert finer.network == dataclasses.replace(PRESETS["paper-big"], spacing_mm=0.6)
    assert finer.augmentation == dataclasses.replace(AugmentationSettings.paper(), elastic=0.5)
    assert read('{"training": {"network": "paper-small"}}').training.network == PRESETS["paper-small"]
    file.write_text('{"network": {"age_head": true}}')  # of neonatalseg train, whose network is the laptop's
    assert read_settings(file).network == dataclasses.replace(PRESETS["laptop"], age_head=True)


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


def jobs_of(name: str, settings: ExperimentSettings, subjects: list[Subject]) -> dict[str, dict[str, Any]]:
    """The runs of an experiment, one of each condition."""
    return {key.removesuffix("-run0"): job for key, job in JOBS[name](Study(subjects, settings, 1)).items()}


def steps_of(job: dict[str, Any]) -> tuple[int, int]:
    return job["training"]["epochs"], job["training"]["steps_per_epoch"]


def test_the_papers_budget_and_transfer_have_the_papers_numbers() -> None:
    ages = np.random.default_rng(0).normal(39.5, 3, 709).clip(26.7, 45.1)
    subjects = [Subject(f"sub-{i:03d}_ses-1", None, None, None, float(age)) for i, age in enumerate(ages)]
    jobs = jobs_of("budget", ExperimentSettings.paper(), subjects)
    trained = {key: set(job["train"]) for key, job in jobs.items()}
    assert {len(trained[f"budget-{axis}"]) for axis in ("random", "sagittal", "coronal", "axial")} == {342}
    assert len(trained["full"]) == 114
    assert trained["budget-full"] == trained["budget-full-iterations"] == trained["full"] < trained["budget-axial"]
    assert {(len(j["evaluate"]["validation"]), len(j["evaluate"]["test"])) for j in jobs.values()} == {(28, 100)}
    for job in jobs.values():
        assert not set(job["train"]) & {*job["evaluate"]["validation"], *job["evaluate"]["test"]}
    # An epoch is a pass over the scans, two at a time: in steps the sparse rows stand 9 to 1 to "20 epochs".
    assert {steps_of(jobs[f"budget-{axis}"]) for axis in ("random", "sagittal", "coronal", "axial")} == {(60, 171)}
    assert steps_of(jobs["budget-full"]) == (20, 57) and steps_of(jobs["full"]) == (60, 57)
    epochs, each = steps_of(jobs["budget-full-iterations"])
    assert epochs * each == 60 * 171
    assert {job["slices"]["selection"] for job in jobs.values() if job["slices"]} == {"random", "equidistant"}
    assert jobs["budget-axial"]["slices"]["selection"] == "random"
    assert jobs["budget-axial-equidistant"]["train"] == jobs["budget-axial"]["train"]


def test_the_papers_transfer_is_the_published_one() -> None:
    """Who (100 oldest, the next in age, 120 youngest), how long and at which rate."""
    subjects = release(0, singles=527)
    jobs = jobs_of("transfer", ExperimentSettings.paper(), subjects)
    source = jobs.pop("transfer-source")
    assert [len(source["train"]), *map(len, source["evaluate"].values())] == [100, 80, 25]
    assert steps_of(source) == (20, 50) and source["training"]["learning_rate"] == 1e-2
    assert steps_of(jobs["transfer-scratch"]) == (40, 20)
    assert {steps_of(job) for key, job in jobs.items() if key != "transfer-scratch"} == {(20, 20)}
    assert {job["training"]["learning_rate"] for job in jobs.values()} == {1e-3}
    assert {len(job["train"]) for job in jobs.values()} == {40}
    age = {s.name: s.age_weeks for s in subjects}
    young = {s.participant for s in sorted(subjects, key=lambda s: age[s.name])[:120]}
    others = sorted(age[s.name] for s in subjects if s.participant not in young)
    assert sorted(age[n] for n in source["train"]) == others[-100:]
    old = {n.split("_")[0] for n in source["train"]}
    next_oldest = sorted(age[s.name] for s in subjects if s.participant not in young | old)[-25:]
    assert sorted(age[n] for n in source["evaluate"]["source"]) == next_oldest


def test_only_what_a_table_needs_is_prepared_and_hours_are_told() -> None:
    subjects = release(0, singles=527)
    study = Study(subjects, ExperimentSettings.paper(), 4)
    assert len(names_in(JOBS["baseline"](study))) == 114 + 28 + 100
    assert len(names_in(JOBS["budget"](study))) == 470
    jobs = without(JOBS["baseline"](study), {next(iter(JOBS["baseline"](study).values()))["train"][0]})
    assert {len(job["train"]) for job in jobs.values()} == {113} and steps_of(jobs["full-run0"]) == (60, 57)
    lines = hours(JOBS["baseline"](study), 1.0, (217, 290, 290))
    # 3420 steps and 128 scans of 3 x 4 x 4 windows at a third of a step for two patches
    assert lines[-1].startswith(f"All 4 runs: about {4 * (3420 + 128 * 48 / 6) / 3600:.2g} hours")


def test_designs_by_fold_train_on_all_the_rest() -> None:
    subjects = [scan(f"sub-ALBERT{i:02d}", age) for i, age in enumerate(ALBERTS)]
    split = SplitDesign(validation=1, test=3).sides(subjects, run=5)  # of four folds the second
    assert {side: len(m) for side, m in split.sides.items()} == {"train": 9, "validation": 1, "test": 3, "more": 0}
    assert split.sides["test"] == leave_out_folds(subjects, 3)[1].sides["test"]
    transfer = TransferDesign(target_max_weeks=39, target_train=1, source_test=2).sides(subjects, run=0, seed=0)
    counts = {side: len(members) for side, members in transfer.sides.items()}
    assert counts == {"source": 5, "source-test": 2, "target-train": 1, "target-test": 1}
