"""Window size and overlap against accuracy, on the newborn that chose the checkpoint (never on the held-out ones).

python benchmarks/windows.py --data ../shared/data/alberts
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.models.registry import DEFAULT_MODEL
from NeonatalSegLib.networks.sliding_window import predict_windows
from NeonatalSegLib.scans.preprocessing import prepare
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.scans.way_back import labels_on_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter

INPUTS = {"T1+T2": ("t1", "t2"), "T2": ("t2",), "T1": ("t1",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    segmenter = Segmenter(DEFAULT_MODEL)
    chosen = segmenter.model.facts.validation_subjects
    subject = next(s for s in find_subjects(arguments.data) if s.name in chosen)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(subject.labels)))
    print("| inputs | window | overlap | mirror | mean DSC, 8 tissues | network, s |\n|---|---|---|---|---|---|")
    cases = [(96, 0.25, False), (96, 0.5, False), (96, 0.5, True), (128, 0.5, False), (176, 0.5, False)]
    for name, contrasts in INPUTS.items():
        scan = load_scan(*(getattr(subject, key) if key in contrasts else None for key in ("t1", "t2")))
        prepared = prepare(scan, segmenter.model.spacing_mm)
        for size, overlap, flips in cases:
            started, stride = time.perf_counter(), segmenter.model.network.stride
            found, _ = predict_windows(
                segmenter.engine, prepared.array, (size,) * 3, stride, flips=flips, overlap=overlap
            )
            seconds = time.perf_counter() - started
            labels = labels_on_scan(found, prepared.grid, prepared.target)
            dsc = mean_dice_no_background(dice_per_class(labels, truth))
            print(
                f"| {name} | {size} | {overlap} | {'yes' if flips else 'no'} | {dsc:.4f} | {seconds:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
