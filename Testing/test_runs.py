"""Runs that resume, refuse to mix and are told when they fail, here and in processes of Dask."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.runs import run_jobs
from NeonatalSegLib.training.settings import TrainingSettings


def square(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run that leaves a trace of every time it is run, and fails where the job says so."""
    with (folder / "trace").open("a") as trace:
        trace.write(f"{os.getpid()}\n")
    if job["n"] < 0 and not (folder / "mended").exists():
        raise ValueError(f"{job['n']} is negative")
    return {"square": job["n"] ** 2}


def square_with_help(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """As a run whose patches are drawn by a process of its own."""
    helper = multiprocessing.get_context("spawn").Process(target=int)
    helper.start()
    helper.join()
    return square(job, folder)


def times_run(out: Path, key: str) -> int:
    return len((out / "runs" / key / "trace").read_text(encoding="utf-8").splitlines())


def test_finished_runs_are_not_run_again_and_more_can_be_added(tmp_path: Path) -> None:
    lines: list[str] = []
    first = run_jobs(square, {"a": {"n": 2}}, tmp_path, config={"c": 1}, report=lines.append)
    assert first == {"a": {"square": 4}}
    both = run_jobs(square, {"b": {"n": 3}, "a": {"n": 2}}, tmp_path, config={"c": 1}, report=lines.append)
    assert list(both.items()) == [("b", {"square": 9}), ("a", {"square": 4})]
    assert (times_run(tmp_path, "a"), times_run(tmp_path, "b")) == (1, 1)
    assert any("1 of 2 runs are done already" in line for line in lines)


def test_a_failed_run_is_named_and_the_others_are_run(tmp_path: Path) -> None:
    jobs = {"bad": {"n": -1}, "good": {"n": 5}}
    with pytest.raises(NeonatalSegError, match=r"1 of 2 runs failed: bad \(ValueError: -1 is negative\)"):
        run_jobs(square, jobs, tmp_path, config={}, report=lambda _: None)
    assert json.loads((tmp_path / "runs/good/result.json").read_text(encoding="utf-8")) == {"square": 25}
    assert "ValueError" in (tmp_path / "runs/bad/error.txt").read_text(encoding="utf-8")
    (tmp_path / "runs/bad/mended").touch()
    assert run_jobs(square, jobs, tmp_path, config={}, report=lambda _: None)["bad"] == {"square": 1}
    assert (times_run(tmp_path, "good"), times_run(tmp_path, "bad")) == (1, 2)
    assert not (tmp_path / "runs/bad/error.txt").exists()


def test_another_configuration_or_job_is_refused(tmp_path: Path) -> None:
    run_jobs(square, {"a": {"n": 2}}, tmp_path, config={"steps": 1}, report=lambda _: None)
    with pytest.raises(NeonatalSegError, match=r"another configuration \(it differs in: steps\)"):
        run_jobs(square, {"a": {"n": 2}}, tmp_path, config={"steps": 2}, report=lambda _: None)
    with pytest.raises(NeonatalSegError, match=r"another job \(it differs in: n\)"):
        run_jobs(square, {"a": {"n": 3}}, tmp_path, config={"steps": 1}, report=lambda _: None)
    with pytest.raises(NeonatalSegError, match="cannot be called"):
        run_jobs(square, {"../x": {"n": 3}}, tmp_path, config={"steps": 1}, report=lambda _: None)
    assert times_run(tmp_path, "a") == 1


def test_a_folder_from_before_a_setting_came_into_being_goes_on(tmp_path: Path) -> None:
    """In its configuration and in its jobs; another value than the setting's default is another run all the same."""
    today = json.loads(json.dumps(TrainingSettings().to_json()))
    before = {name: value for name, value in today.items() if name not in ("compiled", "pool_uses")}
    other = {**today, "compiled": True}

    def run(job: dict[str, Any], config: dict[str, Any]) -> None:
        jobs = {"a": {"n": 2, "training": job}}
        run_jobs(square, jobs, tmp_path, config={"training": config}, report=lambda _: None)

    run(before, before)
    run(today, today)
    assert times_run(tmp_path, "a") == 1
    with pytest.raises(NeonatalSegError, match=r"another configuration \(it differs in: training\)"):
        run(today, other)
    with pytest.raises(NeonatalSegError, match=r"another job \(it differs in: training\)"):
        run(other, today)


def test_dask_processes_give_the_same_results(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    jobs: dict[str, dict[str, Any]] = {f"n{n}": {"n": n} for n in (-4, 2, 3)}
    with pytest.raises(NeonatalSegError, match=r"1 of 3 runs failed: n-4 \(ValueError: -4 is negative\)"):
        run_jobs(square_with_help, jobs, tmp_path, config={}, parallel=2, report=lambda _: None)
    workers = {int((tmp_path / "runs" / key / "trace").read_text(encoding="utf-8")) for key in jobs}
    assert os.getpid() not in workers
    del jobs["n-4"]
    results = run_jobs(square, jobs, tmp_path, config={}, report=lambda _: None)
    assert results == {"n2": {"square": 4}, "n3": {"square": 9}}
