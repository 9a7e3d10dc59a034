"""Plots of results: every run a dot, mean and standard deviation as a bar of error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from NeonatalSegLib.experiments.tables import Spread

COLOURS = ("#1b5e9b", "#c8562a", "#5a8f3c", "#7b5aa6")  # told apart in grey print and by most colour-blind people


@dataclass(frozen=True)
class Panel:
    """One axis of a plot.

    Attributes:
        label: of the vertical axis.
        series: name -> label on the horizontal axis -> one value a run.
    """

    label: str
    series: Mapping[str, Mapping[str, Sequence[float]]]


def draw(panels: Sequence[Panel], title: str, file: Path) -> None:
    """Write the panels, one below the other, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 + 3.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        labels = list(dict.fromkeys(label for values in panel.series.values() for label in values))
        width = 0.6 / max(1, len(panel.series))
        for number, (name, values) in enumerate(panel.series.items()):
            colour = COLOURS[number % len(COLOURS)]
            places = [labels.index(label) + (number - (len(panel.series) - 1) / 2) * width for label in values]
            spreads = [Spread.of(runs) for runs in values.values()]
            deviations = [0.0 if s.sd != s.sd else s.sd for s in spreads]  # one run has none
            means = [s.mean for s in spreads]
            axes.errorbar(places, means, deviations, fmt="o", color=colour, capsize=4, markersize=6, label=name)
            for place, runs in zip(places, values.values(), strict=True):
                axes.plot([place + 0.25 * width] * len(runs), list(runs), ".", color=colour, alpha=0.5, markersize=4)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylabel(panel.label)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130, metadata={"Software": None})
