"""Models between two models: their weights averaged, evaluated on the validation newborn.

    python benchmarks/mix_models.py --old neonatal-t1t2 --new runs/neonatal-robust/model
        --data ../shared/data/alberts --shares 0,0.35,0.6,1 --out runs/neonatal-robust/mixed

Saves the average with each share of the new model's weights as OUT-SHARE, and prints its mean DSC over the eight
tissues on the validation newborn of the new model, as it is and altered. One newborn: it decides between neighbours
in a line of models and nothing else.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.experiments.robustness.alterations import Alteration, altered, scaled
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter

CELLS: dict[str, tuple[Alteration, str]] = {
    "T1+T2": (Alteration(), "T1+T2"),
    "T2": (Alteration(), "T2"),
    "T1": (Alteration(), "T1"),
    "T2, 3 mm slices": (Alteration(spacing="3mm-slices"), "T2"),
    "T2, skull": (Alteration(head="skull"), "T2"),
    "bias": (Alteration(corruption="bias"), "T1+T2"),
    "scale 0.7": (Alteration(scale="0.7"), "T1+T2"),
}


def mixed(old: Model, new: Model, share: float, folder: Path) -> Model:
    """Weights ``(1 - share) * old + share * new``, saved with the facts of the new model's training.

    Where one of the two has no age head, the average has none.
    """
    settings = replace(new.network, age_head=old.network.age_head and new.network.age_head)
    network = build_network(settings)
    first, last = old.load_network().state_dict(), new.load_network().state_dict()
    network.load_state_dict({key: (1 - share) * first[key] + share * last[key] for key in network.state_dict()})
    facts = {
        key: value
        for key, value in new.metadata["neonatalseg"].items()
        if key in ("training", "training_subjects", "validation_subjects", "test_subjects", "ages_weeks")
    }
    before = old.facts.training_subjects
    facts["training_subjects"] = sorted({*facts.get("training_subjects", ()), *before})
    facts["mixed"] = {"old": [old.name, old.hash], "new": [new.name, new.hash], "share_of_new": share}
    return save_model(network, settings, folder, description=new.description, facts=facts)


def evaluate(model: Model, data: Path, name: str) -> list[float]:
    """Mean DSC of the eight tissues in every cell."""
    subject = {s.name: s for s in find_subjects(data)}[name]
    assert subject.labels is not None
    segmenter = Segmenter(model)
    scan, labels = load_scan(subject.t1, subject.t2, name=name), read_labels(subject.labels).image
    scores = []
    for alteration, contrast in CELLS.values():
        shown = altered(scan, alteration, seed=0)
        t1, t2 = (getattr(shown, key) if key in CONTRASTS[contrast] else None for key in ("t1", "t2"))
        truth = scaled(labels, float(alteration.scale))
        result = segmenter.segment(replace(shown, t1=t1, t2=t2), target=Grid.of(truth))
        arrays = (sitk.GetArrayFromImage(image) for image in (result.label_map, truth))
        scores.append(mean_dice_no_background(dice_per_class(*arrays)))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shares", default="0,0.5,0.75,1")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    old, new = find_model(arguments.old), find_model(arguments.new)
    (newborn,) = new.facts.validation_subjects
    print(f"| share of new | {' | '.join(CELLS)} | mean |\n|---|{'---:|' * (len(CELLS) + 1)}")
    for share in map(float, arguments.shares.split(",")):
        model = mixed(old, new, share, arguments.out.with_name(f"{arguments.out.name}-{share:g}"))
        scores = evaluate(model, arguments.data, newborn)
        cells = " | ".join(f"{score:.4f}" for score in scores)
        print(f"| {share:g} | {cells} | {np.mean(scores):.4f} |", flush=True)


if __name__ == "__main__":
    main()
