"""One experiment from data to its page: cache, runs, tables, plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.designs import EXPERIMENTS, Report
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings
from NeonatalSegLib.experiments.paper.trial import trial
from NeonatalSegLib.experiments.plots import draw
from NeonatalSegLib.experiments.runs import run_jobs
from NeonatalSegLib.experiments.tables import Result
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.tissues import TISSUES


def run_experiment(
    name: str,
    data: str | Path | None,
    settings: ExperimentSettings,
    out: str | Path,
    *,
    runs: int = 3,
    parallel: int = 1,
    scheduler: str | None = None,
    cache: str | Path | None = None,
    command: str = "",
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Run what is left of an experiment and write its tables, plot and page into ``out``; returns these files.

    Args:
        name: one of ``designs.EXPERIMENTS``.
        data: labelled BIDS folder; None: the cache holds everything already.
        runs: of every condition; more can be added later.
        parallel, scheduler: as in ``runs.run_jobs``.
        cache: folder of prepared arrays, built where it lacks subjects; default ``out/cache``.
        command: written on the page.

    Raises:
        NeonatalSegError: data that cannot be used, too few subjects for the design, a folder of another
            configuration, or failed runs.
    """
    from NeonatalSegLib.datasets.cache import build_cache, data_digest, read_cache

    if runs < 1:
        raise NeonatalSegError(f"{runs} runs are too few: give 1 or more.")
    out, folder = Path(out), Path(cache or Path(out) / "cache")
    if data is None:
        subjects = read_cache(folder)
    else:
        from NeonatalSegLib.datasets.dhcp import find_complete

        complete = find_complete(data)
        report(complete.summary(limit=20))
        found = list(complete.subjects)
        subjects = build_cache(found, folder, settings.training.network.spacing_mm)
    config = {k: v for k, v in settings.to_json().items() if k not in ("notes", "loader_workers")}
    config["data"] = data_digest(subjects)
    execute = partial(
        run_jobs,
        partial(trial, cache=folder.resolve(), loader_workers=settings.loader_workers),
        out=out,
        config=config,
        parallel=parallel,
        scheduler=scheduler,
        report=report,
    )
    return write_report(name, EXPERIMENTS[name](subjects, settings, runs, execute), settings, out, command)


def write_report(name: str, report: Report, settings: ExperimentSettings, out: Path, command: str = "") -> list[Path]:
    """``<name>.md``, ``<name>.png``, ``<name>-<table>.tsv``, ``<name>-subjects.tsv`` and ``<name>-splits.tsv``."""
    files = []
    for ending, table in report.tables.items():
        files.append(_write(out / f"{name}-{ending}.tsv", table.tsv()))
    files.append(_write(out / f"{name}-subjects.tsv", _subjects(report)))
    files.append(_write(out / f"{name}-splits.tsv", _splits(report)))
    draw(report.panels, report.title, out / f"{name}.png")
    page = _write(out / f"{name}.md", _page(name, report, settings, command))
    return [page, out / f"{name}.png", *files]


def _page(name: str, report: Report, settings: ExperimentSettings, command: str) -> str:
    parts = [f"# {report.title}", "Made by this command, the remarks from its configuration included:"]
    parts.append(f"    {command or f'neonatalseg experiment {name}'}")
    if notes := [*report.notes, *settings.notes.get(name, ()), *settings.notes.get("all", ())]:
        parts.append("## How to read it, and what differs from the paper")
        parts.append("\n".join(f"- {note}" for note in notes))
    parts.append("## Results")
    parts += [table.markdown() for ending, table in report.tables.items() if ending != "training"]
    parts.append(f"![{report.title}]({name}.png)")
    parts.append("Small dots: runs; large dots and bars: mean and standard deviation over runs.")
    parts += ["## Runs", report.tables["training"].markdown(), _summary(report)]
    files = ", ".join(f"`{name}-{ending}.tsv`" for ending in [*report.tables, "subjects", "splits"])
    parts.append(
        f"As tables to compute with: {files} (the last two: every class of every evaluated newborn; who trained and "
        "who was evaluated in every run)."
    )
    return "\n\n".join(parts) + "\n"


def _summary(report: Report) -> str:
    seconds = sum(r["seconds"] for r in report.results)
    lines = [f"{len(report.results)} runs, {seconds / 60:.0f} minutes of training in all."]
    for versions in dict.fromkeys(tuple(r["versions"].items()) for r in report.results):
        lines.append("- " + ", ".join(f"{package} {number}" for package, number in versions))
    evaluated = {
        r["run"]: {side: [s["name"] for s in r["subjects"] if s["set"] == side] for side in _sides(r)}
        for r in report.results
    }
    lines.append("")
    for run, sides in sorted(evaluated.items()):
        text = "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
        lines.append(f"- run {run}, held out: {text}")
    return "\n".join(lines)


def _sides(result: Result) -> list[str]:
    return list(dict.fromkeys(s["set"] for s in result["subjects"]))


def _subjects(report: Report) -> str:
    """One row for every evaluated newborn of every run."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    heads = ["condition", "run", "seed", "side", "subject", "age_weeks", "told_age_weeks"]
    table.writerow(heads + [t.key for t in TISSUES])
    for r in report.results:
        for s in r["subjects"]:
            figures = [s["age_weeks"], s["told_age_weeks"], *s["dsc"]]
            cells = ["n/a" if v is None else f"{v:.6g}" for v in figures]
            table.writerow([r["condition"], r["run"], r["seed"], s["set"], s["name"], *cells])
    return text.getvalue()


def _splits(report: Report) -> str:
    """One row for every newborn of every run, with its side: train, or where it was evaluated."""
    rows = [["condition", "run", "side", "subject"]]
    for r in report.results:
        sides = [("train", name) for name in r.get("trained_on", ())] + [(s["set"], s["name"]) for s in r["subjects"]]
        rows += [[r["condition"], str(r["run"]), side, name] for side, name in sides]
    return "".join("\t".join(row) + "\n" for row in rows)


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path
