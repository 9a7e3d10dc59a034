"""A model on scans as they are: a validation newborn with T1 and T2, either alone, and a folder of atlases.

    python benchmarks/native_scans.py --models neonatal-v2,runs/neonatal-v3-2/snapshot
        --data ../shared/data/alberts --newborns ALBERT10 --atlases ../shared/data/fetal_crl --windows patch,whole

Minutes on one core: to look at a model while it trains. Mean DSC over the eight tissues of a newborn; an atlas
(``NAME_T2w.nii.gz`` beside ``NAME_dseg.nii.gz``) is judged by the classes that its labels hold, its hippocampus being
cortex. ``whole``: one window over the whole scan instead of overlapping ones of the training patch.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from NeonatalSegLib.datasets.ages import prefixed
from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.torch_engine import predict_with_age
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.preprocessing import Prepared, prepare
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.scans.way_back import labels_on_scan
from NeonatalSegLib.tissues import PHYSIOLOGICAL

CORTEX, HIPPOCAMPUS = 2, 9
WINDOWS = ("patch", "whole")


@dataclass(frozen=True)
class Case:
    """A prepared scan and its true labels; ``atlas``: these put the hippocampus into the cortex."""

    name: str
    prepared: Prepared
    truth: np.ndarray
    age_weeks: float | None
    atlas: bool


def newborn_cases(data: Path, names: list[str], spacing_mm: float) -> Iterator[Case]:
    """Every newborn with T1 and T2, and with either alone."""
    known = {s.name: s for s in find_subjects(data)}
    for name in names:
        subject = known[prefixed("sub", name)]
        assert subject.labels is not None
        truth = sitk.GetArrayFromImage(read_labels(subject.labels).image)
        for contrast, present in CONTRASTS.items():
            paths = [getattr(subject, key) if key in present else None for key in ("t1", "t2")]
            prepared = prepare(load_scan(*paths, name=subject.name), spacing_mm)
            yield Case(f"{name} {contrast}", prepared, truth, subject.age_weeks, False)


def atlas_cases(folder: Path, spacing_mm: float) -> Iterator[Case]:
    """Every atlas of a folder, T2 alone; its age is the number in its name."""
    for file in sorted(folder.glob("*_T2w.nii.gz")):
        name = file.name.removesuffix("_T2w.nii.gz")
        truth = sitk.GetArrayFromImage(read_labels(folder / f"{name}_dseg.nii.gz").image)
        age = re.search(r"\d+", name)
        prepared = prepare(load_scan(None, file, name=name), spacing_mm)
        yield Case(name, prepared, truth, float(age.group()) if age else None, True)


def judge(model: Model, network: torch.nn.Module, case: Case, window: str) -> tuple[float, float | None, float]:
    """Mean DSC, weeks that the age is off (None where it is not told), seconds of CPU time of the network."""
    image = torch.from_numpy(case.prepared.array)
    size = model.network.patch if window == "patch" else image.shape[1:]
    began = time.process_time()
    probabilities, age = predict_with_age(network, image, model.network, window=size)
    seconds = time.process_time() - began
    found = labels_on_scan(probabilities.numpy(), case.prepared.grid, case.prepared.target)
    if case.atlas:
        found[found == HIPPOCAMPUS] = CORTEX
    held = [t.index for t in PHYSIOLOGICAL if bool((case.truth == t.index).any())]
    error = None if age is None or case.age_weeks is None else age - case.age_weeks
    return float(np.nanmean(dice_per_class(found, case.truth)[held])), error, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="names or folders, with commas")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--newborns", default="")
    parser.add_argument("--atlases", type=Path)
    parser.add_argument("--windows", default="patch", help=f"some of {', '.join(WINDOWS)}, with commas")
    arguments = parser.parse_args()
    models = [find_model(name) for name in arguments.models.split(",")]
    networks = [model.load_network() for model in models]
    spacing_mm = models[0].spacing_mm
    cases: list[Case] = []
    if arguments.data:
        cases += newborn_cases(arguments.data, arguments.newborns.split(","), spacing_mm)
    if arguments.atlases:
        cases += atlas_cases(arguments.atlases, spacing_mm)
    windows = arguments.windows.split(",")
    print(f"| model | window | {' | '.join(c.name for c in cases)} | atlases | age off, weeks | CPU s |")
    print(f"|---|---|{'---:|' * (len(cases) + 3)}")
    for model, network in zip(models, networks, strict=True):
        for window in windows:
            scores, errors, seconds = zip(*(judge(model, network, c, window) for c in cases), strict=True)
            atlases = [score for score, c in zip(scores, cases, strict=True) if c.atlas]
            told = [abs(e) for e in errors if e is not None]
            last = [
                f"{np.mean(atlases):.4f}" if atlases else "",
                f"{np.mean(told):.2f}" if told else "",
                f"{sum(seconds):.0f}",
            ]
            print(f"| {model.name} | {window} | {' | '.join([*(f'{s:.4f}' for s in scores), *last])} |", flush=True)
            if told:
                print(f"<!-- ages off: {', '.join('-' if e is None else f'{e:+.1f}' for e in errors)} -->", flush=True)


if __name__ == "__main__":
    main()
