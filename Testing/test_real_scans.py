"""The shipped model on newborns that training never saw: the floors that it was released under."""

from __future__ import annotations

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


@pytest.mark.parametrize(("inputs", "floor"), [("t1+t2", 0.90), ("t2", 0.88), ("t1", 0.80)])
def test_accuracy_on_kept_out_newborns(data_folder: Path, inputs: str, floor: float) -> None:
    segmenter = Segmenter(device="cpu")
    held_out = segmenter.model.facts.test_subjects
    scores = []
    for subject in find_subjects(data_folder / "alberts"):
        if subject.name in held_out:
            scan = load_scan(subject.t1 if "t1" in inputs else None, subject.t2 if "t2" in inputs else None)
            found = sitk.GetArrayFromImage(segmenter.segment(scan).label_map)
            truth = sitk.GetArrayFromImage(sitk.ReadImage(str(subject.labels)))
            scores.append(mean_dice_no_background(dice_per_class(found, truth)))
    assert len(scores) == len(held_out) >= 3
    assert np.mean(scores) >= floor


@pytest.mark.parametrize("inputs", ["t1+t2", "t2"])
def test_a_skull_costs_little_on_a_kept_out_newborn(data_folder: Path, inputs: str) -> None:
    subject = next(s for s in find_subjects(data_folder / "alberts") if s.name == "sub-ALBERT07")
    segmenter = Segmenter(device="cpu")
    assert subject.name in segmenter.model.facts.test_subjects
    scan = load_scan(subject.t1 if "t1" in inputs else None, subject.t2)
    labels = sitk.ReadImage(str(subject.labels))
    truth = sitk.GetArrayFromImage(labels)
    scores = []
    for shown in (scan, altered(scan, Alteration(head="skull"), seed=0)):
        found = segmenter.segment(shown, target=Grid.of(labels))
        scores.append(mean_dice_no_background(dice_per_class(sitk.GetArrayFromImage(found.label_map), truth)))
    assert scores[1] > scores[0] - 0.03
