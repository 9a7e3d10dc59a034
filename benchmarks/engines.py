"""Engines and precisions side by side on this machine: seconds of the network and DSC on scans that nobody trained on.

    python benchmarks/engines.py --data ../shared/data [--model neonatal-v2] [--threads 1] [--subjects 07,16,17]
        [--rows torch-fp32,openvino-int8] [--groups T1+T2,fetal] [--one-window] [--training]

Seconds are those of the processor's time (user and system, all threads), so that other programs do not count; every
scan is run by all engines one after the other, and the ratio to PyTorch in fp32 is formed scan by scan. With
``--one-window`` each engine also runs one window over the whole image. ``--training`` times a step of training instead.
Groups: held-out ALBERTs with T1+T2, T2 and T1; ``changed``, their T1 with another contrast; ``fetal``, the CRL atlas
(T2, seven classes: cortex with hippocampus).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.exported import read_export
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
from NeonatalSegLib.networks.openvino_engine import OpenVINOEngine
from NeonatalSegLib.networks.precision import BF16_FEATURES, features_text, processor_features, processor_name
from NeonatalSegLib.networks.sliding_window import Engine, predict_windows
from NeonatalSegLib.scans.preprocessing import Prepared, prepare
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.scans.way_back import labels_on_scan

ROWS = ("torch-fp32", "torch-bf16", "openvino-fp32", "openvino-int8")
GROUPS = ("T1+T2", "T2", "T1", "changed", "fetal")
EIGHT, SEVEN = (1, 2, 3, 5, 6, 7, 8, 9), (1, 2, 3, 5, 6, 7, 8)
FETAL_WEEKS = range(28, 40, 2)
Case = tuple[str, Prepared, np.ndarray]  # group, scan, truth on the scan's grid


def engines(model: Model, rows: list[str], threads: int) -> dict[str, Engine]:
    """The engines to compare; those that this machine or model does not have are left out, with a word."""
    out: dict[str, Engine] = {}
    for row in rows:
        name, precision = row.split("-")
        if name == "torch":
            if precision == "bf16" and not set(BF16_FEATURES) & processor_features():
                print(f"{row}: this processor only imitates it", flush=True)
            out[row] = _torch(model, precision, threads)
        elif made := _export(model, precision):
            out[row] = OpenVINOEngine(*made, precision, threads=threads)
        else:
            print(f"{row}: the model has no such export", flush=True)
    return out


def _torch(model: Model, precision: str, threads: int) -> Engine:
    import torch

    from NeonatalSegLib.networks.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    return TorchEngine(model.load_network(), precision=precision)


def _export(model: Model, precision: str) -> tuple[bytes, bytes] | None:
    found = read_export(model)
    if found is not None and found.precision == precision:
        return found.xml, found.weights
    if precision != "fp32":
        return None
    from NeonatalSegLib.networks.openvino_export import exported

    return exported(model.load_network(), model.network)


def cases(data: Path, groups: list[str], subjects: list[str], spacing_mm: float) -> Iterator[Case]:
    """Scans with their truth, prepared."""
    from NeonatalSegLib.experiments.annotator.domains import with_changed_contrast

    for subject in find_subjects(data / "alberts"):
        if subject.name.removeprefix("sub-ALBERT") not in subjects:
            continue
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(subject.labels)))
        for group in (g for g in groups if g != "fetal"):
            t1 = subject.t1 if group in ("T1+T2", "T1", "changed") else None
            scan = load_scan(t1, subject.t2 if group in ("T1+T2", "T2") else None, name=subject.name)
            if group == "changed":
                scan = with_changed_contrast(scan, int(subject.name[-2:]))
            yield group, prepare(scan, spacing_mm), truth
    for week in FETAL_WEEKS if "fetal" in groups else ():
        file = data / "fetal_crl" / f"week-{week}_T2w.nii.gz"
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(file).replace("T2w", "dseg")))
        yield "fetal", prepare(load_scan(None, file), spacing_mm), truth


def dsc(labels: np.ndarray, truth: np.ndarray, group: str) -> float:
    """Mean over the tissues that the truth tells apart."""
    if group == "fetal":
        labels = np.where(labels == 9, 2, labels)
    return float(np.mean(dice_per_class(labels, truth)[list(SEVEN if group == "fetal" else EIGHT)]))


def compare(model: Model, found: dict[str, Engine], scans: Iterator[Case], one_window: bool) -> None:
    """Run everything and print one table a group."""
    windows: dict[str, Callable[[Prepared], tuple[int, ...]]] = {"": lambda prepared: model.network.patch}
    if one_window:
        windows[", one window"] = lambda prepared: prepared.grid.shape
    rows: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for group, prepared, truth in scans:
        first: float | None = None
        for suffix, window in windows.items():
            for name, engine in found.items():
                started = time.process_time()
                probabilities, _ = predict_windows(engine, prepared.array, window(prepared), model.network.stride)
                seconds = time.process_time() - started
                first = seconds if first is None else first
                labels = labels_on_scan(probabilities, prepared.grid, prepared.target)
                row = (seconds, seconds / first, dsc(labels, truth, group))
                rows.setdefault(group, {}).setdefault(name + suffix, []).append(row)
                print(f"  {group} {name}{suffix}: {row[0]:.1f} s, {row[1]:.3f}, {row[2]:.4f}", flush=True)
    print(f"\n| scans | engine | processor's s | of {next(iter(found))} | mean DSC | loss |\n|---|---|---|---|---|---|")
    for group, of_engine in rows.items():
        best = statistics.mean(r[2] for r in next(iter(of_engine.values())))
        for name, values in of_engine.items():
            seconds, ratio, score = (statistics.mean(v[i] for v in values) for i in range(3))
            loss = best - score
            print(f"| {group} ({len(values)}) | {name} | {seconds:.1f} | {ratio:.3f} | {score:.4f} | {loss:+.4f} |")


def time_training(model: Model, threads: int, steps: int = 3) -> None:
    """Seconds of a training step (one patch) in bf16, fp32, and fp32 in the form that CPUs run fastest."""
    import torch

    from NeonatalSegLib.networks import cpu_form, torch_engine

    torch.set_num_threads(threads)
    real = cpu_form.best_precision
    cpu_form.best_precision = lambda device: "fp32"  # the faster form is for fp32
    fast = cpu_form.faster_on_cpu(model.load_network(), torch.device("cpu"))
    cpu_form.best_precision = real
    forms: dict[str, tuple[Any, str]] = {
        "fp32": (model.load_network(), "fp32"),
        "fp32, in the faster form": (fast, "fp32"),
        "bf16": (model.load_network(), "bf16"),
    }
    x = torch.randn(1, 2, *model.network.patch)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(steps + 1):
        for name, (network, precision) in forms.items():
            network.train()
            started = time.process_time()
            with torch_engine.autocast(torch.device("cpu"), precision):
                loss = sum(out.float().pow(2).mean() for out in network(x))
            loss.backward()
            network.zero_grad()
            times[name].append(time.process_time() - started)
    print("| a training step of one patch | processor's s | of fp32 |\n|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values[1:], times["fp32"][1:], strict=True))
        print(f"| {name} | {statistics.median(values[1:]):.2f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subjects", default="07,16,17")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--one-window", action="store_true")
    parser.add_argument("--training", action="store_true")
    a = parser.parse_args()
    model = find_model(a.model)
    print(f"{processor_name()}: {features_text(processor_features())}; {a.threads} threads; {model.name}", flush=True)
    if a.training:
        return time_training(model, a.threads)
    found = engines(model, a.rows.split(","), a.threads)
    compare(model, found, cases(a.data, a.groups.split(","), a.subjects.split(","), model.spacing_mm), a.one_window)
    return None


if __name__ == "__main__":
    main()
