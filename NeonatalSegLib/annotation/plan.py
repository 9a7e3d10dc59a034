"""A label budget turned into 2D slices to annotate: how many, of which scans, along which axis, and why each.

Axis names mean anatomy in patient space, whatever the order and direction of the voxel axes, also of oblique scans: a
sagittal plan holds planes with left on one side and right on the other.

Example:
    >>> settings = BudgetSettings(10, "percent", "scan", "axial", "equidistant", "brain", seed=3)
    >>> plan = plan_slices([ScanToPlan("sub-01", grid, brain)], settings)  # doctest: +SKIP
    >>> [(s.index, s.reason) for s in plan.for_scan("sub-01")]  # doctest: +SKIP
    [(37, 'equidistant, 1st of 11'), ...
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.scans.grid import AXES, Grid, plane, voxel_axis

CHOICES = {
    "unit": ("slices", "percent"),
    "per": ("scan", "study"),
    "axis": (*AXES, "random", "mixed"),
    "selection": ("equidistant", "random", "foreground-random", "uncertainty"),
    "extent": ("brain", "central"),
}
FORMAT = 1  # of the plan's JSON; raised when an older reader would misread it


@dataclass(frozen=True)
class PlannedSlice:
    """One slice to annotate.

    Attributes:
        scan: name of the scan.
        axis: one of ``AXES``: the anatomical axis on which the slice stands upright.
        index: voxel index along ``voxel_axis(grid, axis)`` of the scan's own grid.
        position_mm: patient coordinate of the slice's centre along that axis, as Slicer shows it: positive to the right
            (sagittal), to the front (coronal), upwards (axial).
        reason: in words, why this slice.
    """

    scan: str
    axis: str
    index: int
    position_mm: float
    reason: str

    @property
    def key(self) -> str:
        """Unique in a plan: ``sub-01/axial/63``."""
        return f"{self.scan}/{self.axis}/{self.index}"


@dataclass(frozen=True)
class BudgetSettings:
    """What the annotator can afford and how it is to be spent; refused in words where it makes no sense.

    Attributes:
        amount: number of slices, or percent of the slices in the chosen extent of the chosen axis ("mixed": of the
            mean of the three axes, so that it costs what one axis costs), rounded, at least one slice.
        unit: "slices" or "percent".
        per: "scan" (each gets this budget) or "study" (spread over the scans as evenly as possible).
        axis: "sagittal", "coronal", "axial", "random" (one axis a scan, drawn with the seed, as the paper) or "mixed"
            (a scan's slices are spread over the three).
        selection: "equidistant", "random" (any slice of the extent), "foreground-random" (slices with foreground,
            weighted by its area) or "uncertainty" (where the model is least certain).
        extent: "brain" (slices with at least 1 cm2 of foreground) or "central" (central 90 % of the axis, as the
            paper).
        seed: the same seed and scans give the same plan.
        min_gap_mm: between chosen slices of one axis; for "uncertainty" alone.
        cap_per_scan: never more slices of one scan, or None.
        exclude: keys of slices (``PlannedSlice.key``) that are not chosen, as those completed in an earlier study. A
            budget in percent is of the extent with them.

    Example:
        >>> BudgetSettings(10, "percent", axis="mixed").selection
        'equidistant'
        >>> BudgetSettings(150, "percent")
        Traceback (most recent call last):
        NeonatalSegLib.errors.NeonatalSegError: The budget of 150 percent is more than all slices: give at most 100.
    """

    amount: float
    unit: str = "percent"
    per: str = "scan"
    axis: str = "axial"
    selection: str = "equidistant"
    extent: str = "brain"
    seed: int = 0
    min_gap_mm: float = 4.0
    cap_per_scan: int | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise NeonatalSegError(
                    f"{getattr(self, name)!r} is not a possible {name} of a budget: choose {', '.join(choices)}."
                )
        if not _is_number(self.amount) or self.amount <= 0:
            raise NeonatalSegError(f"The budget of {self.amount} {self.unit} is empty: give a number above 0.")
        if self.unit == "percent" and self.amount > 100:
            raise NeonatalSegError(f"The budget of {self.amount:g} percent is more than all slices: give at most 100.")
        if self.unit == "slices" and self.amount != int(self.amount):
            raise NeonatalSegError(f"The budget of {self.amount:g} slices is not a whole number.")
        if not _is_number(self.min_gap_mm) or self.min_gap_mm < 0:
            raise NeonatalSegError(f"The gap of {self.min_gap_mm} mm between slices must be 0 or more.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise NeonatalSegError(f"The seed {self.seed!r} must be a whole number, 0 or more.")
        if self.cap_per_scan is not None and (not isinstance(self.cap_per_scan, int) or self.cap_per_scan < 1):
            raise NeonatalSegError(f"The cap of {self.cap_per_scan!r} slices per scan must be 1 or more.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> BudgetSettings:
        """Read what ``to_json`` gave; NeonatalSegError for an unknown or missing entry."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise NeonatalSegError(f"Unknown budget setting {unknown[0]!r}: the settings are {', '.join(known)}.")
        if "amount" not in given:
            raise NeonatalSegError("The budget settings have no 'amount': give a number of slices or percent.")
        return cls(**{**given, "exclude": tuple(given.get("exclude", ()))})


@dataclass(frozen=True)
class Plan:
    """The slices to annotate: scan by scan, axis by axis, ascending.

    Attributes:
        grids: of every scan of the study, by name; a scan that the budget passed over has no slice.
        settings: from which it was made.
        notes: in words, where the settings could not be kept to the letter.
    """

    slices: tuple[PlannedSlice, ...]
    grids: Mapping[str, Grid]
    settings: BudgetSettings
    notes: tuple[str, ...] = ()

    def for_scan(self, name: str) -> tuple[PlannedSlice, ...]:
        """The slices of one scan."""
        return tuple(s for s in self.slices if s.scan == name)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "settings": self.settings.to_json(),
            "grids": {name: asdict(grid) for name, grid in self.grids.items()},
            "slices": [asdict(s) for s in self.slices],
            "notes": list(self.notes),
        }

    def write(self, path: str | Path) -> None:
        """Write as JSON; a reader sees the old file or the new one, also after a crash.

        Raises:
            NeonatalSegError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1) + "\n"
        try:
            atomic.write_text(Path(path), text)
        except OSError as error:
            raise NeonatalSegError(f"The plan {path} could not be written ({error.strerror or error}).") from error

    def check_scan(self, name: str, grid: Grid, foreground: np.ndarray | None = None) -> None:
        """Make sure that this plan was made for a scan on ``grid`` and, where given, meets its ``foreground``.

        Raises:
            NeonatalSegError: unknown scan, another size or position, or slices without any foreground.
        """
        if name not in self.grids:
            raise NeonatalSegError(f"The plan knows no scan {name!r}: it is for {', '.join(self.grids)}.")
        planned = self.grids[name]
        if planned.size != grid.size:
            sizes = (" x ".join(map(str, g.size)) for g in (planned, grid))
            raise NeonatalSegError(
                f"The plan was made for another scan than {name}: for {next(sizes)} voxels, and this one has "
                f"{next(sizes)}. Make a new plan for it."
            )
        if not planned.is_like(grid):
            away = float(np.linalg.norm(planned.corners_mm() - grid.corners_mm(), axis=1).max())
            raise NeonatalSegError(
                f"The plan was made for another scan than {name}: its voxels lie up to {away:.1f} mm elsewhere "
                "(origin, spacing or direction differ). Make a new plan for it."
            )
        if foreground is not None:
            outside = [s for s in self.for_scan(name) if not foreground[plane(grid, s.axis, s.index)].any()]
            if outside and (self.settings.extent == "brain" or len(outside) == len(self.for_scan(name))):
                raise NeonatalSegError(
                    f"The slice {outside[0].key} lies outside the brain ({len(outside)} of the plan's slices do): "
                    "make a new plan."
                )


def read_plan(path: str | Path) -> Plan:
    """Read a plan's JSON.

    Raises:
        NeonatalSegError: unreadable, no plan, of a newer format, or with slices that its scans do not have.
    """
    path = Path(path)
    try:
        text = read_object(path, "plan of slices")
    except NeonatalSegError as error:
        raise NeonatalSegError(f"{error} Expected the JSON file that 'neonatalseg budget' writes.") from error
    try:
        version = int(text["format"])
        if version > FORMAT:
            raise NeonatalSegError(f"The plan {path} has the format {version}: update NeonatalSeg to read it.")
        grids = {name: _read_grid(entry) for name, entry in text["grids"].items()}
        slices = tuple(PlannedSlice(**entry) for entry in text["slices"])
        plan = Plan(slices, grids, BudgetSettings.from_json(text["settings"]), tuple(text.get("notes", ())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NeonatalSegError(
            f"{path} could not be read as a plan of slices ({error}): expected the JSON file that "
            "'neonatalseg budget' writes."
        ) from error
    seen: set[str] = set()
    for s in plan.slices:
        if s.scan not in grids or s.axis not in AXES or s.key in seen:
            raise NeonatalSegError(f"{path}: the slice {s.key} is of an unknown scan or axis, or is there twice.")
        length = grids[s.scan].size[voxel_axis(grids[s.scan], s.axis)]
        if not isinstance(s.index, int) or not 0 <= s.index < length:
            raise NeonatalSegError(f"{path}: the slice {s.key} lies outside its scan, which has {length} such slices.")
        seen.add(s.key)
    return plan


def _read_grid(entry: Mapping[str, Any]) -> Grid:
    size = tuple(int(v) for v in entry["size"])
    spacing, origin, direction = (
        tuple(float(v) for v in entry[key]) for key in ("spacing_mm", "origin_mm", "direction")
    )
    if (len(size), len(spacing), len(origin), len(direction)) != (3, 3, 3, 9):
        raise ValueError("a grid needs 3 sizes, 3 spacings, 3 origins and 9 directions")
    return Grid(size, spacing, origin, direction)  # type: ignore[arg-type]  # lengths were checked


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
