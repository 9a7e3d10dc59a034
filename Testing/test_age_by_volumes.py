"""The age that a brain's tissues show: against newborns that it was not made from, and on its way to a reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.age_by_volumes import KEPT_OUT, brains
from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.segmentation.batch import run_study
from NeonatalSegLib.segmentation.growth import AGES, GROWTH, age_of_volumes, shown_age
from NeonatalSegLib.segmentation.plausibility import age_warning
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.segmentation.study_scans import scans_of_list


@pytest.mark.parametrize("age", AGES)
def test_it_follows_the_published_course_of_593_newborns(age: float) -> None:
    """Their volumes took no part in the fit."""
    told = age_of_volumes({key: growth.expected_ml(age) for key, growth in GROWTH.items()})
    assert told == pytest.approx(age, abs=3.0)


def test_what_is_missing_or_no_newborn_has_no_age() -> None:
    usual = {key: growth.expected_ml(40.0) for key, growth in GROWTH.items()}
    assert age_of_volumes(usual) is not None
    assert age_of_volumes({}) is None
    assert age_of_volumes({**usual, "deep_gm": 0.0}) is None
    assert age_of_volumes({key: ml for key, ml in usual.items() if key != "cerebellum"}) is None
    assert age_of_volumes({key: 8 * ml for key, ml in usual.items()}) is None  # voxels of twice their size


@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_an_age_that_is_too_far_to_be_told_is_doubted_all_the_same(factor: float) -> None:
    volumes = {key: factor * growth.expected_ml(36.0) for key, growth in GROWTH.items()}
    assert age_of_volumes(volumes) is None
    (told,) = age_warning(36.0, None, shown_age(volumes))
    assert "36.0 weeks" in told and "5 weeks apart" in told


def test_newborns_kept_out_and_another_scanner_are_within_the_promise(data_folder: Path) -> None:
    """Mean error of 1.2 weeks by true label maps, which took no part in the fit either."""
    everyone = list(brains(data_folder))
    errors = {b.name: abs((age_of_volumes(b.truth_ml) or np.inf) - b.age_weeks) for b in everyone}
    for kind, number in (("kept out", len(KEPT_OUT)), ("fetal", 6)):
        names = [b.name for b in everyone if b.kind == kind]
        assert len(names) == number
        assert np.mean([errors[name] for name in names]) <= 1.2


@pytest.mark.parametrize(
    ("given", "by_model", "by_volumes", "warned"),
    [
        (None, None, 36.0, ""),
        (40.0, None, None, ""),
        (40.0, None, 35.0, ""),
        (40.0, None, 34.9, "5 weeks apart"),
        (32.0, None, 37.1, "5 weeks apart"),
        (40.0, 39.0, 30.0, ""),
        (40.0, 37.5, 40.0, "2 weeks apart"),
    ],
)
def test_a_far_age_is_told_by_the_model_before_volumes(
    given: float | None, by_model: float | None, by_volumes: float | None, warned: str
) -> None:
    told = age_warning(given, by_model, by_volumes)
    assert len(told) == bool(warned)
    assert not warned or warned in told[0]
    assert not warned or f"{by_volumes if by_model is None else by_model:.1f} weeks" in told[0]


def test_it_reaches_side_car_report_table_and_warning(tmp_path: Path) -> None:
    """The shipped model on a drawn newborn of 40 weeks that somebody gave the age of another."""
    files = write_newborn(tmp_path / "scan", age_weeks=40.0, spacing_mm=1.5)
    (tmp_path / "scans.tsv").write_text(f"name\tt1\tt2\tage_weeks\none\t{files['t1']}\t{files['t2']}\t29\n")
    out = tmp_path / "out"
    result = run_study(Segmenter(device="cpu"), scans_of_list(tmp_path / "scans.tsv"), out)
    assert result.table is not None
    facts = json.loads(next(out.rglob("*_dseg.json")).read_text(encoding="utf-8"))
    age = facts["AgeByVolumesWeeks"]
    assert age == pytest.approx(age_of_volumes(facts["VolumesML"]), abs=0.05) and abs(age - 40.0) <= 4.0
    assert "PredictedAgeWeeks" not in facts
    assert any("29.0 weeks" in text and f"{age:.1f} weeks" in text for text in facts["Warnings"])
    report = next(out.rglob("*_report.html")).read_text(encoding="utf-8")
    assert f"<th>Age by volumes</th><td>{age:.1f} weeks" in report
    head, row = (line.split("\t") for line in result.table.read_text(encoding="utf-8").splitlines())
    values = dict(zip(head, row, strict=True))
    assert (values["age_weeks"], values["predicted_age_weeks"]) == ("29", "n/a")
    assert float(values["age_by_volumes_weeks"]) == age
    assert f"{age:.1f} by volumes" in (out / "report.html").read_text(encoding="utf-8")
