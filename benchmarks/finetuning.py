"""Time and memory of one fine-tuning: 10 % of the slices of one newborn, whole command, beside one segmentation.

python benchmarks/finetuning.py --data ALBERTS
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import SimpleITK as sitk

from NeonatalSegLib.annotation.new_study import start_study
from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.annotation.study import StudyScan
from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.scans.grid import plane
from NeonatalSegLib.scans.labels import read_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="BIDS folder with label maps")
    parser.add_argument("--subject", default="sub-ALBERT16")
    parser.add_argument("--strategy", default="full")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    given = parser.parse_args()
    subject = next(s for s in find_subjects(given.data) if s.name == given.subject)
    assert subject.labels is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["NEONATALSEG_MODELS"] = str(folder / "models")
        settings = BudgetSettings(10, "percent", "scan", "axial", "equidistant", "brain")
        scan = StudyScan(subject.name, subject.t1, subject.t2, subject.age_weeks)
        start_study(folder / "study", [scan], settings, prefill="empty")
        truth = sitk.GetArrayFromImage(read_labels(subject.labels).image)
        with AnnotationSession.open(folder / "study", "truth") as project:
            for item in project.items:
                s = item.slice
                project.start(s.key)
                project.complete(s.key, truth[plane(project.plan.grids[s.scan], s.axis, s.index)], 0.0)
            print(f"{len(project.items)} slices of {subject.name}")
        device = ("--device", given.device)
        segment, _, _ = timed("segment", "--t1", subject.t1, "--t2", subject.t2, "--out", folder / "out", *device)
        tuned, memory, output = timed("finetune", folder / "study", "--strategy", given.strategy, *device)
        print(output)
        print(f"finetune {tuned:.0f} s, {memory:.2f} GB at most; segment of the same scan {segment:.1f} s")
        print(f"ratio {tuned / segment:.1f}")


def timed(*arguments: object) -> tuple[float, float, str]:
    """Seconds of one command, its peak memory in GB, and what it said."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "NeonatalSegLib.cli", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    peak = 0
    watched = psutil.Process(process.pid)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    output, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{arguments[0]} failed with status {process.returncode}")
    return time.perf_counter() - started, peak / 1e9, output


if __name__ == "__main__":
    main()
