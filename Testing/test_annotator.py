"""The simulated annotator: it reveals the planned slices alone, tests other scans, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.datasets.phantom import draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.annotator.domains import (
    DomainScan,
    prepare_domain,
    read_labelled,
    with_changed_contrast,
)
from NeonatalSegLib.experiments.annotator.report import write_annotator_report
from NeonatalSegLib.experiments.annotator.simulation import AnnotatorSettings, dsc_merged, reveal, simulate, to_plan
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.grid import Grid, plane
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import UNKNOWN

TINY = NetworkSettings((4, 6, 6), 3.0, (32, 32, 32), heads=1)
SETTINGS = AnnotatorSettings(
    percents=(10.0, 20.0),
    strategies=("shallow", "full"),
    selections=("equidistant", "foreground-random"),
    tested=1,
    finetuning={"steps": 1, "rehearsal": 0.0, "patch": [32, 32, 32], "judge_every": 0},
)


def newborns() -> list[tuple[Scan, sitk.Image]]:
    drawn = [draw_newborn(40.0, seed=seed, spacing_mm=3.0) for seed in range(3)]
    named = [
        Scan(p.scan.t1, p.scan.t2, f"sub-{n}", p.scan.age_weeks, p.scan.warnings, p.scan.sources)
        for n, p in enumerate(drawn)
    ]
    return [(scan, phantom.labels) for scan, phantom in zip(named, drawn, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_model(build_network(TINY), TINY, folder, description="random weights")


@pytest.fixture(scope="module")
def domain(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DomainScan]]:
    folder = tmp_path_factory.mktemp("domain") / "scans"
    return folder, prepare_domain(folder, newborns, Segmenter(model, "cpu"), "drawn newborns")


def test_the_whole_loop_with_its_report(model: Model, domain: tuple[Path, list[DomainScan]], tmp_path: Path) -> None:
    folder, scans = domain
    names = [scan.name for scan in scans]

    def play(told: list[str]) -> dict[str, dict]:  # type: ignore[type-arg]
        return simulate(
            tmp_path / "out",
            folder,
            names,
            folder,
            names,
            SETTINGS,
            model=str(model.folder),
            runs=2,
            report=told.append,
        )

    results = play([])
    assert len(results) == 2 * 2 * 3  # seeds, budgets, two strategies and one other selection
    for key, result in results.items():
        job = tmp_path / "out" / "runs" / key / "job.json"
        annotated = job.read_text(encoding="utf-8").split('"annotated": [')[1].split("]")[0]
        for side in ("tested", "source"):
            assert len(result[side]) == 1 and next(iter(result[side])) not in annotated
    few, many = (results[f"full-equidistant-{percent}-s0"]["slices"] for percent in (10, 20))
    assert 1 <= few < many
    told: list[str] = []
    assert play(told) == results and told == [f"{len(results)} of {len(results)} runs are done already"]
    files = write_annotator_report("drawn", "Drawn newborns", results, SETTINGS, model, tmp_path / "report", "command")
    assert model.hash[:12] in files[0].read_text(encoding="utf-8")
    assert all(file.stat().st_size > 0 for file in files)
    rows = files[1].read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2 * 3
    head, first = rows[0].split("\t"), rows[1].split("\t")
    before, after, change = (float(first[head.index(name)]) for name in ("Before", "After", "Change"))
    assert change == pytest.approx(after - before, abs=2e-6)


def test_the_truth_is_revealed_on_the_planned_slices_alone(domain: tuple[Path, list[DomainScan]]) -> None:
    scan = domain[1][0]
    plan = plan_slices([to_plan_of_truth(scan)], BudgetSettings(30, axis="mixed", seed=1))
    case = reveal(scan, plan.slices, 0.2, seed=1)
    planned = np.zeros(scan.labels.shape, bool)
    for s in plan.slices:
        planned[plane(scan.grid, s.axis, s.index)] = True
    seen, evaluated = case.labels != UNKNOWN, case.held_out != UNKNOWN
    assert evaluated.any() and seen.any() and not (seen & evaluated).any()
    assert np.array_equal(seen | evaluated, planned)
    assert np.array_equal(case.labels[seen], scan.labels[seen])
    assert np.array_equal(case.held_out[evaluated], scan.labels[evaluated])


def to_plan_of_truth(scan: DomainScan):  # type: ignore[no-untyped-def]
    """A scan whose model sees its brain (random weights do not)."""
    return to_plan(DomainScan(scan.name, scan.image, scan.labels, scan.labels, scan.uncertainty, scan.grid))


def test_another_models_domain_is_refused(domain: tuple[Path, list[DomainScan]], tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = save_model(build_network(TINY), TINY, tmp_path / "tiny", description="other weights, the same name")
    with pytest.raises(NeonatalSegError, match="choose a new folder"):
        prepare_domain(domain[0], newborns, Segmenter(other, "cpu"), "drawn newborns")


def test_another_choice_of_scans_is_refused(domain: tuple[Path, list[DomainScan]], model: Model) -> None:
    with pytest.raises(NeonatalSegError, match="drawn newborns: choose a new folder"):
        prepare_domain(domain[0], newborns, Segmenter(model, "cpu"), "drawn newborns with changed contrast")


def test_changed_contrast_keeps_the_place_and_loses_t2() -> None:
    scan = newborns()[0][0]
    changed = with_changed_contrast(scan, seed=0)
    assert changed.t2 is None and changed.t1 is not None and scan.t1 is not None
    assert Grid.of(changed.t1).is_like(Grid.of(scan.t1))
    old, new = (sitk.GetArrayFromImage(image).ravel() for image in (scan.t1, changed.t1))
    inside = new > 0
    assert np.corrcoef(old[inside], new[inside])[0, 1] < 0.98
    assert np.array_equal(new, sitk.GetArrayFromImage(with_changed_contrast(scan, seed=0).t1).ravel())


def test_merged_classes_are_scored_as_one() -> None:
    truth, pred = np.array([6, 6, 7, 0], np.uint8), np.array([8, 6, 9, 0], np.uint8)
    dsc = dsc_merged(pred, truth, ((6, 8), (7, 9)))
    assert dsc[6] == dsc[7] == 1.0 and np.isnan(dsc[8])


def test_a_subject_that_is_not_there_is_named(newborn_files: dict[str, Path]) -> None:
    with pytest.raises(NeonatalSegError, match="sub-77"):
        read_labelled(newborn_files["t1"].parent, ["sub-77"])
