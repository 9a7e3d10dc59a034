"""The demonstration: a synthetic newborn from drawing to report. It shows that everything works, not how accurate."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.outputs import segment_to_folder
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import PHYSIOLOGICAL

DEMO_SEED = 2026  # not one of the phantoms in the training mix


def run_demo(
    folder: str | Path,
    age_weeks: float,
    model: str | Path | None,
    device: str,
    progress: Progress | None = None,
    *,
    engine: str = "auto",
) -> tuple[dict[str, Path], str]:
    """Draw a newborn into ``folder/scan``, segment it into ``folder``; returns files and a DSC table."""
    from NeonatalSegLib.datasets.phantom import write_newborn

    folder = Path(folder)
    segmenter = Segmenter(model, device, engine)
    files = write_newborn(folder / "scan", age_weeks=age_weeks, seed=DEMO_SEED)
    scan = load_scan(files["t1"], files["t2"], age_weeks=age_weeks)
    written = segment_to_folder(segmenter, scan, folder, progress=progress)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(files["labels"])))
    dsc = dice_per_class(sitk.GetArrayFromImage(sitk.ReadImage(str(written["dseg"]))), truth)
    lines = ["DSC against the synthetic truth (a drawing: says nothing about accuracy on newborns)"]
    lines += [f"  {t.name:<24}{dsc[t.index]:.3f}" for t in PHYSIOLOGICAL]
    lines.append(f"  {'mean':<24}{mean_dice_no_background(dsc):.3f}")
    return written, "\n".join(lines)
