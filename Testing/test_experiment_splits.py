"""Trainings and experiments on splits that are given to them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from small_experiments import SETTINGS, quiet, run, write_cache

from NeonatalSegLib.cli.app import USER_ERROR
from NeonatalSegLib.cli.app import run as command_line
from NeonatalSegLib.datasets.split_files import read_split, write_split
from NeonatalSegLib.datasets.splits import Member, Split
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.report import Preparation, run_experiment
from NeonatalSegLib.models.bundle import read_model


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def write_table(path: Path, sides: dict[str, list[str]]) -> Path:
    """A split as ``neonatalseg split`` writes it, of newborns of the cache (whose ages are 37, 38 ...)."""
    return write_split(
        Split({side: tuple(Member(n, 37.0 + int(n[-1])) for n in names) for side, names in sides.items()}), path
    )


def test_a_training_takes_a_split(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who trains, chooses and tests is what the table says, and the model says so; who is on no side takes no part."""
    sides = {"train": ["sub-0", "sub-3", "sub-6"], "validation": ["sub-1"], "test": ["sub-2", "sub-4"]}
    config = tmp_path / "settings.json"
    training = dataclasses.replace(SETTINGS.training, epochs=1, steps_per_epoch=1, validate_every=1)
    config.write_text(json.dumps(training.to_json()), encoding="utf-8")
    table = write_table(tmp_path / "split.tsv", sides)
    command = ["train", "--cache", str(cache), "--split", str(table), "--workers", "0"]
    assert command_line([*command, "--out", str(tmp_path / "run"), "--config", str(config)]) == 0
    facts = read_model(tmp_path / "run" / "model").facts
    assert facts.training_subjects == ("sub-0", "sub-3", "sub-6")
    assert (facts.validation_subjects, facts.test_subjects) == (("sub-1",), ("sub-2", "sub-4"))
    assert "2 scans stand on no side" in capsys.readouterr().out
    config.write_text(json.dumps({**training.to_json(), "test": ["sub-7"]}), encoding="utf-8")
    assert command_line([*command, "--out", str(tmp_path / "other"), "--config", str(config)]) == USER_ERROR
    assert "who is held out" in capsys.readouterr().err


def test_a_newborn_on_two_sides_is_refused(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "split.tsv"
    rows = ["sub-1_ses-1\tsub-1\t38\ttrain", "sub-1_ses-2\tsub-1\t40\ttest", "sub-2\tsub-2\t39\tvalidation"]
    table.write_text("\n".join(["subject\tparticipant\tage_weeks\tside", *rows]) + "\n", encoding="utf-8")
    for command in (["train", "--cache", str(cache)], ["experiment", "baseline", "--cache", str(cache)]):
        assert command_line([*command, "--split", str(table), "--out", str(tmp_path / "out")]) == USER_ERROR
        assert "two sides" in capsys.readouterr().err


def test_an_experiment_takes_splits_run_by_run(cache: Path, tmp_path: Path) -> None:
    """Two folds: each run trains and tests on its own table; other tables in the same folder are refused."""
    folds = [
        {"train": ["sub-0", "sub-1", "sub-2"], "validation": ["sub-3"], "test": ["sub-4"]},
        {"train": ["sub-4", "sub-5"], "validation": ["sub-3"], "test": ["sub-0", "sub-1"]},
    ]
    tables = [write_table(tmp_path / f"split_fold-{n}.tsv", sides) for n, sides in enumerate(folds)]
    config = tmp_path / "experiment.json"
    config.write_text(json.dumps(SETTINGS.to_json()), encoding="utf-8")
    given = [text for table in tables for text in ("--split", str(table))]
    command = ["experiment", "baseline", "--cache", str(cache), "--config", str(config), "--runs", "2"]
    out = tmp_path / "out"
    assert command_line([*command, *given, "--out", str(out)]) == 0
    for number, sides in enumerate(folds):
        result = json.loads((out / f"runs/full-run{number}/result.json").read_text(encoding="utf-8"))
        assert result["trained_on"] == sides["train"]
        assert {(s["set"], s["name"]) for s in result["subjects"]} == {
            (side, name) for side in ("validation", "test") for name in sides[side]
        }
    assert "--split split_fold-0.tsv --split split_fold-1.tsv" in (out / "baseline.md").read_text(encoding="utf-8")
    assert command_line([*command, "--out", str(out)]) == USER_ERROR  # drawn anew: not the same experiment


def test_a_given_list_is_used_and_checked(cache: Path, tmp_path: Path) -> None:
    ages = {f"sub-{n}": 37.0 + n for n in range(8)}
    sides = {"train": (0, 2, 4), "validation": (1,), "test": (6, 7)}
    split = Split({side: tuple(Member(f"sub-{n}", ages[f"sub-{n}"]) for n in who) for side, who in sides.items()})
    settings = dataclasses.replace(SETTINGS, splits=(read_split(write_split(split, tmp_path / "mine.tsv")),))
    run_experiment("baseline", None, settings, tmp_path / "out", runs=1, **quiet(cache))
    job = json.loads((tmp_path / "out/runs/full-run0/job.json").read_text(encoding="utf-8"))
    assert job["train"] == ["sub-0", "sub-2", "sub-4"] and job["evaluate"]["test"] == ["sub-6", "sub-7"]
    assert read_split(tmp_path / "out/lists/baseline-run0.tsv").names("test") == ("sub-6", "sub-7")
    lines = (tmp_path / "mine.tsv").read_text(encoding="utf-8").splitlines()
    for change, words in (
        ([*lines, "sub-0\tsub-0\t37.0\ttest"], "two sides"),
        ([*lines, "sub-99\tsub-99\t37.0\ttrain"], "sub-99 stands on the side"),
        ([line for line in lines if not line.endswith("test")], "no scan on a side 'test'"),
    ):
        (tmp_path / "wrong.tsv").write_text("\n".join(change) + "\n")
        with pytest.raises(NeonatalSegError, match=words):
            settings = dataclasses.replace(SETTINGS, splits=(read_split(tmp_path / "wrong.tsv"),))
            run_experiment("baseline", None, settings, tmp_path / "wrong", runs=1, **quiet(cache))


def test_an_excluded_newborn_is_as_if_it_were_not_there(cache: Path, tmp_path: Path) -> None:
    preparation = Preparation(cache, exclude=("sub-3",))
    run("baseline", cache, tmp_path, runs=1, preparation=preparation)
    job = json.loads((tmp_path / "runs/full-run0/job.json").read_text(encoding="utf-8"))
    assert "sub-3" not in str(job) and len(job["train"]) == 5
    with pytest.raises(NeonatalSegError, match="sub-33 is to be excluded but is not among the 8 scans"):
        run("baseline", cache, tmp_path / "slip", preparation=Preparation(cache, exclude=("sub-33",)))
