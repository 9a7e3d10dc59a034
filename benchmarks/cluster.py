"""Scans per minute with one and with several workers on this computer, one thread each, and how well that scales.

    python benchmarks/cluster.py --data ../shared/data/alberts [--workers 1 2] [--scans 12] [--model NAME]

A worker needs a core of its own: nothing else may run. Each number of workers segments the same scans into an empty
folder. "Warm" counts from the moment when every worker may have ended its first scan (starting, reading the model) to
the last scan; "whole" is the whole of it. Scaling is the rate over that of the first number times the ratio of workers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from NeonatalSegLib.clusters import Workers, cores
from NeonatalSegLib.segmentation.batch import run_study
from NeonatalSegLib.segmentation.study_scans import study_of_bids
from NeonatalSegLib.segmentation.workers import StudyWorkers


def rates(data: Path, workers: int, scans: int, model: str | None) -> tuple[float, float]:
    """Scans per minute: warm, and of the whole."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        segmenters = StudyWorkers(Workers(workers), model, "cpu", threads=1)
        wanted = study_of_bids(data).scans[:scans]
        started = time.perf_counter()
        result = run_study(
            segmenters,
            wanted,
            folder,
            report=lambda line: ends.append(time.perf_counter()) if line.startswith("[") else None,
        )
        whole = time.perf_counter() - started
    if result.failed or len(ends) != len(wanted):
        raise SystemExit(f"not all scans were segmented:\n{result.summary()}")
    return 60 * (len(ends) - workers) / (ends[-1] - ends[workers - 1]), 60 * len(ends) / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    if max(arguments.workers) > cores():
        raise SystemExit(f"{max(arguments.workers)} workers need as many cores; this process may use {cores()}.")
    print(f"load before: {os.getloadavg()[0]:.2f} on {cores()} cores (expected: near 0)\n")
    print("| workers | scans per minute, warm | whole | scaling, warm |\n|---:|---:|---:|---:|")
    first: tuple[int, float] | None = None
    for workers in arguments.workers:
        warm, whole = rates(arguments.data, workers, arguments.scans, arguments.model)
        first = first or (workers, warm)
        print(f"| {workers} | {warm:.2f} | {whole:.2f} | {warm / first[1] * first[0] / workers:.2f} |", flush=True)


if __name__ == "__main__":
    main()
