"""One experiment from data to its page: who is needed, what the machine can do, cache, runs, tables, plot."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.datasets.cache import (
    CachedSubject,
    build_cache,
    cache_spacing,
    data_digest,
    failures,
    population,
    read_cache,
    remember_population,
)
from NeonatalSegLib.datasets.split_files import write_split
from NeonatalSegLib.datasets.splits import Aged
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.designs import JOBS, Jobs, Study, names_in, same_runs, without
from NeonatalSegLib.experiments.paper.findings import FINDINGS, Report, steps_table
from NeonatalSegLib.experiments.paper.preflight import look_ahead
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings
from NeonatalSegLib.experiments.paper.trial import trial
from NeonatalSegLib.experiments.plots import draw
from NeonatalSegLib.experiments.runs import check_folder, run_jobs
from NeonatalSegLib.experiments.tables import Result, Table
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.tissues import TISSUES


@dataclass(frozen=True)
class Preparation:
    """How scans become arrays.

    Attributes:
        cache: folder of prepared arrays, which several results may share; None: ``cache`` in the results' folder.
        exclude: scans (or all of a newborn: ``sub-X``) that are as if they were not in the data.
        keep_going: a scan that cannot be prepared is missing on its side; nothing is drawn anew for it.
        processes: scans at once.
    """

    cache: Path | None = None
    exclude: tuple[str, ...] = ()
    keep_going: bool = False
    processes: int = 1


def run_experiment(
    name: str,
    data: str | Path | None,
    settings: ExperimentSettings,
    out: str | Path,
    *,
    runs: int = 3,
    parallel: int = 1,
    scheduler: str | None = None,
    preparation: Preparation = Preparation(),
    check_only: bool = False,
    command: str = "",
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Run what is left of an experiment and write its tables, plot and page into ``out``; returns these files.

    Args:
        name: one of ``designs.JOBS``.
        data: labelled BIDS folder; None: everybody is in the cache already.
        runs: of every condition; more can be added later.
        parallel, scheduler: as in ``runs.run_jobs``.
        check_only: tell what it takes (disk, memory, hours), write the lists that would be used, and stop.
        command: written on the page.

    Raises:
        NeonatalSegError: data that cannot be used, too few subjects for the design, a machine that cannot do it, a
            folder of another configuration, or failed runs.
    """
    if runs < 1:
        raise NeonatalSegError(f"{runs} runs are too few: give 1 or more.")
    out, folder = Path(out), Path(preparation.cache or Path(out) / "cache")
    everybody = _everybody(data, folder, preparation.exclude, report)
    study = Study(everybody, settings, runs)
    jobs = JOBS[name](study)
    config = {k: v for k, v in settings.to_json().items() if k not in ("notes", "loader_workers")}
    config["data"] = _digest(everybody)
    check_folder(out, config)
    needed = names_in(jobs)
    files = [s for s in everybody if isinstance(s, Subject) and s.name in needed]
    written = _write_lists(name, study, out / "lists")
    report(f"{len(needed)} of {len(everybody)} scans are needed; who is on which side: {written}")
    look_ahead(jobs, study, out, folder, files, parallel=parallel, scheduler=scheduler, report=report)
    if check_only:
        return []
    prepared, left_out = _prepared(needed, files, folder, settings, preparation, report)
    jobs = without(jobs, set(left_out))
    for job in jobs.values():
        job["arrays"] = data_digest([prepared[n] for n in sorted(names_in({"": job}))])
    execute = partial(
        run_jobs,
        partial(trial, cache=folder.resolve(), loader_workers=settings.loader_workers),
        out=out,
        config=config,
        parallel=parallel,
        scheduler=scheduler,
        report=report,
    )
    results = _executed(jobs, execute)
    found = FINDINGS[name](study, results)
    warned = {s.name: " ".join(s.warnings) for s in prepared.values() if s.warnings}
    tables = {**found.tables, "steps": steps_table(jobs, runs)}
    notes = (*found.notes, *_told("left out", left_out), *_told("to be looked at", warned), *_notes_of(results))
    return write_report(name, replace(found, tables=tables, notes=notes), settings, out, command)


def _prepared(
    needed: Collection[str],
    files: Sequence[Subject],
    folder: Path,
    settings: ExperimentSettings,
    preparation: Preparation,
    report: Callable[[str], None],
) -> tuple[dict[str, CachedSubject], dict[str, str]]:
    """(prepared scans by name, why others were left out); ``files`` are what may have to be prepared first."""
    spacing = settings.training.network.spacing_mm
    if files:
        build_cache(
            files,
            folder,
            spacing,
            processes=preparation.processes,
            keep_going=preparation.keep_going,
            progress=report,
        )
    if cache_spacing(folder) != spacing:
        raise NeonatalSegError(f"{folder} holds arrays at {cache_spacing(folder)} mm, {spacing} mm are wanted.")
    prepared = {s.name: s for s in read_cache(folder) if s.name in needed}
    left_out = {n: why for n, why in failures(folder).items() if n in needed and preparation.keep_going}
    if missing := sorted(set(needed) - prepared.keys() - left_out.keys()):
        raise NeonatalSegError(f"The cache {folder} does not hold {missing[0]}: give --data to prepare it.")
    return prepared, left_out


def _everybody(
    data: str | Path | None, folder: Path, exclude: Collection[str], report: Callable[[str], None]
) -> list[Aged]:
    """Everybody that the splits are drawn from, whether they will be needed or not."""
    found: Sequence[Aged]
    if data is None:
        found = population(folder)
    else:
        from NeonatalSegLib.datasets.dhcp import find_complete

        complete = find_complete(data)
        report(complete.summary(limit=20))
        found = complete.subjects
        remember_population(folder, found)
    names = {s.name for s in found} | {s.name.split("_")[0] for s in found}
    if unknown := [name for name in exclude if name not in names]:
        raise NeonatalSegError(f"{unknown[0]} is to be excluded but is not among the {len(found)} scans: a slip?")
    return [s for s in found if not {s.name, s.name.split("_")[0]} & set(exclude)]


def _digest(everybody: Sequence[Aged]) -> str:
    """Of who is in the data and how old, from which the splits are drawn."""
    facts = sorted([s.name, s.age_weeks] for s in everybody)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _write_lists(name: str, study: Study, folder: Path) -> Path:
    """The splits of every run, as tables that ``--split`` takes."""
    for run in range(study.runs):
        split = study.transfer(run) if name == "transfer" else study.split(run)
        write_split(split, folder / f"{name}-run{run}.tsv")
    return folder


def _executed(jobs: Jobs, execute: Callable[[Jobs], dict[str, Any]]) -> list[Result]:
    """Results of all jobs: source models first, what is the same only once."""
    same = same_runs(jobs)
    once = {key: job for key, job in jobs.items() if same[key] == key}
    starts = {job["start"] for job in once.values()} - {None}
    results = execute({key: job for key, job in once.items() if key in starts}) if starts else {}
    results |= execute({key: job for key, job in once.items() if key not in starts})
    return [{**results[same[key]], "condition": job["condition"]} for key, job in jobs.items()]


def _told(what: str, names: dict[str, str]) -> list[str]:
    return (
        [f"Scans {what} ({len(names)}): " + "; ".join(f"{n}: {why}" for n, why in sorted(names.items()))]
        if names
        else []
    )


def _notes_of(results: Sequence[Result]) -> list[str]:
    return sorted({s["note"] for r in results for s in r["subjects"] if "note" in s})


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
    parts += [table.markdown() for ending, table in report.tables.items() if ending not in ("training", "steps")]
    parts.append(f"![{report.title}]({name}.png)")
    parts.append("Small dots: runs; large dots and bars: mean and standard deviation over runs.")
    accounts: list[Table] = [report.tables[ending] for ending in ("steps", "training")]
    parts += ["## Runs", *(table.markdown() for table in accounts), _summary(report)]
    files = ", ".join(f"`{name}-{ending}.tsv`" for ending in [*report.tables, "subjects", "splits"])
    parts.append(
        f"As tables to compute with: {files} (the last two: every class of every evaluated newborn; who trained and "
        "who was evaluated in every run)."
    )
    return "\n\n".join(parts) + "\n"


def _summary(report: Report) -> str:
    # A run that stands in two rows counts once.
    once = {(r["run"], tuple(r["trained_on"]), r["seconds"]): r for r in report.results}.values()
    lines = [f"{len(once)} runs, {sum(r['seconds'] for r in once) / 60:.0f} minutes of training in all."]
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
