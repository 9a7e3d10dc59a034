"""How well a label map agrees with another: overlap, surface distance and volume, per class.

Pure functions on integer label arrays of any number of axes; a spacing is given in the order of the array's axes.
Nothing here reads a file; :mod:`NeonatalSegLib.evaluation.folders` does that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, TISSUES

Labels = npt.NDArray[np.integer]
PerClass = npt.NDArray[np.float64]

HAUSDORFF_PERCENTILE = 95.0


def dice_per_class(pred: Labels, truth: Labels, classes: int = NUMBER_OF_CLASSES) -> PerClass:
    """Dice similarity coefficient of each class, DSC = 2 |P and T| / (|P| + |T|) (Dice, Ecology 26, 1945).

    Args:
        pred: predicted label values, 0 to ``classes - 1``.
        truth: true label values, of the same shape.
        classes: number of classes.

    Returns:
        Array [classes]: 0-1; NaN for a class that neither array holds, 0 for a class that only one of them holds.

    Raises:
        ValueError: shapes differ, an array is not of integers, or a value lies outside the classes.

    Example:
        >>> dice_per_class(np.array([3, 3, 0]), np.array([3, 3, 3]))[3]
        np.float64(0.8)
    """
    _check_pair(pred, truth, classes)
    in_pred = np.bincount(pred.ravel(), minlength=classes)
    in_truth = np.bincount(truth.ravel(), minlength=classes)
    in_both = np.bincount(truth[pred == truth], minlength=classes)
    total = (in_pred + in_truth).astype(np.float64)
    return np.divide(2.0 * in_both, total, out=np.full(classes, np.nan), where=total > 0)


def mean_dice(per_class: PerClass) -> float:
    """Mean DSC over the ten classes, the two backgrounds included: the paper's "Mean DSC" (Table 1).

    Classes that are NaN (in neither label map) are left out; NaN when nothing is left.

    Args:
        per_class: DSC of each class [10], as from :func:`dice_per_class`.
    """
    return _mean_of_finite(_ten(per_class))


def mean_dice_no_background(per_class: PerClass) -> float:
    """Mean DSC over the eight physiological tissues: the paper's "Mean DSC (no BG)" (Table 1).

    Leaves out class 0 (background) and class 4 (intracranial background), as the paper's caption says. Classes that
    are NaN (in neither label map) are left out too; NaN when nothing is left.

    Args:
        per_class: DSC of each class [10], as from :func:`dice_per_class`.

    Example:
        >>> mean_dice_no_background(dice_per_class(np.array([3, 3, 0]), np.array([3, 3, 3])))
        0.8
    """
    return _mean_of_finite(_ten(per_class)[[tissue.index for tissue in PHYSIOLOGICAL]])


def surface_distances(pred: Labels, truth: Labels, spacing_mm: Sequence[float]) -> tuple[PerClass, PerClass]:
    """95th percentile Hausdorff distance and average symmetric surface distance of each class, in mm (MONAI).

    A surface is the set of a class's voxels with a face neighbour outside the class; voxels at the edge of the array
    are surface. With d(a, B) the distance from voxel centre a to the nearest voxel centre of surface B:

        HD95 = max(P95 of d(p, T) over p in P, P95 of d(t, P) over t in T)
        ASSD = (sum of d(p, T) over P + sum of d(t, P) over T) / (|P| + |T|)

    Class 0 usually fills the edge of the image in both arrays; that shared part counts as surface at distance 0.

    Args:
        pred: predicted label values 0-9, two or three axes.
        truth: true label values, of the same shape.
        spacing_mm: voxel size along each axis of the arrays.

    Returns:
        (HD95, ASSD), each [10] in mm; NaN for a class that one of the arrays does not hold.

    Raises:
        ValueError: shapes differ, a value is not 0-9, or the spacing does not fit the arrays.
    """
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    _check_pair(pred, truth, NUMBER_OF_CLASSES)
    spacing = [float(step) for step in spacing_mm]
    if len(spacing) != pred.ndim or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"expected {pred.ndim} positive spacings in mm, got {tuple(spacing_mm)}")
    hd95 = np.full(NUMBER_OF_CLASSES, np.nan)
    assd = np.full(NUMBER_OF_CLASSES, np.nan)
    with warnings.catch_warnings():
        # MONAI calls a function of its own with an argument that it has deprecated; nobody here can act on that.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        for index, box in _joint_boxes(pred, truth).items():
            masks = {"y_pred": (pred[box] == index)[None, None], "y": (truth[box] == index)[None, None]}
            hd95[index] = compute_hausdorff_distance(
                **masks, include_background=True, percentile=HAUSDORFF_PERCENTILE, spacing=spacing
            ).item()
            assd[index] = compute_average_surface_distance(
                **masks, include_background=True, symmetric=True, spacing=spacing
            ).item()
    return hd95, assd


def volumes_ml(label_array: Labels, voxel_volume_mm3: float) -> dict[str, float]:
    """Volume of each class in mL (voxels x voxel volume / 1000), by tissue key, in the order of the label values.

    All ten keys are there; a class without voxels is 0. For brain and intracranial volume see :func:`volume_sums`.

    Args:
        label_array: label values 0-9, any shape.
        voxel_volume_mm3: volume of one voxel in mm3.

    Raises:
        ValueError: a value is not 0-9 or the voxel volume is not positive.

    Example:
        >>> volumes_ml(np.array([[3, 3], [0, 6]]), voxel_volume_mm3=500.0)["wm"]
        1.0
    """
    _check_labels(label_array, NUMBER_OF_CLASSES, "label array")
    if not (np.isfinite(voxel_volume_mm3) and voxel_volume_mm3 > 0):
        raise ValueError(f"expected a positive voxel volume in mm3, got {voxel_volume_mm3}")
    counts = np.bincount(label_array.ravel(), minlength=NUMBER_OF_CLASSES)
    return {tissue.key: float(counts[tissue.index]) * voxel_volume_mm3 / 1000.0 for tissue in TISSUES}


def volume_sums(volumes_ml: Mapping[str, float]) -> dict[str, float]:
    """Brain and intracranial volume in mL, from the ten volumes of :func:`volumes_ml`.

    ``brain`` is the sum over the tissues that are brain (``Tissue.brain``: no fluid); ``intracranial`` adds CSF and
    ventricles, and so is the sum of the eight physiological tissues. Neither counts a background class.

    Raises:
        KeyError: a tissue's key is missing.

    Example:
        >>> volume_sums({tissue.key: 2.0 for tissue in PHYSIOLOGICAL})
        {'brain': 12.0, 'intracranial': 16.0}
    """
    return {
        "brain": sum(volumes_ml[tissue.key] for tissue in PHYSIOLOGICAL if tissue.brain),
        "intracranial": sum(volumes_ml[tissue.key] for tissue in PHYSIOLOGICAL),
    }


def volumes_table(volumes_ml: Mapping[str, float]) -> str:
    """Text of a ``_volumes.tsv``: tab-separated, mL with three decimals, the same from the command and from Slicer.

    Columns index, key, name, volume_ml; a row for every class but the background, then the sums of
    :func:`volume_sums` with the index "n/a".

    Args:
        volumes_ml: by tissue key. The intracranial background may be missing, as in a segmentation that a person has
            edited in Slicer, which has no segment of it: its volume is then "n/a".

    Raises:
        KeyError: the key of one of the eight tissues is missing.

    Example:
        >>> print(volumes_table({tissue.key: 1.0 for tissue in PHYSIOLOGICAL}).splitlines()[4])
        4	intracranial_bg	Intracranial background	n/a
    """
    lines = ["index\tkey\tname\tvolume_ml"]
    for tissue in TISSUES[1:]:
        known = tissue.key in volumes_ml or not tissue.background
        volume = f"{volumes_ml[tissue.key]:.3f}" if known else "n/a"
        lines.append(f"{tissue.index}\t{tissue.key}\t{tissue.name}\t{volume}")
    sums = volume_sums(volumes_ml)
    lines.append(f"n/a\tbrain\tBrain (tissues without CSF and ventricles)\t{sums['brain']:.3f}")
    lines.append(f"n/a\tintracranial\tIntracranial (brain, CSF and ventricles)\t{sums['intracranial']:.3f}")
    return "\n".join(lines) + "\n"


def _joint_boxes(pred: Labels, truth: Labels) -> dict[int, tuple[slice, ...]]:
    """For each class that both arrays hold, the box around it in both, one voxel wider where the array allows.

    Distances of a class depend on nothing outside this box; on a whole head it saves most of the time and memory.
    """
    from scipy.ndimage import find_objects  # type: ignore[import-untyped]

    # find_objects passes over 0, so the values are moved up by one; in uint8 to spare memory on whole scans.
    boxes = [find_objects(array.astype(np.uint8) + np.uint8(1), NUMBER_OF_CLASSES) for array in (pred, truth)]
    joint: dict[int, tuple[slice, ...]] = {}
    for index, (one, other) in enumerate(zip(*boxes, strict=True)):
        if one is not None and other is not None:
            joint[index] = tuple(
                slice(max(min(a.start, b.start) - 1, 0), max(a.stop, b.stop) + 1)
                for a, b in zip(one, other, strict=True)
            )
    return joint


def _check_pair(pred: Labels, truth: Labels, classes: int) -> None:
    if pred.shape != truth.shape:
        raise ValueError(f"the two label arrays differ in shape: {pred.shape} and {truth.shape}")
    _check_labels(pred, classes, "prediction")
    _check_labels(truth, classes, "truth")


def _check_labels(labels: Labels, classes: int, what: str) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what}: expected an integer array, got {labels.dtype}")
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"{what}: values run from {labels.min()} to {labels.max()}, expected 0-{classes - 1}")


def _ten(per_class: PerClass) -> PerClass:
    if np.shape(per_class) != (NUMBER_OF_CLASSES,):
        raise ValueError(f"expected one value for each of {NUMBER_OF_CLASSES} classes, got {np.shape(per_class)}")
    return np.asarray(per_class, dtype=np.float64)


def _mean_of_finite(values: PerClass) -> float:
    """Mean of what is not NaN, and NaN (without numpy's warning) where there is nothing."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
