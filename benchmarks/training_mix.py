"""Which mix of real, hybrid and synthetic patches makes a network hold outside its training set.

    python benchmarks/training_mix.py --data ../shared/data/alberts --out runs/mix [--steps 500] [--seeds 2]
        [--mixes plain,real,mixed,synthetic]

Small networks (1.6 mm, patches of 48 voxels) are trained from random weights with one mix each and evaluated on
validation newborns that none of them saw and that are not the test newborns of the shipped model, as they are and
altered. It compares mixes with each other at this size; it does not say what the shipped model reaches.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.augmentation.randomisation import RandomisationSettings
from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.datasets.cache import build_cache
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.experiments.robustness.alterations import Alteration, altered, scaled
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.training.run import TrainingSettings, train

VALIDATION = ("sub-ALBERT05", "sub-ALBERT10")
TEST = ("sub-ALBERT07", "sub-ALBERT16", "sub-ALBERT17")  # kept for the shipped model; nobody chooses on them
NETWORK = NetworkSettings((16, 32, 64, 96, 128), 1.6, (48, 48, 48), heads=2)
MIXES: dict[str, RandomisationSettings | None] = {
    "plain": None,  # the first model's augmentation
    "real": RandomisationSettings(synthetic=0.0, hybrid=0.0),
    "mixed": RandomisationSettings(synthetic=0.2, hybrid=0.2),
    "synthetic": RandomisationSettings(synthetic=0.6, hybrid=0.2),
}
CELLS: dict[str, tuple[Alteration, str]] = {
    "T1+T2": (Alteration(), "T1+T2"),
    "T2": (Alteration(), "T2"),
    "T1": (Alteration(), "T1"),
    "3 mm slices": (Alteration(spacing="3mm-slices"), "T1+T2"),
    "skull": (Alteration(head="skull"), "T1+T2"),
    "noise": (Alteration(corruption="noise"), "T1+T2"),
    "bias": (Alteration(corruption="bias"), "T1+T2"),
    "motion": (Alteration(corruption="motion"), "T1+T2"),
    "scale 0.7": (Alteration(scale="0.7"), "T1+T2"),
}


def evaluate(model: Path, data: Path) -> dict[str, float]:
    """Mean DSC of the eight tissues in every cell, over the validation newborns."""
    segmenter = Segmenter(model)
    found = {s.name: s for s in find_subjects(data)}
    scores: dict[str, list[float]] = {name: [] for name in CELLS}
    for subject in (found[name] for name in VALIDATION):
        assert subject.labels is not None
        scan, labels = load_scan(subject.t1, subject.t2, name=subject.name), read_labels(subject.labels).image
        for name, (alteration, contrast) in CELLS.items():
            shown = altered(scan, alteration, seed=0)
            t1, t2 = (getattr(shown, key) if key in CONTRASTS[contrast] else None for key in ("t1", "t2"))
            truth = scaled(labels, float(alteration.scale))
            result = segmenter.segment(replace(shown, t1=t1, t2=t2), target=Grid.of(truth))
            arrays = (sitk.GetArrayFromImage(image) for image in (result.label_map, truth))
            scores[name].append(mean_dice_no_background(dice_per_class(*arrays)))
    return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--mixes", default=",".join(MIXES))
    arguments = parser.parse_args()
    cache = build_cache(find_subjects(arguments.data), arguments.out / "cache", NETWORK.spacing_mm)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        for mix in arguments.mixes.split(","):
            folder = arguments.out / f"{mix}-{seed}"
            if not (folder / "cells.json").exists():
                settings = TrainingSettings(
                    network=NETWORK, test=(*VALIDATION, *TEST), epochs=arguments.steps // 50, steps_per_epoch=50,
                    validate_every=1, batch_size=1, optimizer="adamw", learning_rate=4e-3, weight_decay=0.01,
                    seed=seed, randomisation=MIXES[mix],
                )  # fmt: skip
                model = train(cache, settings, folder).save(folder / "model")
                (folder / "cells.json").write_text(json.dumps(evaluate(model.folder, arguments.data)), encoding="utf-8")
            rows.setdefault(mix, []).append(json.loads((folder / "cells.json").read_text(encoding="utf-8")))
    print(f"| mix (seeds: {arguments.seeds}) | {' | '.join(CELLS)} | mean |\n|---|{'---:|' * (len(CELLS) + 1)}")
    for mix, found in rows.items():
        means = [float(np.mean([row[name] for row in found])) for name in CELLS]
        print(f"| {mix} | {' | '.join(f'{m:.3f}' for m in means)} | {np.mean(means):.3f} |")


if __name__ == "__main__":
    main()
