"""Ages at scan from the tables of a BIDS folder: understood in the forms that people write them, or left out and told.

An age is an optional field: no table keeps a newborn from being segmented.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.settings import read_object

AGE_COLUMNS = ("scan_age", "pma", "age_weeks", "scan_age_days", "pma_days", "age_days")  # dHCP's name first
WEEKS = (20.0, 60.0)  # an age outside is no post-menstrual age of a newborn in weeks
WEEKS_PER_UNIT = {"week": 1.0, "weeks": 1.0, "wk": 1.0, "w": 1.0, "day": 1 / 7, "days": 1 / 7, "d": 1 / 7}
MISSING = ("", "n/a", "na", "nan", "none", "null", "-", "unknown")


@dataclass
class Ages:
    """Ages in weeks by ``sub-X`` or ``sub-X_ses-Y``, and what could not be used, in words."""

    weeks: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def of(self, name: str) -> float | None:
        """The age of a session, or of its newborn where the session has none of its own."""
        return self.weeks.get(name, self.weeks.get(name.split("_")[0]))


def read_ages(root: Path) -> Ages:
    """All ages in participants.tsv and every sub-*_sessions.tsv at or below ``root``; never raises."""
    ages, given = Ages(), dict[str, list[float]]()
    for table in [root / "participants.tsv", *sorted(root.glob("**/sub-*_sessions.tsv"))]:
        if not table.is_file():
            continue
        try:
            rows = read_table(table)
        except NeonatalSegError as error:
            ages.warnings.append(f"{error} Its ages were left out.")
            continue
        units = _units(table)
        for row in rows:
            who = prefixed("sub", row.get("participant_id") or table.name.split("_")[0])
            if session := row.get("session_id"):
                who += f"_{prefixed('ses', session)}"
            age, problem = age_of(row, units)
            if problem:
                ages.warnings.append(f"{who}: {problem} in {table.name}; the age was left out.")
            elif age is not None and age not in given.setdefault(who, []):
                given[who].append(age)
    for who, found in given.items():
        if len(found) == 1:
            ages.weeks[who] = found[0]
        else:
            texts = " and ".join(f"{age:g}" for age in found)
            ages.warnings.append(f"{who} has several ages in the tables of {root}: {texts} weeks; left out.")
    return ages


def age_of(row: Mapping[str, str], units: Mapping[str, str] = {}) -> tuple[float | None, str]:
    """The age in weeks in a table's row, or None and why it cannot be used ("" where it is simply not given).

    Args:
        units: of columns, from the table's side-car.
    """
    for column in AGE_COLUMNS:
        text = row.get(column, "").strip()
        if text.lower() in MISSING:
            continue
        unit = units.get(column, "days" if column.endswith("_days") else "weeks").strip().lower()
        if unit not in WEEKS_PER_UNIT:
            return None, f"{column} is in {unit!r}, not in weeks or days,"
        return age_of_text(text, column, WEEKS_PER_UNIT[unit])
    return None, ""


def age_of_text(text: str, column: str, weeks_per_unit: float = 1.0) -> tuple[float | None, str]:
    """A number with a decimal point or comma as weeks, or None and what is wrong with it."""
    if text.strip().lower() in MISSING:
        return None, ""
    try:
        weeks = float(text.strip().replace(",", ".")) * weeks_per_unit
    except ValueError:
        return None, f"{column} {text!r} is not a number"
    if not math.isfinite(weeks) or not WEEKS[0] <= weeks <= WEEKS[1]:
        return None, f"{column} {text} is not between {WEEKS[0]:g} and {WEEKS[1]:g} weeks (days, or years?)"
    return round(weeks, 4), ""


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table by column, in whatever encoding spreadsheets write; NeonatalSegError otherwise."""
    return read_columns(path)[1]


def read_columns(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns and rows of a table, cells without a value left out.

    Raises:
        NeonatalSegError: it cannot be read, or is no text.
    """
    try:
        text = _decoded(path.read_bytes())
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        rows = [{k.strip(): v for k, v in row.items() if k and isinstance(v, str) and v} for row in reader]
        return [name.strip() for name in reader.fieldnames or []], rows
    except (OSError, ValueError, csv.Error) as error:
        raise NeonatalSegError(f"The table {path} could not be read: {error}.") from error


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if b"\0" in data:
        raise ValueError("it is no text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")  # what Western spreadsheets write


def _units(table: Path) -> dict[str, str]:
    """Units by column from the JSON beside a table; none where it is missing or unreadable."""
    try:
        found = read_object(table.with_suffix(".json"), "side-car of the table")
    except NeonatalSegError:
        return {}
    return dict(_named(found))


def _named(found: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for column, facts in found.items():
        if isinstance(facts, dict) and isinstance(unit := facts.get("Units"), str):
            yield column, unit


def prefixed(entity: str, label: str) -> str:
    """``sub-X`` for "sub" and either "X" or "sub-X": the dHCP release leaves the prefix out in its tables."""
    label = label.strip()
    return label if label.startswith(f"{entity}-") else f"{entity}-{label}"
