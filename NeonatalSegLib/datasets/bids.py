"""Find newborns in a BIDS folder: T1w, T2w, label maps and ages, with or without sessions."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from NeonatalSegLib.datasets.kinds import NEWBORN
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.scan import IMAGE_SUFFIXES

AGE_COLUMNS = ("scan_age", "pma", "age_weeks")  # dHCP's name first


@dataclass(frozen=True)
class Subject:
    """One newborn at one session, as files.

    Attributes:
        name: ``sub-X`` or ``sub-X_ses-Y``.
        t1, t2, labels: paths, or None where there is none.
        age_weeks: post-menstrual age at scan, or None where the tables do not say.
        merged: groups of classes that the labels do not tell apart; the first of a group stands for all of it.
        kind: one of ``datasets/kinds.py``.
    """

    name: str
    t1: Path | None
    t2: Path | None
    labels: Path | None
    age_weeks: float | None
    merged: tuple[tuple[int, ...], ...] = ()
    kind: str = NEWBORN

    @property
    def participant(self) -> str:
        """``sub-X``: sessions of one newborn share it, and never stand on two sides of a split."""
        return self.name.split("_")[0]


def find_subjects(root: str | Path, *, labels: bool = True) -> list[Subject]:
    """All subjects of a BIDS folder with a T1w or a T2w, sorted by name.

    Label maps are the ``*_dseg`` files anywhere below ``root`` (derivatives included).

    Args:
        labels: False where label maps are not wanted: there may then be several for one subject.

    Raises:
        NeonatalSegError: no such folder, no scans in it, or two files for one subject and modality.
    """
    root = Path(root)
    if not root.is_dir():
        raise NeonatalSegError(f"There is no folder {root}: expected a BIDS data set.")
    ages = _ages(root)
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("sub-*")):
        stem, suffix = _split(path)
        if suffix is None or stem.rsplit("_", 1)[-1] not in ("T1w", "T2w", "dseg"):
            continue
        kind = stem.rsplit("_", 1)[-1]
        if kind == "dseg" and not labels:
            continue
        if kind != "dseg" and "derivatives" in path.relative_to(root).parts:
            continue
        files = found.setdefault(_subject_name(stem), {})
        if kind in files:
            raise NeonatalSegError(f"Two {kind} files for one session: {files[kind]} and {path}. Keep one of them.")
        files[kind] = path
    subjects = [
        Subject(name, f.get("T1w"), f.get("T2w"), f.get("dseg"), ages.get(name, ages.get(name.split("_")[0])))
        for name, f in sorted(found.items())
        if "T1w" in f or "T2w" in f
    ]
    if not subjects:
        raise NeonatalSegError(f"No sub-*/anat/*_T1w or *_T2w image was found below {root}.")
    return subjects


def _split(path: Path) -> tuple[str, str | None]:
    for suffix in IMAGE_SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)], suffix
    return path.name, None


def _subject_name(stem: str) -> str:
    found = re.match(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?", stem)
    return (found.group(1) + (found.group(2) or "")) if found else stem


def _ages(root: Path) -> dict[str, float]:
    """Ages in weeks from participants.tsv and every sub-*_sessions.tsv, by subject or subject_session."""
    ages: dict[str, float] = {}
    for table in [root / "participants.tsv", *sorted(root.rglob("sub-*_sessions.tsv"))]:
        for row in read_table(table) if table.is_file() else []:
            who = prefixed("sub", row.get("participant_id") or table.name.split("_")[0])
            if session := row.get("session_id"):
                who += f"_{prefixed('ses', session)}"
            age = _age(row)
            if age is not None and ages.setdefault(who, age) != age:
                raise NeonatalSegError(f"{who} has two ages in the tables of {root}: {ages[who]:g} and {age:g} weeks.")
    return ages


def _age(row: dict[str, str]) -> float | None:
    for column in AGE_COLUMNS:
        try:
            return float(row.get(column) or "")
        except ValueError:
            continue
    return None


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated BIDS table by column; NeonatalSegError where the file is not text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(stream, delimiter="\t")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NeonatalSegError(f"The table {path} could not be read: {error}.") from error


def prefixed(entity: str, label: str) -> str:
    """``sub-X`` for "sub" and either "X" or "sub-X": the dHCP release leaves the prefix out in its tables."""
    return label if label.startswith(f"{entity}-") else f"{entity}-{label}"
