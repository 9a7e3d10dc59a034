"""A folder of predicted label maps against a folder of true ones: pairs, figures, the paper's Tables 1 and 2, TSV.

The way through: find the label maps of both folders, pair them by subject, bring each prediction onto the grid of its
truth where that needs no guess, measure (:mod:`NeonatalSegLib.evaluation.metrics`), hand back an :class:`Evaluation`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import (
    dice_per_class,
    mean_dice,
    mean_dice_no_background,
    surface_distances,
    volumes_ml,
)
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, TISSUES, Tissue

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
COLUMNS = ("subject", "tissue", "dsc", "hd95_mm", "assd_mm", "volume_pred_ml", "volume_truth_ml")
# Two grids are one when their voxel centres agree to this part of a voxel: headers round, half a voxel is a shift.
GRID_TOLERANCE_VOXELS = 0.05

_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?=[_.])")
_DHCP_TEN_CLASSES = "_desc-drawem9_"


@dataclass(frozen=True)
class TissueResult:
    """One tissue of one subject; NaN where a figure does not exist (tissue absent, surfaces not asked for)."""

    subject: str
    tissue: str
    dsc: float
    hd95_mm: float
    assd_mm: float
    volume_pred_ml: float
    volume_truth_ml: float


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_folders` found.

    Attributes:
        rows: ten rows per subject, in the order of subjects and of label values.
        surface: whether HD95 and ASSD were computed.
        warnings: sentences for the user: subjects without a partner, predictions that were resampled.
    """

    rows: list[TissueResult]
    surface: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def subjects(self) -> list[str]:
        """The subjects in the order of the rows."""
        return list(dict.fromkeys(row.subject for row in self.rows))

    def values(self, figure: str) -> npt.NDArray[np.float64]:
        """One figure (a column's name, such as ``"dsc"``) as an array [subjects, 10]."""
        flat = np.array([getattr(row, figure) for row in self.rows], dtype=np.float64)
        return flat.reshape(-1, NUMBER_OF_CLASSES)

    def table1(self) -> str:
        """Markdown in the layout of the paper's Table 1: mean DSC with and without the two background classes.

        Each is a mean over subjects of the subject's mean over classes, with the standard deviation over subjects
        (n - 1; the paper's is over four training runs). One subject has no deviation.
        """
        dice = self.values("dsc")
        cells = [
            _mean_and_deviation([mean_dice(subject) for subject in dice]),
            _mean_and_deviation([mean_dice_no_background(subject) for subject in dice]),
        ]
        return markdown_table(["", "Mean DSC", "Mean DSC (no BG)"], [["Mean DSC", *cells]])

    def table2(self) -> str:
        """Markdown in the layout of the paper's Table 2: DSC of the eight tissues, then HD95 and ASSD in mm.

        Each figure is the mean over the subjects that have it. A tissue that only one of the two label maps holds
        counts as DSC 0 but has no surface distance; a line under the table says how many values are missing so.
        """
        figures = {"dsc": ("DSC", 3)}
        if self.surface:
            figures |= {"hd95_mm": ("HD95 (mm)", 2), "assd_mm": ("ASSD (mm)", 2)}
        rows = []
        missing = []
        for figure, (head, digits) in figures.items():
            tissues = [(tissue, self.values(figure)[:, tissue.index]) for tissue in PHYSIOLOGICAL]
            rows.append([head, *(_number(_mean(column), digits) for _, column in tissues)])
            missing += [
                f"{head} of {tissue.abbreviation} ({np.isnan(column).sum()} of {len(column)})"
                for tissue, column in tissues
                if np.isnan(column).any()
            ]
        table = markdown_table(["", *(tissue.abbreviation for tissue in PHYSIOLOGICAL)], rows)
        if missing:
            table += "\n\nLeft out, since a label map does not hold the tissue (subjects): " + ", ".join(missing) + "."
        return table

    def write_tsv(self, path: Path) -> None:
        """Write one row per subject and tissue, tab-separated with a heading; ``n/a`` where there is no figure (BIDS).

        The file appears whole or not at all, and an older one stays until then.

        Raises:
            NeonatalSegError: the file cannot be written.
        """
        path = Path(path)
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(row, column)) for column in COLUMNS] for row in self.rows)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text.getvalue())
        except OSError as error:
            raise NeonatalSegError(
                f"Cannot write the results to {path}: {error.strerror or error}. Choose a path that can be written."
            ) from error


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
        NeonatalSegError: a folder is missing or holds no label map; no subject is in both; two files claim one
            subject; a file cannot be read, is not 3D or holds values other than 0-9; two grids differ in size or do
            not meet in space.
    """
    pred, truth = Path(pred), Path(truth)
    found_pred, found_truth = _find_label_maps(pred, truth), _find_label_maps(truth, pred)
    subjects = sorted(found_pred.keys() & found_truth.keys())
    if not subjects:
        raise NeonatalSegError(
            f"No subject has a label map both in {pred} ({_some(found_pred)}) and in {truth} ({_some(found_truth)}). "
            "Names must begin with the same sub- and ses- entities, or be the same but for the extension."
        )
    warnings = [
        f"{name}: no true label map in {truth}; left out." for name in sorted(found_pred.keys() - found_truth.keys())
    ]
    warnings += [
        f"{name}: no prediction in {pred}; left out." for name in sorted(found_truth.keys() - found_pred.keys())
    ]
    rows: list[TissueResult] = []
    for done, subject in enumerate(subjects):
        if progress is not None:
            progress(f"evaluating {subject}", done / len(subjects))
        rows += _evaluate_pair(subject, found_pred[subject], found_truth[subject], surface, warnings)
    if progress is not None:
        progress("evaluated", 1.0)
    return Evaluation(rows, surface, warnings)


def _evaluate_pair(
    subject: str, pred_path: Path, truth_path: Path, surface: bool, warnings: list[str]
) -> list[TissueResult]:
    pred, truth = _read_label_map(pred_path), _read_label_map(truth_path)
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


def _volumes(label_map: sitk.Image) -> dict[str, float]:
    return volumes_ml(sitk.GetArrayViewFromImage(label_map), float(np.prod(label_map.GetSpacing())))


def _find_label_maps(folder: Path, other: Path) -> dict[str, Path]:
    """The label map of each subject below ``folder``, leaving out ``other`` where that lies within it."""
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
    return {subject: _only_one(subject, paths) for subject, paths in claims.items()}


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


def _read_label_map(path: Path) -> sitk.Image:
    """Read a 3D label map with values 0-9 as uint8."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise NeonatalSegError(f"Cannot read the label map {path}: {reason}. Expected a NIfTI or NRRD file.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise NeonatalSegError(
            f"The label map {path} has size {image.GetSize()} and {image.GetNumberOfComponentsPerPixel()} values a "
            "voxel. Expected a 3D image with one label value per voxel."
        )
    array = sitk.GetArrayViewFromImage(image)
    allowed = np.isin(array, np.arange(NUMBER_OF_CLASSES))
    if not allowed.all():
        unknown = np.unique(array[~allowed])
        values = ", ".join(f"{value:g}" for value in unknown[:10]) + (", ..." if unknown.size > 10 else "")
        raise NeonatalSegError(
            f"The label map {path} holds values that are not labels: {values}. Expected whole numbers 0-9 "
            "(0 background, 1 CSF, ... 9 hippocampus); convert the labels first."
        )
    return sitk.Cast(image, sitk.sitkUInt8)


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


def _mean(values: npt.ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(np.nanmean(array)) if not np.isnan(array).all() else float("nan")


def _mean_and_deviation(values: Sequence[float]) -> str:
    text = _number(_mean(values), 3)
    present = [value for value in values if not np.isnan(value)]
    return f"{text} ± {np.std(present, ddof=1):.3f}" if len(present) > 1 else text


def _number(value: float, digits: int) -> str:
    return "n/a" if np.isnan(value) else f"{value:.{digits}f}"


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else _number(value, 6)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded[1:]]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])
