"""The shipped model on newborns that training never saw: the floors that it was released under."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.experiments.robustness.alterations import Alteration, altered
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(device="cpu")


@pytest.fixture(scope="module")
def truths(segmenter: Segmenter, data_folder: Path) -> dict[str, sitk.Image]:
    """The label maps of the newborns that the model's training kept out."""
    held_out = segmenter.model.facts.test_subjects
    found = {s.name: s.labels for s in find_subjects(data_folder / "alberts") if s.name in held_out}
    assert len(found) == len(held_out) >= 3
    return {name: sitk.ReadImage(str(labels)) for name, labels in found.items()}


@pytest.fixture(scope="module")
def score(
    segmenter: Segmenter, truths: dict[str, sitk.Image], data_folder: Path
) -> Callable[[str, str, Alteration], float]:
    """Mean DSC of a newborn by T1, T2 or both, as it is or altered; each is segmented once."""

    @cache
    def of(name: str, inputs: str, alteration: Alteration) -> float:
        anat = data_folder / "alberts" / name / "anat"
        t1, t2 = (anat / f"{name}_{kind.upper()}w.nii.gz" if kind in inputs else None for kind in ("t1", "t2"))
        scan = altered(load_scan(t1, t2), alteration, seed=0)
        found = segmenter.segment(scan, target=Grid.of(truths[name]))
        labels = (sitk.GetArrayFromImage(image) for image in (found.label_map, truths[name]))
        return mean_dice_no_background(dice_per_class(*labels))

    return of


@pytest.mark.parametrize(("inputs", "floor"), [("t1+t2", 0.90), ("t2", 0.88), ("t1", 0.80)])
def test_accuracy_on_kept_out_newborns(
    score: Callable[..., float], truths: dict[str, sitk.Image], inputs: str, floor: float
) -> None:
    assert np.mean([score(name, inputs, Alteration()) for name in truths]) >= floor


@pytest.mark.parametrize("inputs", ["t1+t2", "t2"])
def test_a_skull_costs_little_on_a_kept_out_newborn(
    score: Callable[..., float], truths: dict[str, sitk.Image], inputs: str
) -> None:
    assert "sub-ALBERT07" in truths
    plain, skull = (score("sub-ALBERT07", inputs, a) for a in (Alteration(), Alteration(head="skull")))
    assert skull > plain - 0.03
