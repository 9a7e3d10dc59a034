"""Whole heads: what a head around the brain costs, and whether heads that are no newborn's are told.

    python benchmarks/whole_heads.py --data ../shared/data [--newborns 07,16,17] [--model neonatal-v2] [--threads 1]

DATA holds ``alberts`` and ``heads``. First table: held-out newborns, extracted and with their brain in a head that no
network has learned from, on the same voxels: mean DSC over the eight tissues, verdict, CPU seconds of the segmentation
without reading and writing. Second table: the heads of a child and of adults, whole and extracted with their masks,
with the verdict.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.brain_finder.pool import HELD_OUT_HEAD
from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS
from NeonatalSegLib.experiments.robustness.whole_head import in_whole_head, mask_of
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.scan import Scan, make_scan
from NeonatalSegLib.segmentation.segmenter import Segmentation, Segmenter


def timed(segmenter: Segmenter, scan: Scan, target: Grid | None = None) -> tuple[Segmentation, float]:
    """The result and its seconds of CPU time."""
    began = time.process_time()
    return segmenter.segment(scan, target=target), time.process_time() - began


def newborns(segmenter: Segmenter, data: Path, names: list[str]) -> None:
    known = {s.name[-2:]: s for s in find_subjects(data / "alberts")}
    print("| newborn | images | DSC extracted | DSC whole | difference | verdicts | CPU s extracted | whole | ratio |")
    print("|---|---|---:|---:|---:|---|---:|---:|---:|")
    differences, ratios = [], []
    for name in names:
        s = known[name]
        assert s.t1 and s.t2 and s.labels
        truth = read_labels(s.labels).image
        head = data / "heads" / f"{HELD_OUT_HEAD}_T1w.nii.gz"
        shown = {
            kind: in_whole_head(s.t1, s.t2, s.labels, around, name=name, age_weeks=s.age_weeks)
            for kind, around in {"extracted": None, "whole": head}.items()
        }
        for contrast, present in CONTRASTS.items():
            found = {}
            for kind, scan in shown.items():
                t1, t2 = (getattr(scan, key) if key in present else None for key in ("t1", "t2"))
                result, seconds = timed(segmenter, replace(scan, t1=t1, t2=t2), Grid.of(truth))
                maps = (sitk.GetArrayFromImage(image) for image in (result.label_map, truth))
                found[kind] = (mean_dice_no_background(dice_per_class(*maps)), seconds, result)
            (a, before, first), (b, after, second) = found["extracted"], found["whole"]
            differences.append(b - a)
            ratios.append(after / before)
            verdicts = " / ".join(
                r.plausibility.verdict + (" (masked)" if r.head_masked else "") for r in (first, second)
            )
            print(
                f"| {name} | {contrast} | {a:.4f} | {b:.4f} | {b - a:+.4f} | {verdicts} | {before:.1f} | {after:.1f} "
                f"| {after / before:.2f} |",
                flush=True,
            )
            if second.plausibility.verdict != "pass":
                print(f"<!-- {' '.join(f.text for f in second.plausibility.findings)} -->", flush=True)
    print(f"\nMean difference {np.mean(differences):+.4f}, largest fall {min(differences):+.4f}; ", end="")
    print(f"mean ratio of CPU time {np.mean(ratios):.2f}.\n", flush=True)


def others(segmenter: Segmenter, data: Path) -> None:
    print("| head | shown | verdict | why |\n|---|---|---|---|")
    for file in sorted((data / "heads").glob("*_T1w.nii.gz")):
        whole = sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkFloat32)
        mask = sitk.Cast(sitk.ReadImage(str(mask_of(file))) > 0, sitk.sitkFloat32)
        mask.CopyInformation(whole)
        for kind, image in {"whole": whole, "extracted": whole * mask}.items():
            result, _ = timed(segmenter, make_scan(t1=image, name=file.name.removesuffix("_T1w.nii.gz")))
            why = " ".join(f.text for f in result.plausibility.findings if f.level == "fail")
            print(
                f"| {file.name.removesuffix('_T1w.nii.gz')} | {kind} | {result.plausibility.verdict} | {why} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--newborns", default="07,16,17")
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    segmenter = Segmenter(options.model, device="cpu", threads=options.threads)
    newborns(segmenter, options.data, [n for n in options.newborns.split(",") if n])
    others(segmenter, options.data)


if __name__ == "__main__":
    main()
