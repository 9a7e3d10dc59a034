"""Experiments: trainings that go on after a stop, here and on workers, and what each experiment is made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dask_processes import dask_processes
from lightning import pytorch as pl
from small_experiments import SETTINGS, quiet, run, write_cache
from test_runs import square, times_run

from NeonatalSegLib.datasets.cache import read_cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.report import run_experiment
from NeonatalSegLib.experiments.paper.settings import BudgetDesign, SplitDesign
from NeonatalSegLib.experiments.paper.trial import evaluate
from NeonatalSegLib.experiments.runs import run_jobs
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.networks.strategies import STRATEGIES
from NeonatalSegLib.training.run import TrainingSettings, train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def in_one(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The base line in this process, with one thread: its folder and its runs."""
    out = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return out, run("baseline", cache, out)
    finally:
        torch.set_num_threads(threads)


def test_baseline_in_two_processes_is_baseline_in_one(
    cache: Path, in_one: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    folder, one = in_one
    two = run("baseline", cache, tmp_path / "two", parallel=2)
    assert list(one) == ["full-run0", "full-run1"]
    for key in one:
        assert one[key]["subjects"] == two[key]["subjects"]
    assert one["full-run0"]["subjects"] != one["full-run1"]["subjects"]
    assert one["full-run0"]["steps"] == 9  # three passes over six scans, two at a time
    assert 0 < one["full-run0"]["loader_share"] < 1
    table = (folder / "baseline-table1.tsv").read_text(encoding="utf-8").splitlines()
    expected = np.mean([np.nanmean(_test_dsc(r)) for r in one.values()])
    assert float(dict(zip(table[0].split("\t"), table[1].split("\t"), strict=True))["Test mean DSC"]) == pytest.approx(
        expected, abs=1e-5
    )
    page = (folder / "baseline.md").read_text(encoding="utf-8")
    assert "Eight drawn newborns." in page and "torch" in page and "Only for ages." not in page
    assert {r["versions"]["device"] for r in two.values()} <= {"CPU, 1 thread(s)", *gpus()}
    assert (folder / "baseline.png").stat().st_size > 5000


def test_baseline_on_a_scheduler_is_baseline_in_one(
    cache: Path,
    in_one: tuple[Path, dict[str, dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)  # the worker stands in another folder
    told: list[str] = []
    with dask_processes(tmp_path / "elsewhere") as dask:
        with pytest.raises(NeonatalSegError, match=r"bad \(ValueError: -1 is negative\)"):
            run_jobs(
                square,
                {"bad": {"n": -1}, "a": {"n": 2}},
                "squares",
                config={},
                scheduler=dask.address,
                report=told.append,
            )
        assert len(told) == 2 and times_run(Path("squares"), "bad") == 1
        assert int(Path("squares/runs/a/trace").read_text(encoding="utf-8")) == dask.workers[0].pid
        there = run("baseline", cache, Path("there"), scheduler=dask.address)
    assert {key: r["subjects"] for key, r in there.items()} == {key: r["subjects"] for key, r in in_one[1].items()}
    assert not list((tmp_path / "elsewhere").rglob("result.json"))


def gpus() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _test_dsc(result: dict[str, Any]) -> np.ndarray:
    (subject,) = [s for s in result["subjects"] if s["set"] == "test"]
    return np.array([np.nan if v is None else v for v in subject["dsc"]])


def test_budget_has_equal_slices_and_equal_steps(cache: Path, tmp_path: Path) -> None:
    results = run("budget", cache, tmp_path, runs=1)
    conditions = ("random", "sagittal", "coronal", "axial", "full", "full-iterations")
    names = {f"budget-{c}" for c in conditions} | {"full"}
    assert {r["condition"] for r in results.values()} == names
    steps = {r["condition"].removeprefix("budget-"): r["steps"] for r in results.values() if r["condition"] != "full"}
    assert steps == dict.fromkeys(conditions, 9) | {"full": 1}  # the paper's ratio: 9 to 1
    labelled = {
        r["condition"].removeprefix("budget-"): r["labelled"] for r in results.values() if r["condition"] != "full"
    }
    assert labelled["full"] == labelled["full-iterations"]
    assert (labelled["full"]["scans"], labelled["axial"]["scans"]) == (2, 6)
    assert (labelled["full"]["slices"], labelled["axial"]["slices"]) == (2 * 20, 6 * 7)
    assert labelled["coronal"]["slices"] == 6 * 7
    assert labelled["full"]["voxels"] == 2 * 14 * 16 * 18
    jobs = {k: json.loads((tmp_path / "runs" / k / "job.json").read_text(encoding="utf-8")) for k in results}
    assert set(jobs["budget-full-run0"]["train"]) <= set(jobs["budget-axial-run0"]["train"])
    assert len({tuple(j["evaluate"]["test"]) for j in jobs.values()}) == 1


def test_age_is_judged_beside_the_mean_age(cache: Path, tmp_path: Path) -> None:
    results = run("age", cache, tmp_path)
    told = results["age-run0"]["subjects"][0]["told_age_weeks"]
    assert told is not None and results["full-run0"]["subjects"][0]["told_age_weeks"] is None
    rows = [line.split("\t") for line in (tmp_path / "age-error.tsv").read_text(encoding="utf-8").splitlines()]
    ages = {f"sub-{n}": 37.0 + n for n in range(8)}
    errors = []
    for number in range(2):
        job = json.loads((tmp_path / f"runs/age-run{number}/job.json").read_text(encoding="utf-8"))
        mean = np.mean([ages[name] for name in job["train"]])
        errors.append(np.mean([abs(mean - ages[name]) for name in job["evaluate"]["test"]]))
    (base,) = [row for row in rows if row[0].startswith("Mean age")]
    assert float(base[rows[0].index("Test")]) == pytest.approx(np.mean(errors), abs=1e-5)
    assert "Only for ages." in (tmp_path / "age.md").read_text(encoding="utf-8")


def test_transfer_starts_from_the_source_and_leaves_what_a_strategy_does_not_train(cache: Path, tmp_path: Path) -> None:
    results = {k.removeprefix("transfer-"): r for k, r in run("transfer", cache, tmp_path, runs=1).items()}
    assert len(results) == 1 + len(STRATEGIES)
    weights = {k: torch.load(tmp_path / f"runs/transfer-{k}/network.pt", weights_only=True) for k in results}
    source = weights["source-run0"]
    changed = {k: sum(not torch.equal(w[n], source[n]) for n in source) for k, w in weights.items()}
    assert changed["none-run0"] == 0 < changed["shallow-run0"] < changed["full-run0"]
    assert results["none-run0"]["subjects"] == results["source-run0"]["subjects"]
    shares = {k: r["trained_parameters"] / r["parameters"] for k, r in results.items()}
    assert shares["none-run0"] == 0 < shares["shallow-run0"] < shares["full-run0"] == shares["scratch-run0"] == 1
    job = json.loads((tmp_path / "runs/transfer-shallow-run0/job.json").read_text(encoding="utf-8"))
    assert (len(job["train"]), len(job["evaluate"]["target"]), len(job["evaluate"]["source"])) == (1, 3, 1)
    assert job["training"]["learning_rate"] == 1e-3
    sides = [set(job["train"]), *(set(names) for names in job["evaluate"].values())]
    assert sum(map(len, sides)) == len(set().union(*sides))


def test_an_interrupted_experiment_goes_on(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first run, and inside the second one's training: the end is as if it had not been."""
    whole = run("baseline", cache, tmp_path / "whole")
    parts = tmp_path / "parts"
    run("baseline", cache, parts, runs=1)
    job = json.loads((tmp_path / "whole/runs/full-run1/job.json").read_text(encoding="utf-8"))
    training = [s for s in read_cache(cache) if s.name in job["train"]]
    inside = parts / "runs/full-run1/training"
    train(training, TrainingSettings.from_json(job["training"]), inside, known={}, workers=0, stop_after=2)
    assert (inside / "last.ckpt").exists()
    first = (parts / "runs/full-run0/result.json").stat().st_mtime_ns
    begun, fit = [], pl.Trainer.fit  # a run from the beginning would give the same figures

    def told(*arguments: Any, ckpt_path: str | None, **named: Any) -> None:
        begun.append(ckpt_path)
        fit(*arguments, ckpt_path=ckpt_path, **named)

    monkeypatch.setattr(pl.Trainer, "fit", told)
    resumed = run("baseline", cache, parts)
    assert begun == [str(inside / "last.ckpt")]
    assert resumed["full-run1"]["subjects"] == whole["full-run1"]["subjects"]
    assert (parts / "runs/full-run0/result.json").stat().st_mtime_ns == first
    other = dataclasses.replace(SETTINGS, split=SplitDesign(validation=1, test=2))
    with pytest.raises(NeonatalSegError, match=r"another configuration \(it differs in: split\)"):
        run_experiment("baseline", None, other, parts, runs=2, **quiet(cache))
    run("age", cache, parts, runs=1)  # the same base line: it is not trained again
    assert (parts / "runs/full-run0/result.json").stat().st_mtime_ns == first


def test_what_trains_the_same_is_run_once_and_stands_in_two_rows(cache: Path, tmp_path: Path) -> None:
    """A base line with all the scans and all the steps of the sparse conditions is the one of Table 1."""
    settings = dataclasses.replace(SETTINGS, budget=BudgetDesign(scans=6, times=1, full_epochs=1))
    run_experiment("budget", None, settings, tmp_path, runs=1, **quiet(cache))
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir() if (p / "result.json").is_file())
    assert "full-run0" in folders and "budget-full-iterations-run0" not in folders
    rows = {
        row[0]: row[1:]
        for row in (x.split("\t") for x in (tmp_path / "budget-table3.tsv").read_text(encoding="utf-8").splitlines())
    }
    assert rows["Full, equal slices and steps"] == rows["Full, all training scans (Table 1)"]
    steps = [row.split("\t") for row in (tmp_path / "budget-steps.tsv").read_text(encoding="utf-8").splitlines()]
    assert ["budget-axial", "6", "3", "3", "9"] in [row[:5] for row in steps]


def test_where_memory_runs_out_the_next_device_evaluates(cache: Path) -> None:
    class Full(torch.nn.Module):
        """Has no memory at its first scan."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.asked = build_network(SETTINGS.training.network), 0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.asked += 1
            if self.asked == 1:
                raise torch.OutOfMemoryError("out of memory")
            return self.network(image)

    subject = read_cache(cache)[0]
    found = evaluate(Full(), subject, SETTINGS.training, devices=("cpu", "cpu"))
    assert "memory did not do for sub-0" in found["note"] and len(found["dsc"]) == 10
    with pytest.raises(NeonatalSegError, match="too little memory to evaluate sub-0"):
        evaluate(Full(), subject, SETTINGS.training, devices=("cpu",))


def test_too_few_subjects_are_told(cache: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, budget=BudgetDesign(scans=3))
    with pytest.raises(NeonatalSegError, match="needs 9 training scans"):
        run_experiment("budget", None, settings, tmp_path, runs=1, **quiet(cache))
