"""Tables and plot of the simulated annotator: DSC against number of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.experiments.annotator.simulation import AnnotatorSettings, mean_of
from NeonatalSegLib.experiments.tables import Spread, Table
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.tissues import PHYSIOLOGICAL

Results = Mapping[str, Mapping[str, Any]]  # of annotator.simulate


def write_annotator_report(
    name: str,
    title: str,
    results: Results,
    settings: AnnotatorSettings,
    model: Model,
    out: Path,
    command: str,
) -> list[Path]:
    """``<name>.md``, ``<name>.tsv``, ``<name>_tissues.tsv`` and ``<name>.png`` in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    curves = points(results)
    table = summary(f"{title}: mean DSC of scans that were not annotated", curves)
    tissues = by_tissue("By tissue, change after fine-tuning", results, settings)
    files = [out / f"{name}.md", out / f"{name}.tsv", out / f"{name}_tissues.tsv", out / f"{name}.png"]
    draw(title, curves, files[3])
    write_text(files[1], table.tsv())
    write_text(files[2], tissues.tsv())
    files[0].write_text(
        "\n\n".join(
            [
                f"# {title}",
                f"`{command}`",
                table.markdown(),
                tissues.markdown(),
                f"![DSC against number of slices]({files[3].name})",
                _accounts(results, settings, model),
            ]
        )
        + "\n",
        encoding="utf-8",
    )
    return files


def points(results: Results) -> dict[tuple[str, str, float], dict[str, list[float]]]:
    """For every (strategy, selection, percent): a value for each run.

    Slices, mean DSC before and after, the change of it, that on the source, seconds and mix.
    """
    found: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for key, result in results.items():
        strategy, rest = key.split("-", 1)
        selection, percent, _ = rest.rsplit("-", 2)
        point = found.setdefault((strategy, selection, float(percent)), {})
        figures = {
            "slices": float(result["slices"]),
            "before": _mean(result["tested"], "before"),
            "after": _mean(result["tested"], "after"),
            "source": _mean(result["source"], "after") - _mean(result["source"], "before"),
            "seconds": float(result["seconds"]),
            "mix": float(result["mix"]),
        }
        figures["change"] = figures["after"] - figures["before"]
        for what, value in figures.items():
            point.setdefault(what, []).append(value)
    return found


def summary(title: str, curves: Mapping[tuple[str, str, float], Mapping[str, list[float]]]) -> Table:
    """A row for every strategy, selection and budget."""
    columns = ("Strategy", "Selection", "Budget", "Slices", "Before", "After", "Change", "Change on the source", "Mix")
    rows = [
        (
            strategy, selection, f"{percent:g} %", Spread.of(point["slices"], 0), Spread.of(point["before"]),
            Spread.of(point["after"]), Spread.of(point["change"]), Spread.of(point["source"]),
            Spread.of(point["mix"], 2),
        )
        for (strategy, selection, percent), point in curves.items()
    ]  # fmt: skip
    return Table(title, columns, tuple(rows))


def by_tissue(title: str, results: Results, settings: AnnotatorSettings) -> Table:
    """Change of DSC per tissue, for the strategy and selection that are compared most."""
    grouped: dict[float, list[Mapping[str, Any]]] = {}
    for key, result in results.items():
        if key.startswith(f"{settings.compared_with}-{settings.selections[0]}-"):
            grouped.setdefault(float(key.rsplit("-", 2)[1]), []).append(result)
    rows = []
    for percent, runs in grouped.items():
        cells: list[object] = [f"{percent:g} %"]
        for tissue in PHYSIOLOGICAL:
            values = [_change(result["tested"], tissue.index) for result in runs]
            cells.append(Spread.of(values))
        rows.append(tuple(cells))
    return Table(title, ("Budget", *(t.abbreviation for t in PHYSIOLOGICAL)), tuple(rows))


def draw(title: str, curves: Mapping[tuple[str, str, float], Mapping[str, list[float]]], file: Path) -> None:
    """Two panels, strategies and selections: mean and SD over runs against slices; dashed: before.

    A new network from scratch lies so far below that the other curves could not be told apart: it is in the table.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = next(iter(curves))[1]
    compared = next((s for s, selection, _ in curves if selection != first), "full")
    strategies = dict.fromkeys((s, first) for s, selection, _ in curves if selection == first and s != "scratch")
    selections = dict.fromkeys((s, selection) for s, selection, _ in curves if s == compared)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, constrained_layout=True)
    before = float(np.mean([value for point in curves.values() for value in point["before"]]))
    panels = ((f"Strategies ({first} slices)", strategies, 0), (f"Selections ({compared})", selections, 1))
    for axis, (heading, lines, part) in zip(axes, panels, strict=True):
        for shift, line in enumerate(lines):  # a little beside each other, so that the bars can be told apart
            chosen = [point for key, point in curves.items() if key[:2] == line]
            x = [float(np.mean(point["slices"])) + 0.25 * shift for point in chosen]
            y = [Spread.of(point["after"]) for point in chosen]
            axis.errorbar(x, [s.mean for s in y], [s.sd for s in y], marker="o", capsize=3, label=line[part])
        axis.axhline(before, linestyle="--", color="0.4", label="before")
        axis.set(title=heading, xlabel="annotated slices")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean DSC, scans not annotated")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _accounts(results: Results, settings: AnnotatorSettings, model: Model) -> str:
    seeds = sorted({key.rsplit("-s", 1)[1] for key in results})
    slowest = max(float(result["seconds"]) for result in results.values())
    warnings = sorted({text for result in results.values() for text in result["warnings"]})
    seeds_text = ", ".join(seeds)
    drawn = f"annotated ({settings.annotated}) and which others are tested ({settings.tested})"
    scratch = any(key.startswith("scratch-") for key in results)
    lines = (
        f"Model: {model.name}, SHA-256 of its weights {model.hash[:12]}...",
        "Slices are planned, revealed and learned by the functions behind the panel, on arrays of the network's grid.",
        "The study's folder and the model store are not in the loop.",
        f"Seeds: {seeds_text}; each draws which scans are {drawn}, the slices and the patches.",
        *(["The plot leaves out scratch, which lies far below."] if scratch else []),
        "Mean ± standard deviation over seeds; of a run, the mean over its tested scans.",
        f"Slices: {settings.axis} axes; a fifth of them chooses the mix of old and new weights, unlearned.",
        "Mix: share of the new weights. Change on the source: scans of the model's own domain that no training saw.",
        f"Longest fine-tuning: {slowest:.0f} s, with whatever else the machine was doing.",
        f"Settings of the fine-tuning that differ from the defaults: {dict(settings.finetuning) or 'none'}.",
    )
    return "\n".join([*(f"- {line}" for line in lines), *(f"- Told by a run: {text}" for text in warnings)])


def _mean(side: Mapping[str, Any], when: str) -> float:
    return float(np.mean([mean_of(scan[when]) for scan in side.values()]))


def _change(side: Mapping[str, Any], index: int) -> float:
    values = [(scan["before"][index], scan["after"][index]) for scan in side.values()]
    known: Sequence[float] = [after - before for before, after in values if before is not None and after is not None]
    return float(np.mean(known)) if known else float("nan")
