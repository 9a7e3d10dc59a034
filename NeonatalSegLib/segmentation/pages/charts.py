"""Volume against age with the growth bands, as the shapes of an SVG; ``charts.html`` draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from NeonatalSegLib.segmentation.growth import GROWTH, INTRACRANIAL, OLDEST, YOUNGEST
from NeonatalSegLib.segmentation.verdict import CHECK, FAIL, VERDICTS
from NeonatalSegLib.tissues import PHYSIOLOGICAL

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 10, 24  # of the plot itself
NAMES = {INTRACRANIAL: "Intracranial (all eight)", **{t.key: t.name for t in PHYSIOLOGICAL}}
WHAT_THE_BANDS_ARE = (
    "Light band: what the plausibility check takes for possible. Dark band: usual at that age, z-scores of -2 to 2 or "
    "the 2nd to 98th centile, by published growth fits on 593 newborns of the dHCP (Multi-BOUNTI). A factor for these "
    "labels and the 1.6 times wider spread come from 15 ALBERTs and 9 age templates; volumes are taken as log-normal; "
    "for the hippocampus nothing was published. Indicative: no reference for clinical use."
)


@dataclass(frozen=True)
class Point:
    """A volume at an age; ``verdict`` chooses its mark."""

    age_weeks: float | None
    volume_ml: float
    verdict: str


@dataclass(frozen=True)
class Chart:
    """One chart in pixels of a ``WIDTH`` x ``HEIGHT`` picture; paths are those of an SVG's ``d``.

    Attributes:
        marks: a path by verdict.
        levels: heights of volumes whose age is not known: a line across.
        weeks_to_x: (slope, intercept); ``ml_to_y`` likewise. For the page's script.
    """

    key: str
    title: str
    possible: str
    usual: str
    middle: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: dict[str, str]
    levels: tuple[float, ...]
    weeks_to_x: tuple[float, float]
    ml_to_y: tuple[float, float]


def growth_chart(key: str, points: Sequence[Point]) -> Chart:
    """The chart of one tissue, or of "intracranial".

    Args:
        key: of ``growth.GROWTH``.
        points: what to mark in it, however far from the bands.
    """
    growth = GROWTH[key]
    ages = np.linspace(YOUNGEST, OLDEST, 39)
    given = [p.age_weeks for p in points if p.age_weeks is not None]
    first, last = min([YOUNGEST, *given]), max([OLDEST, *given])
    most = 1.05 * max([growth.range_ml(OLDEST)[1], *(p.volume_ml for p in points)])
    x_slope, y_slope = (WIDTH - LEFT - RIGHT) / (last - first), -(HEIGHT - TOP - BOTTOM) / most
    across, up = (x_slope, LEFT - x_slope * first), (y_slope, float(HEIGHT - BOTTOM))

    def place(age: float, volume: float) -> str:
        return f"{across[0] * age + across[1]:.1f} {up[0] * volume + up[1]:.1f}"

    def band(limits: Callable[[float], tuple[float, float] | None]) -> str:
        edges = [(age, both) for age in ages if (both := limits(age))]
        corners = [(age, both[1]) for age, both in edges] + [(age, both[0]) for age, both in reversed(edges)]
        return "M" + "L".join(place(*corner) for corner in corners) + "Z" if corners else ""

    marks = {
        verdict: "".join(_mark(verdict, place(p.age_weeks, p.volume_ml)) for p in points
                         if p.verdict == verdict and p.age_weeks is not None)
        for verdict in dict.fromkeys([*VERDICTS, *(p.verdict for p in points)])
    }  # fmt: skip
    return Chart(
        key,
        NAMES[key],
        possible=band(growth.range_ml),
        usual=band(growth.usual_ml),
        middle="M" + "L".join(place(age, growth.expected_ml(age)) for age in ages),
        x_ticks=tuple((across[0] * age + across[1], f"{age:g}") for age in _ticks(first, last, 6)),
        y_ticks=tuple((up[0] * volume + up[1], f"{volume:g}") for volume in _ticks(0.0, most, 4)),
        marks={verdict: path for verdict, path in marks.items() if path},
        levels=tuple(up[0] * p.volume_ml + up[1] for p in points if p.age_weeks is None),
        weeks_to_x=across,
        ml_to_y=up,
    )


def _mark(verdict: str, place: str) -> str:
    """A cross for fail, a triangle for check, else a dot, which the round ends of a line of no length make."""
    shapes = {FAIL: "m-3.5 -3.5l7 7m0 -7l-7 7", CHECK: "m-4 3h8l-4 -7z"}
    return f"M{place}{shapes.get(verdict, 'h0')}"


def _ticks(lowest: float, highest: float, at_most: int) -> list[float]:
    """Round values within a range."""
    rough = (highest - lowest) / at_most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * f for f in (1, 2, 4, 5, 10) if unit * f >= rough)
    return [step * k for k in range(math.ceil(lowest / step), math.floor(highest / step) + 1)]
