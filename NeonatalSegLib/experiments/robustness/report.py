"""Page, table and heat map of the robustness matrix."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.datasets.ages import read_table
from NeonatalSegLib.datasets.kinds import TEMPLATE, kind_by_name
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.robustness import alterations as a
from NeonatalSegLib.experiments.robustness.alterations import FACTORS, Alteration, one_at_a_time
from NeonatalSegLib.experiments.tables import Table, dsc_no_background
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.segmentation.segmenter import METHOD
from NeonatalSegLib.tissues import PHYSIOLOGICAL

NAME = "robustness"
CONTRASTS = ("T1+T2", "T2", "T1")
TEXTS = {
    "native": "as they are",
    "0.5mm": "voxels of 0.5 mm",
    "1mm": "voxels of 1 mm",
    "3mm-slices": "axial slices of 3 mm",
    "skull": "synthetic skull on",
    "whole": "in another person's whole head",
    "RAS": "array stored as RAS",
    "oblique": f"field of view tilted by {a.TILT_DEGREES:g}°",
    "noise": "noise",
    "bias": "bias field",
    "motion": "motion",
    "scale-0.85": "0.85 of the size",
    "scale-0.7": "0.7 of the size",
}
Row = Mapping[str, Any]  # of robustness.evaluate
Key = tuple[str, str]  # alteration or template, contrast
Figures = dict[Key, float]


@dataclass(frozen=True)
class Earlier:
    """Mean DSC over the eight tissues of another model, by (subject, alteration, contrast)."""

    model: str
    dsc: Mapping[tuple[str, str, str], float]
    method: int

    def of(self, row: Row) -> float:
        """The figure of the same cell and subject; NaN where it was not evaluated."""
        return self.dsc.get((row["subject"], alteration_of(row), row["contrast"]), float("nan"))


def alteration_of(row: Row) -> str:
    """The key of what was done to the scan of a row."""
    return Alteration(**{name: row[name] for name in FACTORS}).key


def read_earlier(folder: Path, config: Mapping[str, Any]) -> Earlier:
    """An earlier model's results from its own OUT folder.

    Raises:
        NeonatalSegError: the folder holds none, or they were drawn with another seed or other alterations.
    """
    try:
        found = read_object(folder / "config.json", "configuration", nan=True)
        rows = read_table(folder / f"{NAME}.tsv")
        dsc = {(r["subject"], alteration_of(r), r["contrast"]): float(r["mean_dsc"]) for r in rows}
    except (OSError, ValueError, KeyError, NeonatalSegError) as error:
        raise NeonatalSegError(
            f"{folder} holds no finished robustness matrix (config.json and {NAME}.tsv): give the --out folder of an "
            "earlier model to --before."
        ) from error
    for key in ("seed", "alterations"):
        if found.get(key) != config[key]:
            raise NeonatalSegError(
                f"The figures in {folder} cannot be compared: its {key} is {found.get(key)}, here {config[key]}. "
                "Evaluate the earlier model again with the same one."
            )
    return Earlier(str(found.get("model")), dsc, int(found.get("method", 1)))


def write_report(
    rows: Sequence[Row], model: Model, earlier: Earlier | None, out: str | Path, command: str
) -> list[Path]:
    """``robustness.md``, ``robustness.tsv`` (a row for every cell and subject) and ``robustness.png`` in ``out``."""
    out = Path(out)
    page, table, picture = (out / f"{NAME}.{ending}" for ending in ("md", "tsv", "png"))
    write_text(table, as_tsv(rows, model))
    now, then = figures(rows, dsc_no_background), figures(rows, earlier.of) if earlier else {}
    draw(now, then, model.name, earlier.model if earlier else "", picture)
    parts = [f"# Robustness of {model.name}", "Made by this command:", f"    {command}", *_results(rows, now, then)]
    if earlier:
        other = ""
        if earlier.method != METHOD:
            other = f", segmented in an earlier way (METHOD {earlier.method}, now {METHOD})"
        parts += [f"Before: the model {earlier.model} on the same altered scans{other}.", _changes(now, then)]
    parts += [f"![Mean DSC of every cell]({picture.name})", "## How to read it", _notes(rows, model)]
    write_text(page, "\n\n".join(parts) + "\n")
    return [page, table, picture]


def as_tsv(rows: Iterable[Row], model: Model) -> str:
    """Every cell of every subject; DSC "n/a" where neither the truth nor the prediction shows the tissue."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    heads = ["model", "sha256", "part", "subject", "age_weeks", "contrast", *FACTORS]
    table.writerow([*heads, "mean_dsc", *(t.key for t in PHYSIOLOGICAL), "seconds", "refused", "warnings"])
    for row in rows:
        dsc = [dsc_no_background(row), *(row["dsc"][t.index] for t in PHYSIOLOGICAL)]
        told = [row["refused"] or "n/a", " ".join(row["warnings"]) or "n/a"]
        age = "n/a" if row["age_weeks"] is None else f"{row['age_weeks']:g}"
        cells = [model.name, model.hash, row["part"], row["subject"], age, *(row[k] for k in heads[5:])]
        cells += ["n/a" if v is None or np.isnan(v) else f"{v:.6f}" for v in dsc]
        table.writerow([*cells, row["seconds"], *(" ".join(t.split()) for t in told)])
    return text.getvalue()


def figures(rows: Iterable[Row], figure: Callable[[Row], float]) -> Figures:
    """Of every one-at-a-time cell and every template: the mean of ``figure`` over subjects, by (name, contrast)."""
    found: dict[Key, list[float]] = {}
    for row in rows:
        if row["part"] in ("single", "templates"):
            name = row["subject"] if row["part"] == "templates" else alteration_of(row)
            found.setdefault((name, row["contrast"]), []).append(figure(row))
    return {key: float(np.mean(values)) for key, values in found.items()}


def split(found: Figures) -> tuple[Figures, Figures]:
    """The cells of the matrix, and the templates."""
    cells = {alteration.key for alteration in one_at_a_time()}
    return {k: v for k, v in found.items() if k[0] in cells}, {k: v for k, v in found.items() if k[0] not in cells}


def matrix_mean(found: Figures) -> float:
    """Unweighted mean over cells whose figures are already means over subjects; NaN where a cell has none."""
    return float(np.mean(list(found.values()))) if found else float("nan")


def _results(rows: Sequence[Row], now: Figures, then: Figures) -> list[str]:
    parts = []
    matrix, templates = split(now)
    old_matrix, old_templates = split(then)
    if matrix:
        parts += ["## Held-out newborns", _mean_text("the matrix", matrix, old_matrix)]
        parts.append(_table("Mean DSC over the eight tissues (difference from native)", matrix, "native").markdown())
        if old_matrix:
            parts.append(_compared("Before -> after", matrix, old_matrix).markdown())
        parts.append(_tissues("By tissue, mean over the cells of the matrix", rows).markdown())
    if templates:
        parts += ["## Age templates, as they are", _mean_text("the templates", templates, old_templates)]
        title = "Mean DSC over the six classes of their labels (cerebellum and brainstem are one, and so are deep grey "
        parts.append(_table(title + "matter and hippocampus)", templates, "").markdown())
        if old_templates:
            parts.append(_compared("Before -> after", templates, old_templates).markdown())
    parts += [_combined(rows, part) for part in ("sample", "product") if any(r["part"] == part for r in rows)]
    return parts


def _mean_text(what: str, now: Figures, then: Figures) -> str:
    by_contrast = ", ".join(f"{c} {matrix_mean(_of(now, c)):.3f}" for c in CONTRASTS)
    text = f"Mean of {what}: **{matrix_mean(now):.3f}** ({by_contrast})."
    return f"{text} Before: {_text(matrix_mean(then))}." if then else text


def _of(found: Figures, contrast: str) -> Figures:
    return {key: value for key, value in found.items() if key[1] == contrast}


def _names(found: Figures) -> list[str]:
    return list(dict.fromkeys(name for name, _ in found))


def _table(title: str, found: Figures, native: str) -> Table:
    """A row for every level or template; beside the figure its difference from the row ``native``."""

    def cell(name: str, contrast: str) -> str:
        value = found[name, contrast]
        if not native or name == native:
            return f"{value:.3f}"
        return f"{value:.3f} ({value - found[native, contrast]:+.3f})"

    rows = tuple((TEXTS.get(n, n), *(cell(n, c) for c in CONTRASTS)) for n in _names(found))
    return Table(title, ("", *CONTRASTS), rows)


def _compared(title: str, now: Figures, then: Figures) -> Table:
    def cell(name: str, contrast: str) -> str:
        old, new = then.get((name, contrast), float("nan")), now[name, contrast]
        return f"{_text(old)} -> {new:.3f}" + ("" if np.isnan(old) else f" ({new - old:+.3f})")

    rows = tuple((TEXTS.get(n, n), *(cell(n, c) for c in CONTRASTS)) for n in _names(now))
    return Table(title, ("", *CONTRASTS), rows)


def _tissues(title: str, rows: Sequence[Row]) -> Table:
    lines = []
    for contrast in CONTRASTS:
        values = [
            matrix_mean(_of(split(figures(rows, lambda row, i=t.index: _or_nan(row["dsc"][i])))[0], contrast))  # type: ignore[misc]
            for t in PHYSIOLOGICAL
        ]
        lines.append((contrast, *map(_text, values)))
    return Table(title, ("", *(t.abbreviation for t in PHYSIOLOGICAL)), tuple(lines))


def _combined(rows: Sequence[Row], part: str) -> str:
    """Cells in which several factors change: one by one where they were sampled, else the mean of each level."""
    chosen = [row for row in rows if row["part"] == part]
    mean = float(np.mean([dsc_no_background(row) for row in chosen]))
    if part == "sample":
        lines = tuple(
            (row["subject"], alteration_of(row).replace("_", ", "), row["contrast"], f"{dsc_no_background(row):.3f}")
            for row in chosen
        )
        title = f"## Several alterations at once\n\nCells drawn from the full product: {len(chosen)}, mean {mean:.3f}."
        return Table(title, ("Newborn", "Alterations", "Contrast", "Mean DSC"), lines).markdown()
    complete = [row for row in rows if row["part"] in ("single", "product")]
    levels = []
    for factor, names in FACTORS.items():
        for name in names:
            values = [
                [dsc_no_background(r) for r in complete if (r[factor], r["contrast"]) == (name, c)] for c in CONTRASTS
            ]
            if all(values):
                levels.append((factor, name, *(f"{np.mean(v):.3f}" for v in values)))
    mean = float(np.mean([dsc_no_background(row) for row in complete]))
    title = f"## The full product\n\nMean over all {len(complete)} cells and newborns: {mean:.3f}. By level:"
    return Table(title, ("Factor", "Level", *CONTRASTS), tuple(levels)).markdown()


def _changes(now: Figures, then: Figures) -> str:
    changes = {key: now[key] - then[key] for key in now if not np.isnan(then.get(key, float("nan")))}
    fell = sorted((value, key) for key, value in changes.items() if value < 0)
    text = f"Of {len(changes)} cells and templates that both have, {len(fell)} fell"
    if not fell:
        return f"{text}."
    return f"{text}: " + "; ".join(f"{TEXTS.get(name, name)}, {c} ({v:+.3f})" for v, (name, c) in fell) + "."


def _notes(rows: Sequence[Row], model: Model) -> str:
    newborns = list(dict.fromkeys(row["subject"] for row in rows if row["part"] != "templates"))
    refused = [row for row in rows if row["refused"]]
    low, high = f"{1 / (1 + a.BIAS):.2f}", f"{1 + a.BIAS:.2f}"
    lines = f"""\
Held-out newborns: {len(newborns)} ({", ".join(newborns) or "none"}); none of them trained or chose the model. One \
model, trained with one seed at every stage: what another seed would give is not measured.
Model {model.name}, SHA-256 of its weights {model.hash[:12]}...
Every figure is what `neonatalseg segment` gives with its usual settings; the probabilities are interpolated on the \
truth's own grid. The truth is never resampled.
The mean of the matrix is the plain mean over the one-at-a-time cells of all three choices of contrast, each the mean \
over newborns first. Templates, and cells with several alterations, do not count in it.
Skull, noise, bias field, motion and sizes are synthetic, made from scans without a skull. They are drawn by other \
code than the training's augmentation, except for the skull, which is `synthesis.add_head`: a model trained with \
such heads has an advantage there. Whole heads (where evaluated) are a real head of another person that no network \
has learned from, its skull warped onto the newborn's.
Voxels: the mean of the signal over each new voxel; 0.5 mm by linear interpolation. Tilted field of view: \
{a.TILT_DEGREES:g}° about a slanted axis, resampled once, the newborn stays. RAS: the same voxels in another order. \
Size: the header of images and truth alone.
Noise: Rician in every voxel, air included, sd {100 * a.NOISE:g} % of the head's 99th percentile. Bias field: exp of a \
random polynomial of degree {a.BIAS_DEGREE}, from {low} to {high}. Motion: k-space lines of {a.POSES} other poses, up \
to {a.MOTION_MM:g} mm and {a.MOTION_DEGREES:g}° along each axis.""".splitlines()
    if templates := [name for name in model.facts.training_subjects if kind_by_name(name) == TEMPLATE]:
        lines.append(
            f"The model was trained on the templates {', '.join(templates)}; those evaluated here are others of the "
            "series. Neighbouring ages of an average look alike: newborns of unseen ages would be harder."
        )
    if refused:
        first = refused[0]
        lines.append(
            f"{len(refused)} cells were refused by the software and count as DSC 0, such as {first['subject']}, "
            f"{alteration_of(first)}, {first['contrast']}: {first['refused']}"
        )
    seconds = [row["seconds"] for row in rows]
    lines.append(
        f"Seconds for one evaluation: median {np.median(seconds):.1f}, longest {max(seconds):.1f}, with whatever else "
        f"the machine was doing. `{NAME}.tsv` holds every cell of every scan with the DSC of each tissue."
    )
    return "\n".join(f"- {line}" for line in lines)


def draw(now: Figures, then: Figures, name: str, earlier: str, file: Path) -> None:
    """Heat map: rows are levels and templates, columns contrasts; with an earlier model it and the change beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = _names(now)
    table = np.array([[now[n, c] for c in CONTRASTS] for n in names])
    panels = [(f"mean DSC, {name}", table, "viridis", (0.0, 1.0), "{:.3f}")]
    if then:
        old = np.array([[then.get((n, c), np.nan) for c in CONTRASTS] for n in names])
        panels.insert(0, (f"mean DSC, {earlier}", old, "viridis", (0.0, 1.0), "{:.3f}"))
        panels.append(("change", table - old, "RdBu", (-0.2, 0.2), "{:+.3f}"))
    figure = Figure(figsize=(2.4 + 3.4 * len(panels), 1.2 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, values, colours, (low, high), form) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            dark = sum(image.cmap(image.norm(value))[:3]) < 1.5 and not np.isnan(value)
            text = "n/a" if np.isnan(value) else form.format(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(CONTRASTS)), CONTRASTS)
        first = axes.get_subplotspec().is_first_col()
        axes.set_yticks(range(len(names)), [TEXTS.get(n, n) for n in names] if first else [])
    figure.savefig(file, dpi=130, metadata={"Software": None})


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _text(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.3f}"
