"""The age that a brain's tissues show: the fit of ``segmentation/growth.py:age_of_volumes``, and how far it is off.

    python benchmarks/age_by_volumes.py --data DATA --model neonatal-v5 --out VOLUMES.json

DATA holds ``alberts``, ``templates`` and ``fetal_crl``. Fitted (ridge regression, a strength of 0.1 on features of unit
variance) to the true label maps of the ALBERTs and templates that train, then stretched by a straight line to the
volumes that the model makes of them (T1+T2, T2, T1), which are what a user has: it sees more cortex in the youngest.
Printed: the three numbers, and errors in weeks of those that the fit saw, each left out in turn; of the ALBERTs kept
out and the fetal atlas, by the model and by true label maps. VOLUMES.json is kept, so that the same command goes on;
12 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.datasets.templates import find_templates
from NeonatalSegLib.evaluation.metrics import volumes_ml
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.growth import AGE_BY_VOLUMES
from NeonatalSegLib.segmentation.segmenter import Segmenter

KEPT_OUT = ("sub-ALBERT07", "sub-ALBERT10", "sub-ALBERT16", "sub-ALBERT17")
STRENGTH = 0.1


@dataclass(frozen=True)
class Brain:
    """One brain: its kind (newborn and template: fitted; kept out, fetal), age in weeks, files and true volumes."""

    name: str
    kind: str
    age_weeks: float
    t1: Path | None
    t2: Path | None
    truth_ml: dict[str, float]


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


def features(v: Mapping[str, float]) -> tuple[float, float]:
    """Logarithms of the cortex in mL and of the deep grey matter's share of the brain, as ``growth.shown_age`` takes
    them; here the brainstem may be 0, since the templates' labels count it to the cerebellum."""
    cortex = v["cortical_gm"] + v["hippocampus"]
    brain = cortex + v["wm"] + v["cerebellum"] + v["brainstem"] + v["deep_gm"]
    return np.log(cortex), np.log(v["deep_gm"] / brain)


def seen_by(segmenter: Segmenter, everyone: list[Brain], kept: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Volumes by name and contrast, as the model makes them; those in the file ``kept`` are not made again."""
    seen: dict[str, dict[str, dict[str, float]]] = read_object(kept, "volumes") if kept.exists() else {}
    for brain in everyone:
        for contrast, present in CONTRASTS.items():
            paths = [brain.t1 if "t1" in present else None, brain.t2 if "t2" in present else None]
            if sum(p is not None for p in paths) < len(present) or contrast in seen.setdefault(brain.name, {}):
                continue
            seen[brain.name][contrast] = segmenter.segment(load_scan(*paths, name=brain.name)).volumes_ml
            write_text(kept, json.dumps(seen, indent=1))
    return seen


def fit(volumes: list[Mapping[str, float]], ages_weeks: list[float]) -> np.ndarray:
    """The constant and the weights of the two features."""
    x, y = np.array([features(v) for v in volumes]), np.array(ages_weeks)
    middle, spread = x.mean(0), x.std(0)
    z = (x - middle) / spread
    weights = np.linalg.solve(z.T @ z + STRENGTH * np.eye(2), z.T @ (y - y.mean())) / spread
    return np.array([y.mean() - middle @ weights, *weights])


def line(title: str, brains: list[Brain], told: list[float]) -> None:
    errors = np.array(told) - [b.age_weeks for b in brains]
    shown = ", ".join(f"{b.name.removeprefix('sub-')} {e:+.1f}" for b, e in zip(brains, errors, strict=True))
    print(f"| {title} | {np.abs(errors).mean():.2f} | {np.sqrt((errors**2).mean()):.2f} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    everyone = list(brains(arguments.data))
    seen = seen_by(Segmenter(arguments.model), everyone, arguments.out)

    def fitted(without: str = "") -> np.ndarray:
        known = [b for b in everyone if b.kind in ("newborn", "template") and b.name != without]
        numbers = fit([b.truth_ml for b in known], [b.age_weeks for b in known])
        pairs = [(numbers @ [1.0, *features(v)], b.age_weeks) for b in known for v in seen[b.name].values()]
        slope, constant = np.polyfit(*zip(*pairs, strict=True), 1)
        return slope * numbers + [constant, 0.0, 0.0]

    numbers = fitted()
    print(f"fitted {np.round(numbers, 2).tolist()}, in growth.py {list(AGE_BY_VOLUMES)}\n")
    print("| | mean error, weeks | root mean square | each |\n|---|---:|---:|---|")
    for kind in ("newborn", "template", "kept out", "fetal"):
        for contrast in CONTRASTS:
            some = [b for b in everyone if b.kind == kind and contrast in seen[b.name]]
            left_out = kind in ("newborn", "template")
            by = {b.name: fitted(b.name) if left_out else numbers for b in some}
            told = [float(by[b.name] @ [1.0, *features(seen[b.name][contrast])]) for b in some]
            if some:
                line(f"{kind}, {contrast}{', each left out' if left_out else ''}", some, told)
        some = [b for b in everyone if b.kind == kind]
        line(f"{kind}, true labels", some, [float(numbers @ [1.0, *features(b.truth_ml)]) for b in some])


if __name__ == "__main__":
    main()
