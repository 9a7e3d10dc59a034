"""Tables of results: means and standard deviations over runs, as Markdown and as tab-separated text.

The figure of a run is a mean over its subjects; the deviation is over runs (n - 1), as in the paper's Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from NeonatalSegLib.evaluation.metrics import mean_dice, mean_dice_no_background
from NeonatalSegLib.evaluation.tables import markdown_table
from NeonatalSegLib.tissues import PHYSIOLOGICAL

Result = Mapping[str, Any]
Figure = Callable[[Mapping[str, Any]], float]  # of one evaluated subject


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and number of some runs' figures; NaN where there is none."""

    mean: float
    sd: float
    count: int
    digits: int = 3

    @classmethod
    def of(cls, values: Iterable[float], digits: int = 3) -> Spread:
        array = np.array([v for v in values if not np.isnan(v)], dtype=np.float64)
        mean = float(array.mean()) if array.size else float("nan")
        return cls(mean, float(array.std(ddof=1)) if array.size > 1 else float("nan"), array.size, digits)

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "n/a"
        text = f"{self.mean:.{self.digits}f}"
        return text if np.isnan(self.sd) else f"{text} ± {self.sd:.{_digits(self.sd, self.digits)}f}"


def _digits(value: float, least: int) -> int:
    """Decimals that a deviation needs to show its first figure; rounding errors of equal values are none."""
    return least if value < 1e-9 else max(least, -math.floor(math.log10(value)))


@dataclass(frozen=True)
class Table:
    """Rows of words, numbers and spreads under a heading."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]  # str, int or Spread

    def markdown(self) -> str:
        return f"{self.title}\n\n{markdown_table(self.columns, [[str(cell) for cell in row] for row in self.rows])}"

    def tsv(self) -> str:
        """With the heading; a column of spreads becomes three: mean, standard deviation, number of runs."""
        spread = [any(isinstance(row[i], Spread) for row in self.rows) for i in range(len(self.columns))]
        heads = [[c, f"{c} SD", f"{c} n"] if s else [c] for c, s in zip(self.columns, spread, strict=True)]
        lines = [[head for group in heads for head in group]]
        lines += [[text for cell, s in zip(row, spread, strict=True) for text in _cells(cell, s)] for row in self.rows]
        return "".join("\t".join(line) + "\n" for line in lines)


def _cells(cell: object, spread: bool) -> list[str]:
    if isinstance(cell, Spread):
        return [*("n/a" if np.isnan(v) else f"{v:.6f}" for v in (cell.mean, cell.sd)), str(cell.count)]
    return [str(cell), "n/a", "n/a"] if spread else [str(cell)]


def dsc_all(subject: Mapping[str, Any]) -> float:
    """The paper's "Mean DSC" of one subject."""
    return mean_dice(_dsc(subject))


def dsc_no_background(subject: Mapping[str, Any]) -> float:
    """The paper's "Mean DSC (no BG)" of one subject."""
    return mean_dice_no_background(_dsc(subject))


def dsc_of(index: int) -> Figure:
    """DSC of one class."""
    return lambda subject: float(_dsc(subject)[index])


def age_error(subject: Mapping[str, Any]) -> float:
    """Weeks between the age that the network tells and the true one."""
    return abs(subject["told_age_weeks"] - subject["age_weeks"])


def _dsc(subject: Mapping[str, Any]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in subject["dsc"]], dtype=np.float64)


def by_run(results: Iterable[Result], condition: str, side: str, figure: Figure) -> list[float]:
    """One number a run, in the order of the runs: the mean of ``figure`` over the subjects of a side."""
    runs = sorted((r for r in results if r["condition"] == condition), key=lambda r: r["run"])
    return [_mean([figure(s) for s in r["subjects"] if s["set"] == side]) for r in runs]


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if not np.isnan(v)]
    return float(np.mean(finite)) if finite else float("nan")


def validation_and_test(
    title: str,
    results: Sequence[Result],
    conditions: Mapping[str, str],
    paper: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """The layout of the paper's Tables 1 and 3: four DSC columns, a row for every condition (key: its text).

    ``paper`` holds the paper's own four figures by condition, given below in rows of their own.
    """
    columns = ("", *(f"{side} {head}" for side in ("Validation", "Test") for head in ("mean DSC", "mean DSC (no BG)")))
    rows: list[tuple[object, ...]] = [
        (
            text,
            *(
                Spread.of(by_run(results, key, side, figure))
                for side in ("validation", "test")
                for figure in (dsc_all, dsc_no_background)
            ),
        )
        for key, text in conditions.items()
    ]
    rows += [(f"paper: {text}", *figures) for text, figures in (paper or {}).items()]
    return Table(title, columns, tuple(rows))


def per_tissue(title: str, results: Sequence[Result], condition: str, paper: Mapping[str, Sequence[str]]) -> Table:
    """The layout of the paper's Table 2: a column for every tissue."""
    rows: list[tuple[object, ...]] = [
        (f"{text} DSC", *(Spread.of(by_run(results, condition, side, dsc_of(t.index))) for t in PHYSIOLOGICAL))
        for side, text in (("validation", "Validation"), ("test", "Test"))
    ]
    rows += [(f"paper: {text}", *figures) for text, figures in paper.items()]
    return Table(title, ("", *(t.abbreviation for t in PHYSIOLOGICAL)), tuple(rows))


def accounts(results: Sequence[Result], conditions: Mapping[str, str]) -> Table:
    """What every condition was trained with and how long that took."""
    rows = []
    for key, text in conditions.items():
        runs = [r for r in results if r["condition"] == key]
        spreads = [
            Spread.of([r["labelled"]["scans"] for r in runs], 0),
            Spread.of([r["labelled"]["slices"] for r in runs], 0),
            Spread.of([r["labelled"]["voxels"] / 1000 for r in runs], 0),
            Spread.of([r["steps"] for r in runs], 0),
            Spread.of([r["seconds"] for r in runs], 0),
            Spread.of([_number(r["patches_per_second"]) for r in runs], 2),
            Spread.of([100 * _number(r["loader_share"]) for r in runs], 0),
            Spread.of([_number(r.get("loss")) for r in runs], 2),
        ]
        seeds = ", ".join(str(r["seed"]) for r in sorted(runs, key=lambda r: r["run"]))
        rows.append((text, seeds, *spreads))
    columns = (
        "",
        "Seeds",
        "Scans",
        "Labelled slices",
        "Labelled voxels (1000)",
        "Steps",
        "Seconds of training",
        "Patches/s",
        "Waiting for patches (%)",
        "Loss of the last epoch",
    )
    return Table("What was trained, mean ± SD over runs", columns, tuple(rows))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
