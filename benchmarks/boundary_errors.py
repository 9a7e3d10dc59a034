"""Where a model is wrong: beside a boundary, or elsewhere.

    python benchmarks/boundary_errors.py --data ../shared/data/alberts --model neonatal-v5

For every newborn that neither trained nor chose the model (T1 and T2): the share of wrong voxels that touch, by a
face, a voxel of the class that they were given (model and label map part by one voxel at a boundary); the mean
DSC over the eight tissues; and that which the same result would have if all other errors were mended.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES


def beside(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(z, y, x) bool: wrong voxels that touch a voxel which is truly what they were labelled as."""
    out = np.zeros(found.shape, bool)
    for label in range(NUMBER_OF_CLASSES):
        out |= (found == label) & (truth != label) & ndimage.binary_dilation(truth == label)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    segmenter = Segmenter(arguments.model)
    subjects = {s.name: s for s in find_subjects(arguments.data)}
    print("| newborn | wrong voxels beside a boundary | mean DSC | without all other errors |\n|---|---:|---:|---:|")
    for name in segmenter.model.facts.test_subjects:
        subject = subjects[name]
        assert subject.labels is not None
        truth = sitk.GetArrayFromImage(read_labels(subject.labels).image)
        result = segmenter.segment(load_scan(subject.t1, subject.t2, name=name))
        found = sitk.GetArrayFromImage(result.label_map)
        wrong, near = found != truth, beside(found, truth)
        mended = np.where(wrong & ~near, truth, found)
        scores = [mean_dice_no_background(dice_per_class(labels, truth)) for labels in (found, mended)]
        print(f"| {name} | {near.sum() / wrong.sum():.3f} | {scores[0]:.4f} | {scores[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
