"""Splits as tables: one row per scan, tab-separated."""

from __future__ import annotations

import csv
from pathlib import Path

from NeonatalSegLib.datasets.splits import Member, Split
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_file

COLUMNS = ("subject", "participant", "age_weeks", "side")


def write_split(split: Split, path: str | Path) -> Path:
    """Tab-separated table, one row per scan (subject, participant, age_weeks, side); written whole or not at all.

    Raises:
        NeonatalSegError: the file cannot be written.
    """
    path = Path(path)

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, delimiter="\t", lineterminator="\n")
            table.writerow(COLUMNS)
            for side, members in split.sides.items():
                table.writerows((m.name, m.participant, repr(m.age_weeks), side) for m in members)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write)
    except OSError as error:
        raise NeonatalSegError(f"The split could not be written to {path} ({error.strerror or error}).") from error
    return path


def read_split(path: str | Path) -> Split:
    """The split of a table written by :func:`write_split` or by hand with the same columns.

    Raises:
        NeonatalSegError: no such file, other columns, an age that is not a number (line named), a scan listed twice, or
            a newborn on two sides.
    """
    path = Path(path)
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise NeonatalSegError(f"The split {path} could not be read: {error}.") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise NeonatalSegError(f"{path} is not a table of a split: expected the columns {', '.join(COLUMNS)}.")
    sides: dict[str, list[Member]] = {}
    for number, row in enumerate(rows[1:], start=2):
        try:
            name, _, age, side = row
            member = Member(name, float(age))
        except ValueError as error:
            raise NeonatalSegError(f"{path}, line {number}: expected {', '.join(COLUMNS)}, got {row}.") from error
        sides.setdefault(side, []).append(member)
    return Split({side: tuple(members) for side, members in sides.items()})
