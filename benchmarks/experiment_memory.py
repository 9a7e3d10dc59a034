"""Resident memory of a run of the paper's experiments on scans of the dHCP's size.

    python benchmarks/experiment_memory.py --scans 342 --workers 4

Draws arrays of 217 x 290 x 290 voxels (noise: memory does not ask what is in them), plans a third of the slices of
every scan, and has loader processes draw the paper's patches (128 voxels) until every scan was touched. ``--distinct``
files are written and the other scans are links to them: disk is saved, and what a process keeps or maps is the same.
Prints the largest sum over all processes of resident memory (RSS, in which what processes share counts in each) and, on
Linux, of proportional memory (PSS, in which it counts once), and the same at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from torch.utils.data import DataLoader

from NeonatalSegLib.datasets.cache import read_cache
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings
from NeonatalSegLib.experiments.paper.trial import label_masks
from NeonatalSegLib.training.patches import EpochSampler, PatchDataset

SHAPE = (217, 290, 290)


def draw_cache(folder: Path, scans: int, distinct: int) -> None:
    """A cache of ``scans`` subjects."""
    random, index = np.random.default_rng(0), {}
    for number in range(scans):
        name, of = f"sub-{number:03d}", f"sub-{number % distinct:03d}"
        index[name] = {"age_weeks": 40.0}
        for key in ("image", "labels"):
            if number >= distinct:
                (folder / f"{name}_{key}.npy").hardlink_to(folder / f"{of}_{key}.npy")
            elif key == "image":
                np.save(folder / f"{name}_image.npy", random.normal(size=(2, *SHAPE)).astype(np.float16))
            else:
                np.save(folder / f"{name}_labels.npy", random.integers(0, 10, SHAPE, np.uint8))
    (folder / "cache.json").write_text(json.dumps({"format": 1, "spacing_mm": 0.5, "subjects": index}))


def sums() -> tuple[float, float]:
    """(RSS, PSS) of this process and its children in GiB; PSS is NaN where the system does not tell it."""
    rss = pss = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            rss += process.memory_info().rss
            pss += getattr(process.memory_full_info(), "pss", float("nan"))
        except psutil.Error:
            continue
    return rss / 2**30, pss / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=342)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--distinct", type=int, default=6)
    parser.add_argument("--elastic", type=float, default=0.24, help="Share of deformed patches (the paper's 0.24).")
    arguments = parser.parse_args()
    settings = ExperimentSettings.paper().training
    changes = dataclasses.replace(settings.augmentation, elastic=arguments.elastic)
    settings = dataclasses.replace(settings, in_turn=True, augmentation=changes)
    peak, ended = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            peak[:] = [max(a, b) for a, b in zip(peak, sums(), strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        draw_cache(Path(folder), arguments.scans, arguments.distinct)
        subjects = read_cache(folder)
        threading.Thread(target=watch, daemon=True).start()
        print(f"start: RSS {sums()[0]:.2f}, PSS {sums()[1]:.2f} GiB", flush=True)
        slices = {"axis": "random", "percent": 33, "selection": "random", "seed": 0}
        known = label_masks(subjects, slices, 0.5)
        print(f"with {len(known)} masks: RSS {sums()[0]:.2f}, PSS {sums()[1]:.2f} GiB", flush=True)
        patches = PatchDataset(subjects, settings, known)
        loader = DataLoader(patches, 2, sampler=EpochSampler(len(subjects)), num_workers=arguments.workers)
        started = time.monotonic()
        for number, _ in enumerate(loader, 1):
            if number % 20 == 0:
                print(f"{2 * number} scans touched: RSS {sums()[0]:.2f}, PSS {sums()[1]:.2f} GiB", flush=True)
            last = sums()
        ended.set()
        print(
            f"{len(subjects)} scans, {arguments.workers} loader processes, {time.monotonic() - started:.0f} s: at the "
            f"end RSS {last[0]:.2f}, PSS {last[1]:.2f} GiB; at most RSS {peak[0]:.2f}, PSS {peak[1]:.2f} GiB; "
            f"{os.cpu_count()} cores"
        )


if __name__ == "__main__":
    main()
