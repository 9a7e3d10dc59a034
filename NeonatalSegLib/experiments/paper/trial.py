"""One run of an experiment: train on some newborns as its job says, judge on others, and account for it.

A job is what JSON can hold::

    {"condition": "axial", "run": 0,
     "train": ["sub-01", ...], "evaluate": {"validation": [...], "test": [...]},
     "training": TrainingSettings as JSON (its seed is the run's),
     "slices": {"axis": "axial", "percent": 33, "selection": "random", "seed": 0} or null for full labels,
     "start": "source-run0" or null, "strategy": one of strategies.STRATEGIES or null,
     "arrays": digest of the prepared arrays of all these newborns}
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from NeonatalSegLib import __version__
from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.errors import NeonatalSegError, is_out_of_memory
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.files.atomic import write_file
from NeonatalSegLib.networks.network import build_network, parameter_count
from NeonatalSegLib.networks.strategies import trainable_parameters
from NeonatalSegLib.networks.torch_engine import predict_with_age
from NeonatalSegLib.training.run import TrainingSettings, train

CENTRAL = 0.9  # share of an axis from which BudgetSettings(extent="central") takes slices, as the paper's code does
WEIGHTS = "network.pt"  # in the folder of a run


def trial(job: dict[str, Any], folder: Path, cache: str | Path, loader_workers: int = 0) -> dict[str, Any]:
    """Run one job; see the module. Interrupted inside a training, it goes on from the last epoch's checkpoint.

    Args:
        job, folder: from ``runs.run_jobs``.
        cache: folder of prepared arrays at the network's spacing.
        loader_workers: processes that draw patches; 0 inside Dask's own processes.

    Returns:
        Figures of the run; ``subjects`` holds the DSC of every class (None where a class is in neither label map).
    """
    subjects = {s.name: s for s in read_cache(cache)}
    settings = TrainingSettings.from_json(job["training"])
    training = [_of(subjects, name) for name in job["train"]]
    known = label_masks(training, job["slices"], settings.network.spacing_mm) if job["slices"] else {}
    network, trained_parameters = _network(job, folder, settings)
    started = time.perf_counter()
    speed: dict[str, Any] = {"steps": 0, "patches_per_second": None, "loader_share": None, "loss": None}
    if job["strategy"] != "none":
        done = train(training, settings, folder / "training", known=known, network=network, workers=loader_workers)
        network = done.network
        speed = {
            "steps": settings.epochs * settings.steps_per_epoch,
            "patches_per_second": done.patches_per_second,
            "loader_share": done.loader_share,
            "loss": done.loss,
        }
    seconds = time.perf_counter() - started
    assert network is not None
    evaluated = [
        evaluate(network, _of(subjects, name), settings) | {"set": side}
        for side, names in job["evaluate"].items()
        for name in names
    ]
    weights = network.state_dict()
    write_file(folder / WEIGHTS, lambda part: torch.save(weights, part))
    if (folder / "training").exists():
        for checkpoint in (folder / "training").glob("*.ckpt"):  # of no more use, and large
            checkpoint.unlink()
    total = parameter_count(network)
    return {
        "condition": job["condition"],
        "run": job["run"],
        "seed": settings.seed,
        "seconds": seconds,
        **speed,
        "parameters": total,
        "trained_parameters": total if trained_parameters is None else trained_parameters,
        "labelled": _labelled(training, known),
        "training_age_weeks": _mean_age(training),
        "subjects": evaluated,
        "trained_on": job["train"],
        "versions": versions(),
    }


def label_masks(subjects: Sequence[CachedSubject], slices: Mapping[str, Any], spacing_mm: float) -> dict[str, Any]:
    """(z, y, x) bool masks of the voxels in labelled slices, by subject; arrays lie along the patient's axes.

    The percentage is of all slices of the axis; they are taken from its central 90 %. The masks repeat one row of
    slices without taking memory for it, and can only be read.
    """
    from NeonatalSegLib.annotation.plan import BudgetSettings
    from NeonatalSegLib.annotation.planning import plan_slices
    from NeonatalSegLib.annotation.slice_selection import ScanToPlan
    from NeonatalSegLib.scans.grid import Grid, voxel_axis

    settings = BudgetSettings(
        amount=slices["percent"] / CENTRAL,
        unit="percent",
        per="scan",
        axis=slices["axis"],
        selection=slices["selection"],
        extent="central",
        seed=slices["seed"],
    )

    def scans() -> Iterator[ScanToPlan]:  # one after the other: hundreds of heads at once would fill the memory
        for subject in subjects:
            labels = np.array(subject.labels())
            z, y, x = labels.shape
            grid = Grid((x, y, z), (spacing_mm,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel().tolist()))
            yield ScanToPlan(subject.name, grid, labels > 0, None, None)

    plan, masks = plan_slices(scans(), settings), {}
    for name, grid in plan.grids.items():
        chosen = plan.for_scan(name)
        (along,) = {2 - voxel_axis(grid, s.axis) for s in chosen}  # a scan's slices lie along one axis
        row = np.zeros([n if i == along else 1 for i, n in enumerate(grid.shape)], bool)
        row.ravel()[[s.index for s in chosen]] = True
        masks[name] = np.broadcast_to(row, grid.shape)
    return masks


def evaluate(
    network: torch.nn.Module,
    subject: CachedSubject,
    settings: TrainingSettings,
    devices: Sequence[str] = ("cuda", "cpu"),
) -> dict[str, Any]:
    """Name, age, DSC of every class on the network's grid and, with an age head, the age that the network tells.

    Where a device's memory does not do for the whole scan the next one is taken, and "note" says so.
    """
    usable = [torch.device(d) for d in devices if not d.startswith("cuda") or torch.cuda.is_available()]
    note = {}
    for device in usable:
        try:
            image = torch.from_numpy(np.array(subject.image(), np.float32)).to(device)
            probabilities, age = predict_with_age(network.to(device), image, settings.network)
            predicted = probabilities.argmax(0).cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if device.type == "cuda":
                torch.cuda.empty_cache()
            note = {"note": f"{device.type} memory did not do for {subject.name}: it was evaluated on the next device."}
            continue
        dsc = dice_per_class(predicted, np.array(subject.labels()))
        return {
            "name": subject.name,
            "age_weeks": subject.age_weeks,
            "told_age_weeks": age,
            "dsc": [None if np.isnan(v) else float(v) for v in dsc],
            **note,
        }
    raise NeonatalSegError(f"There is too little memory to evaluate {subject.name}, on the CPU as well.")


def _network(
    job: Mapping[str, Any], folder: Path, settings: TrainingSettings
) -> tuple[torch.nn.Module | None, int | None]:
    """(network to start from or None for random weights, number of trained parameters or None for all)."""
    if job["start"] is None:
        return None, None
    network = build_network(settings.network)
    network.load_state_dict(torch.load(folder.parent / job["start"] / WEIGHTS, map_location="cpu", weights_only=True))
    return network, trainable_parameters(network, settings.network, job["strategy"]).trained


def _labelled(training: Sequence[CachedSubject], known: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Scans, 2D slices (a full label map counts its axial ones) and voxels of the head that carry a label."""
    slices = voxels = 0
    for subject in training:
        head = np.array(subject.labels()) > 0
        mask = known.get(subject.name)
        if mask is None:
            slices += head.shape[0]
        else:
            slices += max(int(mask.all(axis=others).sum()) for others in ((1, 2), (0, 2), (0, 1)))
            head &= mask
        voxels += int(head.sum())
    return {"scans": len(training), "slices": slices, "voxels": voxels}


def _mean_age(training: Sequence[CachedSubject]) -> float | None:
    ages = [s.age_weeks for s in training if s.age_weeks is not None]
    return float(np.mean(ages)) if ages else None


def _of(subjects: Mapping[str, CachedSubject], name: str) -> CachedSubject:
    if name not in subjects:
        raise NeonatalSegError(f"The cache does not hold {name}: build it from the data of this experiment.")
    return subjects[name]


def versions() -> dict[str, str]:
    """What it was run with."""
    packages = ("torch", "monai", "lightning", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    return {
        "neonatalseg": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": device,
    }
