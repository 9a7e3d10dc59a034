"""Which scans a study has and where the results of each go: from a BIDS folder, a dHCP release, or a list."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from NeonatalSegLib.datasets.ages import age_of_text, prefixed, read_columns
from NeonatalSegLib.datasets.dhcp import find_scans
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_distinct, check_name, shown

# Of a list; the words by which a column that is not read shows that it was meant to be.
LIST_COLUMNS = {"name": set(), "t1": {"t1", "t1w"}, "t2": {"t2", "t2w"}, "age_weeks": {"age", "pma", "weeks"}}


@dataclass(frozen=True)
class StudyScan:
    """One scan of a study: where it is and where its results go.

    Attributes:
        name: unique in the study.
        folder: of the results, below the study's output folder.
        stem: of the result files' names.
        dataset: the BIDS data set that the images are from, if they are.
    """

    name: str
    t1: Path | None
    t2: Path | None
    age_weeks: float | None
    folder: Path
    stem: str
    dataset: Path | None = None


@dataclass(frozen=True)
class FoundStudy:
    """The scans of a study, why others are not among them, by name, and notes in words."""

    scans: list[StudyScan]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def study_of_bids(
    root: str | Path, *, run: str = "last", participants: Sequence[str] = (), sessions: Sequence[str] = ()
) -> FoundStudy:
    """Every session of a dHCP release or BIDS folder with a T1w or a T2w; BIDS-derivative names for the results.

    Args:
        run: which of several runs: "last", "first" or a number.
        participants, sessions: labels, with or without "sub-" and "ses-", of the only ones that are wanted.

    Raises:
        NeonatalSegError: no such folder, no image at all, or a label that is not there.
    """
    found, scans = find_scans(root, run=run), []
    for subject in found.subjects:
        parts = subject.name.split("_")
        space = "T2w" if subject.t2 else "T1w"
        stem = f"{subject.name}_space-{space}_desc-neonatalseg"
        folder = Path(*parts, "anat")
        scans.append(StudyScan(subject.name, subject.t1, subject.t2, subject.age_weeks, folder, stem, Path(root)))
    study = FoundStudy(scans, {one.name: ", ".join(one.reasons) for one in found.incomplete}, found.notes)
    study = _with_labels(_with_labels(study, "sub", participants, root), "ses", sessions, root)
    if not study.scans:
        reasons = "".join(f"\n  {name}: {why}" for name, why in study.left_out.items())
        raise NeonatalSegError(f"Of what was asked for in {shown(Path(root))} nothing can be segmented:{reasons}")
    return study


def _with_labels(study: FoundStudy, entity: str, labels: Sequence[str], root: str | Path) -> FoundStudy:
    """What of a study has one of the labels; a newborn without a session that is wanted is named as left out."""
    if not labels:
        return study
    wanted = {prefixed(entity, label) for label in labels}
    there = {part for scan in study.scans for part in scan.name.split("_") if part.startswith(f"{entity}-")}
    known = there | {part for name in study.left_out for part in name.split("_") if part.startswith(f"{entity}-")}
    if missing := sorted(wanted - known):
        what = {"sub": "participant", "ses": "session"}[entity]
        raise NeonatalSegError(
            f"{shown(Path(root))} has no {what} {', '.join(missing)}: nothing was done. It has "
            f"{_first_of(sorted(there)) or f'no {what}s by name'}."
        )

    def is_wanted(name: str) -> bool:
        return not wanted.isdisjoint(name.split("_"))

    left_out = {name: why for name, why in study.left_out.items() if is_wanted(name)}
    scans = [scan for scan in study.scans if is_wanted(scan.name)]
    if entity == "ses":  # the participants stay those that were asked for
        served = {scan.name.split("_")[0] for scan in scans} | {name.split("_")[0] for name in left_out}
        without = sorted({scan.name.split("_")[0] for scan in study.scans} - served)
        left_out |= {name: f"no session {' or '.join(sorted(wanted))}" for name in without}
        left_out |= {name: why for name, why in study.left_out.items() if "_" not in name}
    return FoundStudy(scans, left_out, study.notes)


def _first_of(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def scans_of_bids(root: str | Path, report: Callable[[str], None] | None = None) -> list[StudyScan]:
    """The scans of :func:`study_of_bids`; ``report`` is given in words which newborns are not among them."""
    found = study_of_bids(root)
    if report:
        for text in [*(f"{name}: left out: {why}" for name, why in found.left_out.items()), *found.notes]:
            report(text)
    return found.scans


def scans_of_list(table: str | Path) -> list[StudyScan]:
    """Scans from a TSV with the columns name, t1, t2 and age_weeks; paths are relative to the table.

    Raises:
        NeonatalSegError: unreadable, no such columns or one that is meant and called otherwise ("T2w", "age"), a name
            twice or none for a file, or an age that is not a number.
    """
    table = Path(table)
    given, found_rows = read_columns(table)
    columns = [column.strip().lower() for column in given]
    rows = [{column: row.get(key) for column, key in zip(columns, given, strict=True)} for row in found_rows]
    _check_columns(table, given, columns)
    if "name" not in columns or not {"t1", "t2"} & set(columns):
        raise NeonatalSegError(f"{table} must have tab-separated columns name and t1 or t2, found: {', '.join(given)}.")
    scans: dict[str, StudyScan] = {}
    for number, row in enumerate(rows, 2):
        name = (row.get("name") or "").strip()
        try:
            check_name(name, "scan")
            check_distinct([*scans, name], "scan")
        except NeonatalSegError as error:
            raise NeonatalSegError(f"Line {number} of {table}: {error}") from error
        t1, t2 = ((table.parent / value) if (value := (row.get(key) or "").strip()) else None for key in ("t1", "t2"))
        scans[name] = StudyScan(name, t1, t2, _age(row.get("age_weeks"), number, table), Path(name), name)
    if not scans:
        raise NeonatalSegError(f"{table} lists no scans.")
    return list(scans.values())


def _check_columns(table: Path, given: Sequence[str], columns: Sequence[str]) -> None:
    """A column that was meant and is not read would be a T2 or all ages lost; others, such as remarks, are nobody's."""
    for name, column in zip(given, columns, strict=True):
        if columns.count(column) > 1:
            raise NeonatalSegError(f"{table} has the column {column} twice: keep one of them.")
        words = set(re.split(r"[^a-z0-9]+", column))
        meant = next((w for w in LIST_COLUMNS if words & LIST_COLUMNS[w] and w not in columns), "")
        if column not in LIST_COLUMNS and meant:
            raise NeonatalSegError(
                f"{table} has a column {name}, which is not read: expected name, t1, t2 and age_weeks (post-menstrual, "
                f"in weeks). Call it {meant} if that is what it holds, and by another name if not."
            )


def _age(text: str | None, number: int, table: Path) -> float | None:
    weeks, problem = age_of_text(text or "", "age_weeks")
    if problem:
        raise NeonatalSegError(f"Line {number} of {table}: {problem}. Correct it, or leave it empty.")
    return weeks
