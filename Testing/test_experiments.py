"""Experiments: trainings that go on after a stop, tables from known results, training on sparse labels."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dask_processes import dask_processes
from test_runs import square, times_run

from NeonatalSegLib.augmentation.transforms import AugmentationSettings
from NeonatalSegLib.cli.app import USER_ERROR
from NeonatalSegLib.cli.app import run as command_line
from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.datasets.split_files import read_split, write_split
from NeonatalSegLib.datasets.splits import Member, Split
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.report import Preparation, run_experiment
from NeonatalSegLib.experiments.paper.settings import BudgetDesign, ExperimentSettings, SplitDesign, TransferDesign
from NeonatalSegLib.experiments.paper.trial import evaluate, label_masks
from NeonatalSegLib.experiments.runs import run_jobs
from NeonatalSegLib.experiments.tables import Spread, by_run, dsc_all, dsc_no_background, validation_and_test
from NeonatalSegLib.models.bundle import read_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.strategies import STRATEGIES
from NeonatalSegLib.training.run import TrainingSettings, train

# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small newborns of 37-44 weeks whose tissue can be told from the intensity."""
    folder = tmp_path_factory.mktemp("cache")
    random = np.random.default_rng(0)
    index = {}
    for number, age in enumerate((37, 38, 39, 40, 41, 42, 43, 44)):
        labels = np.zeros((20, 22, 24), np.uint8)
        labels[3:-3, 3:-3, 3:-3] = 3
        labels[8:12, 8:14, 8:16] = 7
        image = np.stack([labels / 3.0, 2 - labels / 5.0]) + 0.05 * random.normal(size=(2, *labels.shape))
        np.save(folder / f"sub-{number}_image.npy", image.astype(np.float16))
        np.save(folder / f"sub-{number}_labels.npy", labels)
        index[f"sub-{number}"] = {"age_weeks": float(age)}
    (folder / "cache.json").write_text(json.dumps({"format": 1, "spacing_mm": 3.0, "subjects": index}))
    return folder


SETTINGS = ExperimentSettings(
    training=TrainingSettings(
        network=NetworkSettings((4, 8, 8), 3.0, (16, 16, 16), heads=1),
        epochs=3,
        batch_size=2,
        optimizer="adamw",
        validate_every=3,
        augmentation=AugmentationSettings(elastic=0.0),
    ),
    split=SplitDesign(validation=1, test=1),
    budget=BudgetDesign(percent=33, scans=2, times=3, full_epochs=1),
    transfer=TransferDesign(target_train=1, source_test=1, epochs=1),
    notes={"all": ["Eight drawn newborns."], "age": ["Only for ages."]},
)


def test_sparse_training_sees_no_unlabelled_voxel(cache: Path, tmp_path: Path) -> None:
    """Other labels outside the slices change nothing; other labels inside them do."""
    subjects = read_cache(cache)[:2]
    masks = label_masks(subjects, {"axis": "axial", "percent": 33, "selection": "equidistant", "seed": 0}, 3.0)
    settings = dataclasses.replace(SETTINGS.training, epochs=2, validate_every=2)

    def trained(name: str, change: Callable[[np.ndarray, np.ndarray], None]) -> torch.Tensor:
        folder = shutil.copytree(cache, tmp_path / f"{name}-cache")
        for subject in subjects:
            labels = np.load(folder / f"{subject.name}_labels.npy")
            change(labels, masks[subject.name])
            np.save(folder / f"{subject.name}_labels.npy", labels)
        done = train(read_cache(folder)[:2], settings, tmp_path / name, known=masks, workers=0)
        return torch.cat([p.detach().flatten() for p in done.network.parameters()])

    def outside(labels: np.ndarray, mask: np.ndarray) -> None:
        labels[~mask] = 9 - labels[~mask]

    def inside(labels: np.ndarray, mask: np.ndarray) -> None:
        labels[mask] = 9 - labels[mask]

    plain = trained("plain", lambda labels, mask: None)
    assert torch.equal(plain, trained("outside", outside))
    assert not torch.equal(plain, trained("inside", inside))


def test_masks_are_whole_slices_of_the_central_part_and_a_third(cache: Path) -> None:
    subjects = read_cache(cache)
    for axis, place, length in (("axial", 0, 20), ("coronal", 1, 22), ("sagittal", 2, 24)):
        masks = label_masks(subjects, {"axis": axis, "percent": 33, "selection": "random", "seed": 1}, 3.0)
        for mask in masks.values():
            rows = mask.any(axis=tuple(a for a in range(3) if a != place))
            assert rows.sum() == round(0.33 * length)
            assert not rows[0] and not rows[-1]
            assert mask.sum() == rows.sum() * mask.size / length  # whole planes and nothing else
    fixed = {"axis": "random", "percent": 33, "selection": "random", "seed": 5}
    again = [label_masks(subjects, fixed, 3.0) for _ in range(2)]
    assert all(np.array_equal(again[0][name], again[1][name]) for name in again[0])
    axes = {tuple(bool(m.any(axis=o).all()) for o in ((1, 2), (0, 2), (0, 1))) for m in again[0].values()}
    assert len(axes) > 1  # one axis for each scan, and not the same for all


def test_wrong_masks_are_refused(cache: Path, tmp_path: Path) -> None:
    subjects = read_cache(cache)[:2]
    shape = subjects[0].labels().shape
    for masks, words in (
        ({"sub-7": np.ones(shape, bool)}, "not trained on"),
        ({"sub-0": np.ones((2, 2, 2), bool)}, "expected bool"),
        ({"sub-0": np.zeros(shape, bool)}, "Nothing is labelled in sub-0"),
    ):
        with pytest.raises(NeonatalSegError, match=words):
            train(subjects, SETTINGS.training, tmp_path / words, known=masks, workers=0)


def quiet(cache: Path) -> dict[str, Any]:
    return {"preparation": Preparation(cache), "report": lambda _: None}


def run(name: str, cache: Path, out: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Run an experiment and read its runs' results from disk."""
    run_experiment(name, None, SETTINGS, out, **{"runs": 2, **quiet(cache), **changes})
    return {
        f.parent.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted((out / "runs").glob("*/result.json"))
    }


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


def test_an_interrupted_experiment_goes_on(cache: Path, tmp_path: Path) -> None:
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
    resumed = run("baseline", cache, parts)
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


def test_random_slices_leave_gaps_and_equidistant_ones_do_not(tmp_path: Path) -> None:
    """On an axis of 290 slices, a third of them: the published runs' largest gaps were 6 to 18 slices."""
    labels = np.ones((290, 16, 16), np.uint8)
    np.save(tmp_path / "sub-0_labels.npy", labels)
    subject = CachedSubject("sub-0", tmp_path, 40.0)
    largest: dict[str, list[int]] = {"random": [], "equidistant": []}
    for selection, gaps in largest.items():
        for seed in range(8):
            slices = {"axis": "axial", "percent": 33, "selection": selection, "seed": seed}
            mask = label_masks([subject], slices, 3.0)["sub-0"]
            assert mask.strides[1:] == (0, 0)  # hundreds of masks take no memory
            gaps.append(int(np.diff(np.flatnonzero(mask[:, 0, 0])).max()))
    assert min(largest["random"]) >= 6 and max(largest["equidistant"]) <= 3


# --- splits -----------------------------------------------------------------------------------------------------------


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


# --- tables -----------------------------------------------------------------------------------------------------------


def result(condition: str, number: int, test: list[list[float | None]]) -> dict[str, Any]:
    return {"condition": condition, "run": number, "subjects": [{"set": "test", "dsc": dsc} for dsc in test]}


def test_means_and_deviations_are_over_runs() -> None:
    """Two newborns in one run, one in the other; classes 0 and 4 are background; a class may be in neither map."""
    tissues = [1, 2, 3, 5, 6, 7, 8, 9]
    high: list[float | None] = [0.5 if i in tissues else 1.0 for i in range(10)]
    low: list[float | None] = [0.1 if i in tissues else 0.0 for i in range(10)]
    missing: list[float | None] = [0.9 if i in tissues else 0.4 for i in range(10)]
    missing[9] = None
    results = [result("a", 1, [missing]), result("a", 0, [high, low]), result("b", 0, [high])]
    # run 0: (0.5 + 0.1) / 2 = 0.3; run 1: 0.9; mean 0.6, SD sqrt(2 * 0.3 ** 2) = 0.424264
    assert by_run(results, "a", "test", dsc_no_background) == pytest.approx([0.3, 0.9])
    # run 0: (0.6 + 0.08) / 2 = 0.34; run 1: (7 * 0.9 + 2 * 0.4) / 9 = 0.788889
    assert by_run(results, "a", "test", dsc_all) == pytest.approx([0.34, 7.1 / 9])
    table = validation_and_test("T", results, {"a": "A", "b": "B"}, {"P": ("1", "2", "3", "4")})
    assert [str(cell) for cell in table.rows[0]] == ["A", "n/a", "n/a", "0.564 ± 0.317", "0.600 ± 0.424"]
    assert str(table.rows[1][4]) == "0.500"
    lines = [line.split("\t") for line in table.tsv().splitlines()]
    assert {len(line) for line in lines} == {13}
    assert lines[1][-3:] == ["0.600000", "0.424264", "2"]
    assert lines[2][-3:] == ["0.500000", "n/a", "1"]
    assert lines[3][0] == "paper: P" and lines[3][-3] == "4"
    assert "0.600 ± 0.424" in table.markdown()


def test_a_small_deviation_is_shown_with_the_digits_that_it_needs() -> None:
    assert str(Spread.of([0.9337, 0.9341, 0.9345])) == "0.934 ± 0.0004"
    assert str(Spread.of([0.1 + 0.2, 0.3, 0.3])) == "0.300 ± 0.000"
    assert str(Spread.of([0.90, 0.92])) == "0.910 ± 0.014"
    assert str(Spread.of([151, 151.5], 0)) == "151 ± 0.4"
