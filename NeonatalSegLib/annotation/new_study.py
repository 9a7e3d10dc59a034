"""From scans and a budget to a study that can be annotated: slices planned, label maps pre-filled, all on disk.

Example:
    >>> scans = [StudyScan("sub-01", Path("sub-01_T1w.nii.gz"), Path("sub-01_T2w.nii.gz"), 40.3)]  # doctest: +SKIP
    >>> started = start_study("study", scans, BudgetSettings(10, "percent"), segmenter=Segmenter())  # doctest: +SKIP
    >>> project = AnnotationSession.open(started.folder, rater="anna")  # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.annotation.completed import all_rounds, completed_keys
from NeonatalSegLib.annotation.creation import check_empty, create_study
from NeonatalSegLib.annotation.plan import BudgetSettings, Plan
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.annotation.slice_selection import ScanToPlan
from NeonatalSegLib.annotation.study import StudyScan
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_distinct, check_name
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import foreground
from NeonatalSegLib.scans.read import read_grid
from NeonatalSegLib.scans.scan import Scan, load_scan
from NeonatalSegLib.tissues import PHYSIOLOGICAL

if TYPE_CHECKING:
    from NeonatalSegLib.progress import Progress
    from NeonatalSegLib.segmentation.segmenter import Segmenter

PREFILLS = ("model", "empty")


@dataclass(frozen=True)
class Predicted:
    """Results that a model has made already, to start from instead of computing them again.

    Attributes:
        label_maps: by scan, the file of its label map (0-9) on the grid of the scan's reference.
        model_name, model_hash: which model made them.
    """

    label_maps: Mapping[str, Path]
    model_name: str
    model_hash: str


def fitting(predicted: Predicted, scans: Sequence[StudyScan]) -> dict[str, Path]:
    """The label maps that lie on their scan's grid; a scan that was moved since has to be segmented again."""
    kept = {}
    for scan in scans:
        path, reference = predicted.label_maps.get(scan.name), scan.t2 or scan.t1
        if path is not None and reference is not None and read_grid(path).is_like(read_grid(reference)):
            kept[scan.name] = path
    return kept


def can_reuse(settings: BudgetSettings) -> bool:
    """Whether label maps alone suffice: slices that are chosen where the model is unsure need its uncertainty too."""
    return settings.selection != "uncertainty"


@dataclass(frozen=True)
class StartedStudy:
    """What :func:`start_study` made.

    Attributes:
        folder: of the study; ``AnnotationSession.open(folder, rater)`` opens it.
        model_name, model_hash: what pre-filled or chose the slices, "" where no model was used.
        warnings: in words, each beginning with the scan's name.
    """

    folder: Path
    plan: Plan
    model_name: str
    model_hash: str
    warnings: tuple[str, ...]


def needs_model(settings: BudgetSettings, prefill: str) -> bool:
    """Whether the scans have to be segmented for such a study."""
    if prefill not in PREFILLS:
        raise NeonatalSegError(f"{prefill!r} is not a way to pre-fill slices: choose {' or '.join(PREFILLS)}.")
    return prefill == "model" or settings.selection == "uncertainty"


def start_study(
    folder: str | Path,
    scans: Sequence[StudyScan],
    settings: BudgetSettings,
    *,
    segmenter: Segmenter | None = None,
    predicted: Predicted | None = None,
    prefill: str = "model",
    earlier: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> StartedStudy:
    """Plan the slices of a study and create its folder: all of it or nothing.

    The foreground of a scan is its predicted brain where a prediction is made (see :func:`needs_model`), else the head.

    Args:
        folder: missing or empty.
        scans: with T1, T2 or both each.
        segmenter: of the current model; None for the user's default model, loaded where one is needed.
        predicted: results that the same model has made already; those scans are not segmented again.
        prefill: "model" (its prediction waits on every slice) or "empty".
        earlier: folders of the rounds before: what was completed there, and in the rounds that they name themselves, is
            not chosen again, and the new study names them, so that fine-tuning learns their slices as well.
        progress: called with the scan's name and the fraction of the whole.

    Raises:
        NeonatalSegError: a folder that is in use, two scans of one name, an unusable scan, or an impossible budget.
        Cancelled: whatever ``progress`` raises goes through; nothing is left behind.
    """
    folder = Path(folder)
    check_folder(folder)
    rounds = all_rounds(earlier)
    planned = plan_study(
        scans,
        settings,
        segmenter=segmenter,
        predicted=predicted,
        prefill=prefill,
        earlier=rounds,
        progress=progress,
    )
    facts = {"prefill": prefill, "model_name": planned.model_name, "model_hash": planned.model_hash}
    chosen = {s.scan for s in planned.plan.slices}
    prefills = _Prefills({k: v for k, v in planned.labels.items() if k in chosen}, planned.plan.grids)
    create_study(folder, planned.plan, scans, prefills if prefill == "model" else {}, facts, rounds)
    return StartedStudy(folder, planned.plan, planned.model_name, planned.model_hash, planned.warnings)


@dataclass(frozen=True)
class PlannedStudy:
    """A plan with what was learned on the way: packed predictions by scan, the model and warnings."""

    plan: Plan
    labels: Mapping[str, bytes]
    model_name: str
    model_hash: str
    warnings: tuple[str, ...]


def plan_study(
    scans: Sequence[StudyScan],
    settings: BudgetSettings,
    *,
    segmenter: Segmenter | None = None,
    predicted: Predicted | None = None,
    prefill: str = "model",
    earlier: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> PlannedStudy:
    """The first half of :func:`start_study`: reads and segments the scans and chooses the slices, writes nothing."""
    check_scans(scans)
    if earlier:
        done = completed_keys(all_rounds(earlier), scans)
        settings = replace(settings, exclude=tuple(dict.fromkeys((*settings.exclude, *done))))
    ready = fitting(predicted, scans) if predicted is not None and can_reuse(settings) else {}
    if not needs_model(settings, prefill):
        segmenter, ready = None, {}
    elif segmenter is None and any(scan.name not in ready for scan in scans):
        from NeonatalSegLib.models.registry import find_model
        from NeonatalSegLib.segmentation.segmenter import Segmenter

        segmenter = Segmenter(find_model())
    labels: dict[str, bytes] = {}
    warnings: list[str] = []
    if segmenter is None and not ready and settings.extent == "brain":
        warnings.append("Without the model, the slices are spread over all that a scan shows, not over the brain.")
    seen = _look(scans, settings, segmenter, ready, progress, labels, warnings)
    plan = plan_slices(seen, settings)
    made_by = ("", "")
    if segmenter is not None:
        made_by = (segmenter.model.name, segmenter.model.hash)
    elif ready and predicted is not None:
        made_by = (predicted.model_name, predicted.model_hash)
    return PlannedStudy(plan, labels, *made_by, (*warnings, *plan.notes))


def _look(
    scans: Sequence[StudyScan],
    settings: BudgetSettings,
    segmenter: Segmenter | None,
    ready: Mapping[str, Path],
    progress: Progress | None,
    labels: dict[str, bytes],
    warnings: list[str],
) -> Iterator[ScanToPlan]:
    """The scans one after the other, so that one of them is in memory at a time; ``labels`` and ``warnings`` fill."""
    for number, entry in enumerate(scans):

        def within(_: str, fraction: float, number: int = number, name: str = entry.name) -> None:
            if progress:
                which = f"{name} ({number + 1} of {len(scans)})" if len(scans) > 1 else name
                progress(which, (number + fraction) / len(scans))

        within("read", 0.0)
        scan = load_scan(entry.t1, entry.t2, name=entry.name, age_weeks=entry.age_weeks)
        grid = Grid.of(scan.reference)
        prediction = _read_prediction(ready.get(scan.name), grid)
        if prediction is not None:
            warnings += [f"{scan.name}: {text}" for text in scan.warnings]
            yield _predicted(scan, grid, prediction, None, labels, warnings)
        elif segmenter is None:
            warnings += [f"{scan.name}: {text}" for text in scan.warnings]
            yield ScanToPlan(scan.name, grid, sitk.GetArrayFromImage(foreground(scan.reference)) > 0)
        else:
            yield _segmented(scan, grid, settings, segmenter, within, labels, warnings)
        within("planned", 1.0)


def _segmented(
    scan: Scan,
    grid: Grid,
    settings: BudgetSettings,
    segmenter: Segmenter,
    progress: Progress,
    labels: dict[str, bytes],
    warnings: list[str],
) -> ScanToPlan:
    from NeonatalSegLib.segmentation.segmenter import SegmentOptions

    options = SegmentOptions(uncertainty=settings.selection == "uncertainty")
    result = segmenter.segment(scan, options, progress)
    warnings += [f"{scan.name}: {text}" for text in result.warnings]
    uncertainty = None if result.uncertainty is None else sitk.GetArrayFromImage(result.uncertainty)
    return _predicted(scan, grid, sitk.GetArrayFromImage(result.label_map), uncertainty, labels, warnings)


def _read_prediction(path: Path | None, grid: Grid) -> np.ndarray | None:
    """The labels (z, y, x) of an earlier result; None where there is none on this grid."""
    if path is None:
        return None
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image).astype(np.uint8) if Grid.of(image).is_like(grid) else None


def _predicted(
    scan: Scan,
    grid: Grid,
    prediction: np.ndarray,
    uncertainty: np.ndarray | None,
    labels: dict[str, bytes],
    warnings: list[str],
) -> ScanToPlan:
    labels[scan.name] = zlib.compress(prediction.tobytes(), 1)
    brain = np.isin(prediction, [t.index for t in PHYSIOLOGICAL])
    if not brain.any():
        warnings.append(f"{scan.name}: the model found no brain; the slices were spread over the whole head instead.")
        brain = sitk.GetArrayFromImage(foreground(scan.reference)) > 0
    return ScanToPlan(scan.name, grid, brain, prediction, uncertainty)


class _Prefills(Mapping[str, np.ndarray]):
    """Label maps (z, y, x) uint8 by scan, unpacked when asked for: a study of hundreds of scans fits in memory."""

    def __init__(self, packed: Mapping[str, bytes], grids: Mapping[str, Grid]) -> None:
        self._packed, self._grids = packed, grids

    def __getitem__(self, name: str) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self._packed[name]), np.uint8).reshape(self._grids[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def check_folder(folder: Path) -> None:
    """Before the work: NeonatalSegError where ``folder`` is in use or cannot be made; it is not touched."""
    parent = folder.absolute()
    try:
        check_empty(folder)
        while not parent.exists():
            parent = parent.parent
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise NeonatalSegError(
            f"No study can be written to {folder} ({error.strerror or error}): choose another folder."
        ) from error


def check_scans(scans: Sequence[StudyScan]) -> None:
    """Before the work: NeonatalSegError for a scan without images, a missing file, or a name that is bad or taken."""
    if not scans:
        raise NeonatalSegError("The study has no scan: give one at least.")
    check_distinct((scan.name for scan in scans), "scan")
    for scan in scans:
        check_name(scan.name, "scan")
        files = [path for path in (scan.t1, scan.t2) if path is not None]
        if not files:
            raise NeonatalSegError(f"The scan {scan.name} has neither T1 nor T2: give one of them at least.")
        for path in files:
            if not path.exists():
                raise NeonatalSegError(f"The scan {scan.name} cannot be read: there is no file or folder at {path}.")


def scan_of_json(entry: Mapping[str, Any]) -> StudyScan:
    """A scan from a request: ``name``, ``t1``, ``t2`` (paths or null) and ``age_weeks`` (or null)."""
    t1, t2 = (Path(entry[key]) if entry.get(key) else None for key in ("t1", "t2"))
    age = entry.get("age_weeks")
    return StudyScan(str(entry.get("name") or ""), t1, t2, None if age is None else float(age))
