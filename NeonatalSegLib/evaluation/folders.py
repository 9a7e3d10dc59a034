"""A folder of predicted label maps against a folder of true ones: pairs, figures, the paper's Tables 1 and 2, TSV.

The way through: find the label maps of both folders, pair them by subject, bring each prediction onto the grid of its
truth where that needs no guess, measure (:mod:`NeonatalSegLib.evaluation.metrics`), hand back an :class:`Evaluation`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import (
    dice_per_class,
    surface_distances,
    volumes_ml,
)
from NeonatalSegLib.evaluation.tables import Evaluation, TissueResult
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import LabelMap, read_labels
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, TISSUES, Tissue

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
# Two grids are one when their voxel centres agree to this part of a voxel: headers round, half a voxel is a shift.
GRID_TOLERANCE_VOXELS = 0.05

_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?=[_.])")
_DHCP_TEN_CLASSES = "_desc-drawem9_"


def evaluate_folders(
    pred: str | Path, truth: str | Path, *, surface: bool = True, progress: Progress | None = None
) -> Evaluation:
    """Measure every predicted label map in ``pred`` against the true one of the same subject in ``truth``.

    Label maps are the files named ``*dseg.nii.gz``, ``*dseg.nii`` or ``*dseg.nrrd`` anywhere below a folder; in a
    folder without any, all ``.nii.gz``, ``.nii`` and ``.nrrd`` files. They belong together when the names begin with
    the same BIDS entities (``sub-`` and, where there is one, ``ses-``), otherwise when the names are the same but for
    the extension and a ``_dseg`` before it. Where a subject has several label maps and one is the dHCP release's
    ``desc-drawem9``, that one is meant: the release puts it beside finer parcellations.

    A prediction stored in another orientation of the same voxels is brought over exactly. One with as many voxels but
    at other places is resampled to the truth's grid by nearest neighbour, with a warning.

    Args:
        pred: folder of predictions.
        truth: folder of true label maps, values 0-9.
        surface: also compute HD95 and ASSD, which take most of the time.
        progress: called with (what is being done, fraction of the whole 0-1); may raise to stop.

    Raises:
        NeonatalSegError: a folder is missing or holds no label map; no subject is in both; or no pair could be
            measured: two files claim one subject, a file cannot be read, is not 3D or holds values other than 0-9, two
            grids differ in size or do not meet in space.
    """
    pred, truth = Path(pred), Path(truth)
    failed: dict[str, str] = {}
    found_pred, found_truth = _find_label_maps(pred, truth, failed), _find_label_maps(truth, pred, failed)
    subjects = sorted(found_pred.keys() & found_truth.keys())
    if not subjects and not failed:
        raise NeonatalSegError(
            f"No subject has a label map both in {pred} ({_some(found_pred)}) and in {truth} ({_some(found_truth)}). "
            "Names must begin with the same sub- and ses- entities, or be the same but for the extension."
        )
    only_pred, only_truth = found_pred.keys() - found_truth.keys(), found_truth.keys() - found_pred.keys()
    warnings = [f"{name}: no true label map in {truth}; left out." for name in sorted(only_pred - failed.keys())]
    warnings += [f"{name}: no prediction in {pred}; left out." for name in sorted(only_truth - failed.keys())]
    rows: list[TissueResult] = []
    for done, subject in enumerate(subjects):
        if progress is not None:
            progress(f"evaluating {subject}", done / len(subjects))
        try:
            rows += _evaluate_pair(subject, found_pred[subject], found_truth[subject], surface, warnings)
        except NeonatalSegError as error:  # one odd pair must not cost the others
            failed[subject] = str(error)
    if progress is not None:
        progress("evaluated", 1.0)
    if not rows:
        raise NeonatalSegError("\n".join(failed.values()))
    return Evaluation(rows, surface, warnings, failed)


def _evaluate_pair(
    subject: str, pred_path: Path, truth_path: Path, surface: bool, warnings: list[str]
) -> list[TissueResult]:
    found_pred, found_truth = read_labels(pred_path), read_labels(truth_path)
    warnings += [f"{subject}: {text}" for text in dict.fromkeys((*found_pred.warnings, *found_truth.warnings))]
    pred, truth = found_pred.image, found_truth.image
    if _share_a_position(found_pred, found_truth):
        pred.CopyInformation(truth)
    # The prediction's own voxels give its volume, whatever resampling may do to their number.
    pred_volumes = _volumes(pred)
    pred, note = _onto_grid(pred, truth, pred_path, truth_path)
    if note:
        warnings.append(f"{subject}: {note}")
    pred_array, truth_array = sitk.GetArrayViewFromImage(pred), sitk.GetArrayViewFromImage(truth)
    dsc = dice_per_class(pred_array, truth_array)
    hd95 = assd = np.full(NUMBER_OF_CLASSES, np.nan)
    if surface:
        # SimpleITK's arrays run z, y, x; its spacing x, y, z.
        hd95, assd = surface_distances(pred_array, truth_array, truth.GetSpacing()[::-1])
    truth_volumes = _volumes(truth)

    def row(tissue: Tissue) -> TissueResult:
        at, key = tissue.index, tissue.key
        figures = float(dsc[at]), float(hd95[at]), float(assd[at])
        return TissueResult(subject, key, *figures, pred_volumes[key], truth_volumes[key])

    return [row(tissue) for tissue in TISSUES]


def _share_a_position(pred: LabelMap, truth: LabelMap) -> bool:
    """Whether two files whose qform and sform disagree say one position in common: readers choose differently."""
    if not (pred.other_grids or truth.other_grids):
        return False
    positions = (Grid.of(truth.image), *truth.other_grids)
    return any(pred.lies_on(grid, tolerance_mm=0.1) for grid in positions)


def _volumes(label_map: sitk.Image) -> dict[str, float]:
    return volumes_ml(sitk.GetArrayViewFromImage(label_map), float(np.prod(label_map.GetSpacing())))


def _find_label_maps(folder: Path, other: Path, failed: dict[str, str]) -> dict[str, Path]:
    """The label map of each subject below ``folder``, leaving out ``other`` where that lies within it.

    A subject that several files claim comes into ``failed`` instead.
    """
    if not folder.is_dir():
        raise NeonatalSegError(f"{folder} is not a folder. Expected a folder of label maps ({', '.join(EXTENSIONS)}).")
    if folder.resolve() == other.resolve():
        raise NeonatalSegError(f"Predictions and truth are the same folder, {folder}. Name two different folders.")
    images = [
        path
        for path in sorted(folder.rglob("*"))
        # A leading dot marks what macOS writes beside files on foreign disks.
        if _extension(path) and not path.name.startswith(".") and path.is_file()
    ]
    if folder.resolve() in other.resolve().parents:
        images = [path for path in images if other.resolve() not in path.resolve().parents]
    chosen = [path for path in images if _stem(path).endswith("dseg")] or images
    if not chosen:
        raise NeonatalSegError(f"No label map in {folder}. Expected files that end in dseg.nii.gz, .nii or .nrrd.")
    claims: dict[str, list[Path]] = {}
    for path in chosen:
        claims.setdefault(_subject(path), []).append(path)
    found = {}
    for subject, paths in claims.items():
        try:
            found[subject] = _only_one(subject, paths)
        except NeonatalSegError as error:
            failed[subject] = str(error)
    return found


def _only_one(subject: str, paths: Sequence[Path]) -> Path:
    ten_classes = [path for path in paths if _DHCP_TEN_CLASSES in path.name]
    if len(paths) > 1 and len(ten_classes) == 1:
        return ten_classes[0]
    if len(paths) > 1:
        raise NeonatalSegError(
            f"Several files claim to be the label map of {subject}: {' and '.join(map(str, paths))}. "
            "Expected one a subject; move the others elsewhere."
        )
    return paths[0]


def _extension(path: Path) -> str:
    """The image extension of the path, as written there, or an empty string."""
    return next((path.name[-len(end) :] for end in EXTENSIONS if path.name.lower().endswith(end)), "")


def _stem(path: Path) -> str:
    return path.name.removesuffix(_extension(path))


def _subject(path: Path) -> str:
    """``sub-X`` or ``sub-X_ses-Y`` at the start of the name, else the stem without ``_dseg``."""
    match = _SUBJECT.match(path.name)
    if match:
        return "_".join(entity for entity in match.groups() if entity)
    return _stem(path).removesuffix("_dseg")


def _onto_grid(pred: sitk.Image, truth: sitk.Image, pred_path: Path, truth_path: Path) -> tuple[sitk.Image, str]:
    """The prediction on the truth's grid, and a sentence for the user where that was more than reordering voxels."""
    step, offset = _index_map(pred, truth)
    size_pred, size_truth = np.array(pred.GetSize()), np.array(truth.GetSize())
    # Which axis of the prediction runs most nearly along each axis of the truth: sizes are compared in that order.
    along = np.abs(_direction(truth).T @ _direction(pred)).argmax(axis=1)
    if not np.array_equal(size_pred[along], size_truth):
        raise NeonatalSegError(
            f"The grids of {pred_path} ({_grid_text(pred)}) and {truth_path} ({_grid_text(truth)}) differ in size. "
            "Expected a prediction on the grid of the truth; resample it (nearest neighbour) first."
        )
    corners = np.stack(np.meshgrid(*([0, size - 1] for size in size_pred), indexing="ij"), axis=-1).reshape(-1, 3)
    mapped = corners @ step.T + offset
    if np.abs(mapped - corners).max() <= GRID_TOLERANCE_VOXELS:
        pred.CopyInformation(truth)
        return pred, ""
    moved = sitk.Resample(pred, truth, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    if _is_reordering(step) and np.minimum(np.abs(mapped), np.abs(mapped - size_truth + 1)).max() <= (
        GRID_TOLERANCE_VOXELS
    ):
        return moved, ""
    if not (((mapped.max(axis=0) >= -0.5) & (mapped.min(axis=0) <= size_truth - 0.5)).all()):
        raise NeonatalSegError(
            f"{pred_path} ({_grid_text(pred)}) and {truth_path} ({_grid_text(truth)}) do not meet in space. Expected "
            "label maps of one scan; check that the headers were kept and that the files belong together."
        )
    return moved, (
        f"{pred_path} ({_grid_text(pred)}) lies on another grid than {truth_path} ({_grid_text(truth)}); it was "
        "resampled by nearest neighbour, which changes the figures."
    )


def _index_map(pred: sitk.Image, truth: sitk.Image) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Matrix [3, 3] and offset [3] that take a voxel index of the prediction to one of the truth."""
    to_world_pred = _direction(pred) * np.array(pred.GetSpacing())
    to_world_truth = _direction(truth) * np.array(truth.GetSpacing())
    shift = np.array(pred.GetOrigin()) - np.array(truth.GetOrigin())
    return np.linalg.solve(to_world_truth, to_world_pred), np.linalg.solve(to_world_truth, shift)


def _is_reordering(step: npt.NDArray[np.float64]) -> bool:
    """Whether an index map only exchanges and flips axes."""
    whole = np.abs(np.rint(step))
    return bool((whole.sum(axis=0) == 1).all() and (whole.sum(axis=1) == 1).all())


def _direction(image: sitk.Image) -> npt.NDArray[np.float64]:
    return np.array(image.GetDirection(), dtype=np.float64).reshape(3, 3)


def _grid_text(image: sitk.Image) -> str:
    size = "x".join(map(str, image.GetSize()))
    spacing = "x".join(f"{step:.3g}" for step in image.GetSpacing())
    origin = ", ".join(f"{at:.1f}" for at in image.GetOrigin())
    return f"{size} voxels of {spacing} mm from ({origin})"


def _some(found: dict[str, Path], most: int = 3) -> str:
    return ", ".join(sorted(found)[:most]) + (", ..." if len(found) > most else "")
