"""The age that a brain's tissues show: the fit of ``segmentation/growth.py:age_of_volumes``, and how far it is off.

    python benchmarks/age_by_volumes.py --data DATA [--model neonatal-v5]

DATA holds ``alberts``, ``templates`` and ``fetal_crl``. Fitted (ridge regression, a strength of 0.1 on features of unit
variance) to true label maps of the ALBERTs and templates that train. Printed: the three numbers, and errors in weeks by
true label maps: of those that the fit saw, each left out in turn; of the ALBERTs kept out and the fetal atlas. With
``--model`` also by what the model makes of the scans (T1+T2, T2, T1), as a user has it: 20 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.datasets.templates import find_templates
from NeonatalSegLib.evaluation.metrics import volumes_ml
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.growth import AGE_BY_VOLUMES, age_of_volumes
from NeonatalSegLib.segmentation.segmenter import Segmenter

KEPT_OUT = ("sub-ALBERT07", "sub-ALBERT10", "sub-ALBERT16", "sub-ALBERT17")
STRENGTH = 0.1


@dataclass(frozen=True)
class Brain:
    """One brain: its kind (fitted newborn, fitted template, kept out, fetal), age in weeks, files and true volumes."""

    name: str
    kind: str
    age_weeks: float
    t1: Path | None
    t2: Path | None
    truth_ml: dict[str, float]

    @property
    def features(self) -> tuple[float, float]:
        """Logarithms of the cortex in mL and of the deep grey matter's share of the brain."""
        v = self.truth_ml
        cortex = v["cortical_gm"] + v["hippocampus"]
        brain = cortex + v["wm"] + v["cerebellum"] + v["brainstem"] + v["deep_gm"]
        return np.log(cortex), np.log(v["deep_gm"] / brain)


def brains(data: Path) -> Iterator[Brain]:
    for subject in find_subjects(data / "alberts"):
        kind = "kept out" if subject.name in KEPT_OUT else "newborn"
        assert subject.labels is not None and subject.age_weeks is not None
        yield Brain(subject.name, kind, subject.age_weeks, subject.t1, subject.t2, true_volumes(subject.labels))
    for t in find_templates(data / "templates", tuple(range(28, 45, 2))):
        assert t.labels is not None and t.age_weeks is not None
        yield Brain(t.name, "template", t.age_weeks, t.t1, t.t2, true_volumes(t.labels))
    for week in range(28, 39, 2):
        stem = data / "fetal_crl" / f"week-{week}"
        truth = true_volumes(stem.with_name(f"week-{week}_dseg.nii.gz"))
        yield Brain(stem.name, "fetal", float(week), None, stem.with_name(f"week-{week}_T2w.nii.gz"), truth)


def true_volumes(file: Path) -> dict[str, float]:
    image = read_labels(file).image
    return volumes_ml(sitk.GetArrayFromImage(image), Grid.of(image).voxel_volume_mm3)


def fit(known: list[Brain]) -> np.ndarray:
    """The constant and the weights of the two features."""
    x, y = np.array([b.features for b in known]), np.array([b.age_weeks for b in known])
    middle, spread = x.mean(0), x.std(0)
    z = (x - middle) / spread
    weights = np.linalg.solve(z.T @ z + STRENGTH * np.eye(2), z.T @ (y - y.mean())) / spread
    return np.array([y.mean() - middle @ weights, *weights])


def told(numbers: np.ndarray, brain: Brain) -> float:
    return float(numbers @ [1.0, *brain.features])


def line(title: str, errors: dict[str, float]) -> None:
    values = np.array(list(errors.values()))
    shown = ", ".join(f"{name.removeprefix('sub-')} {e:+.1f}" for name, e in errors.items())
    print(f"| {title} | {np.abs(values).mean():.2f} | {np.sqrt((values**2).mean()):.2f} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="also by its segmentations")
    arguments = parser.parse_args()
    everyone = list(brains(arguments.data))
    known = [b for b in everyone if b.kind in ("newborn", "template")]
    numbers = fit(known)
    print(f"fitted {np.round(numbers, 2).tolist()}, in growth.py {list(AGE_BY_VOLUMES)}\n")
    print("| | mean error, weeks | root mean square | each |\n|---|---:|---:|---|")
    for kind in ("newborn", "template"):
        left = {b.name: told(fit([k for k in known if k is not b]), b) - b.age_weeks for b in known if b.kind == kind}
        line(f"{kind}s, true labels, each left out", left)
    for kind in ("kept out", "fetal"):
        line(f"{kind}, true labels", {b.name: told(numbers, b) - b.age_weeks for b in everyone if b.kind == kind})
    if not arguments.model:
        return
    segmenter = Segmenter(arguments.model)
    for kind in ("newborn", "template", "kept out", "fetal"):
        for contrast, present in CONTRASTS.items():
            errors = {}
            for b in (b for b in everyone if b.kind == kind):
                paths = [b.t1 if "t1" in present else None, b.t2 if "t2" in present else None]
                if sum(path is not None for path in paths) < len(present):
                    continue
                age = age_of_volumes(segmenter.segment(load_scan(*paths, name=b.name)).volumes_ml)
                errors[b.name] = float("nan") if age is None else age - b.age_weeks
            if errors:
                line(f"{kind}, {contrast} by {segmenter.model.name}", errors)


if __name__ == "__main__":
    main()
