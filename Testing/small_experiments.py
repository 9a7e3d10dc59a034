"""Experiments that take seconds: their data, their settings, and their runs as they stand on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.augmentation.transforms import AugmentationSettings
from NeonatalSegLib.experiments.paper.report import Preparation, run_experiment
from NeonatalSegLib.experiments.paper.settings import BudgetDesign, ExperimentSettings, SplitDesign, TransferDesign
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.training.run import TrainingSettings

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


def write_cache(folder: Path) -> Path:
    """Eight small newborns of 37-44 weeks whose tissue can be told from the intensity."""
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


def quiet(cache: Path) -> dict[str, Any]:
    return {"preparation": Preparation(cache), "report": lambda _: None}


def run(name: str, cache: Path, out: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Run an experiment and read its runs' results from disk."""
    run_experiment(name, None, SETTINGS, out, **{"runs": 2, **quiet(cache), **changes})
    return {
        f.parent.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted((out / "runs").glob("*/result.json"))
    }
