"""Which slices a budget buys: scans are measured, the budget is dealt out, slices are picked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from NeonatalSegLib.annotation import slice_selection
from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice
from NeonatalSegLib.annotation.slice_selection import Candidates, Pick, ScanToPlan, candidates
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import AXES, Grid, position_mm
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES


def plan_slices(scans: Iterable[ScanToPlan], settings: BudgetSettings) -> Plan:
    """Choose the slices. Scans may come from a generator: each is measured and let go before the next.

    Raises:
        NeonatalSegError: no scan, a name twice, arrays that do not fit, no foreground in the extent, a budget larger
            than what there is, or no uncertainty where the selection needs it.

    Example:
        >>> grid = Grid((20, 30, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
        >>> scan = ScanToPlan("sub-01", grid, np.ones(grid.shape, bool))
        >>> [s.key for s in plan_slices([scan], BudgetSettings(2, "slices", axis="axial")).slices]
        ['sub-01/axial/...', 'sub-01/axial/...']
    """
    grids: dict[str, Grid] = {}
    measured: dict[str, list[Candidates]] = {}
    for scan in scans:
        if scan.name in grids:
            raise NeonatalSegError(f"Two scans have the name {scan.name!r}: each needs its own.")
        _check_arrays(scan, settings)
        grids[scan.name] = scan.grid
        measured[scan.name] = [
            _without(candidates(scan, axis, settings.extent, settings.selection), settings.exclude)
            for axis in _axes_of(scan.name, settings)
        ]
    if not grids:
        raise NeonatalSegError("There is no scan to spend the budget on: give one at least.")
    groups = []
    for name, number in _numbers(measured, settings).items():
        order = _random(settings, "axes", name).permutation(len(measured[name]))
        spread = _spread(number, [len(axis.indices) for axis in measured[name]], order)
        groups += [replace(axis, number=n) for axis, n in zip(measured[name], spread, strict=True) if n]
    picks, notes = _pick(groups, settings)
    slices = [
        PlannedSlice(group.scan, group.axis, index, position_mm(grids[group.scan], group.axis, index), reason)
        for group, found in zip(groups, picks, strict=True)
        for index, reason in found
    ]
    return Plan(tuple(slices), grids, settings, tuple(notes))


def _without(found: Candidates, keys: Sequence[str]) -> Candidates:
    """The candidates that have none of these keys."""
    out = set(keys)
    keep = np.array([f"{found.scan}/{found.axis}/{index}" not in out for index in found.indices], bool)
    names = ("indices", "areas_mm2", "uncertainty", "tissue_uncertainty", "tissue_areas_mm2")
    arrays = {name: getattr(found, name) for name in names}
    return replace(found, **{name: array[keep] for name, array in arrays.items() if array is not None})


def _numbers(measured: Mapping[str, Sequence[Candidates]], settings: BudgetSettings) -> dict[str, int]:
    """How many slices each scan gets."""
    cap = settings.cap_per_scan or math.inf
    limits = {name: int(min(sum(len(axis.indices) for axis in axes), cap)) for name, axes in measured.items()}
    extents = {name: sum(axis.extent for axis in axes) / len(axes) for name, axes in measured.items()}
    if settings.per == "scan":
        numbers = {name: int(min(_amount(settings, extents[name]), cap)) for name in measured}
        for name, number in numbers.items():
            if number > limits[name]:
                where = f"{name} ({', '.join(axis.axis for axis in measured[name])})"
                raise _too_large(settings, where, limits[name])
        return numbers
    total = _amount(settings, sum(extents.values()))
    if total > sum(limits.values()):
        raise _too_large(settings, f"the {len(measured)} scans", sum(limits.values()))
    if settings.selection == "uncertainty":  # what cannot be divided goes where the model is least certain
        order = np.argsort([-_mean_uncertainty(axes) for axes in measured.values()], kind="stable")
    else:
        order = _random(settings, "scans").permutation(len(measured))
    return dict(zip(measured, _spread(total, list(limits.values()), order), strict=True))


def _mean_uncertainty(axes: Sequence[Candidates]) -> float:
    """Over the foreground of all candidates of one scan."""
    known = [(a.uncertainty, a.areas_mm2) for a in axes if a.uncertainty is not None and len(a.indices)]
    return float(np.mean([np.average(values, weights=areas) for values, areas in known])) if known else 0.0


def _amount(settings: BudgetSettings, extent: float) -> int:
    if settings.unit == "slices":
        return int(settings.amount)
    return max(1, math.floor(settings.amount / 100 * extent + 0.5))


def _spread(total: int, limits: Sequence[int], order: Sequence[int] | np.ndarray) -> list[int]:
    """``total`` dealt out one by one in ``order``, round after round, never above a limit."""
    numbers = [0] * len(limits)
    while total > 0:
        for place in order:
            if total > 0 and numbers[place] < limits[place]:
                numbers[place] += 1
                total -= 1
    return numbers


def _pick(groups: Sequence[Candidates], settings: BudgetSettings) -> tuple[list[list[Pick]], list[str]]:
    if settings.selection == "uncertainty":
        return slice_selection.most_uncertain(groups, settings.min_gap_mm, _random(settings, "uncertainty"))
    choose = {
        "equidistant": slice_selection.equidistant,
        "random": slice_selection.at_random,
        "foreground-random": slice_selection.foreground_at_random,
    }[settings.selection]
    return [choose(group, _random(settings, group.axis, group.scan)) for group in groups], []


def _axes_of(name: str, settings: BudgetSettings) -> tuple[str, ...]:
    if settings.axis == "mixed":
        return AXES
    if settings.axis == "random":
        return (AXES[_random(settings, "axis", name).integers(3)],)
    return (settings.axis,)


def _random(settings: BudgetSettings, *purpose: str) -> np.random.Generator:
    """A generator for one purpose and scan: a scan more in the study does not change what others draw."""
    return np.random.default_rng([settings.seed, *"/".join(purpose).encode()])


def _check_arrays(scan: ScanToPlan, settings: BudgetSettings) -> None:
    if settings.selection == "uncertainty" and (scan.uncertainty is None or scan.prediction is None):
        raise NeonatalSegError(
            f"{scan.name} has no map of uncertainty or no prediction, and the selection 'uncertainty' needs both: "
            "segment it with a model first, or choose another selection."
        )
    for array in (scan.foreground, scan.prediction, scan.uncertainty):
        if array is not None and array.shape != scan.grid.shape:
            raise NeonatalSegError(
                f"{scan.name}: an array of {array.shape} voxels does not lie on the scan's {scan.grid.shape}."
            )
    if scan.prediction is not None and scan.prediction.max() >= NUMBER_OF_CLASSES:
        raise NeonatalSegError(f"{scan.name}: the prediction has labels above {NUMBER_OF_CLASSES - 1}.")


def _too_large(settings: BudgetSettings, where: str, most: int) -> NeonatalSegError:
    limits = f", at most {settings.cap_per_scan} of a scan" if settings.cap_per_scan else ""
    limits += " without those of earlier studies" if settings.exclude else ""
    return NeonatalSegError(
        f"The budget of {settings.amount:g} {settings.unit} is larger than what there is: the extent "
        f"'{settings.extent}' of {where} has {most} slices to choose from{limits}. Choose fewer."
    )
