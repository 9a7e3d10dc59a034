"""The page of a study: a table of all scans that sorts, volume against age, links to each scan's report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from NeonatalSegLib.segmentation.growth import INTRACRANIAL, signed_text
from NeonatalSegLib.segmentation.pages.charts import NAMES, WHAT_THE_BANDS_ARE, Point, growth_chart
from NeonatalSegLib.segmentation.pages.render import render
from NeonatalSegLib.segmentation.pages.scan_page import FAR
from NeonatalSegLib.segmentation.study_results import UNKNOWN, StudyRow
from NeonatalSegLib.segmentation.verdict import VERDICTS
from NeonatalSegLib.tissues import PHYSIOLOGICAL

COLUMNS = (INTRACRANIAL, *(t.key for t in PHYSIOLOGICAL))
HEADS = {INTRACRANIAL: "ICV", **{t.key: t.abbreviation for t in PHYSIOLOGICAL}}


def study_page(rows: Sequence[StudyRow], without: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text of ``report.html``: the same for the same rows.

    Args:
        rows: of :func:`study_results.read_rows`; links and pictures are relative to the study's folder.
        without: scans that have no result, with the reason, by name.

    Example:
        >>> "one scan" in study_page([StudyRow("sub-01", age_weeks=40.0, volumes_ml={"wm": 160.0}, verdict="pass")])
        True
    """
    verdicts = Counter(row.verdict for row in rows)
    return render(
        "study.html",
        "study.js",
        rows=[_cells(row) for row in rows],
        heads=[{"key": key, "short": HEADS[key], "name": NAMES[key]} for key in COLUMNS],
        count="one scan" if len(rows) == 1 else f"{len(rows)} scans",
        verdicts=[(verdict, verdicts[verdict]) for verdict in [*VERDICTS, UNKNOWN] if verdicts[verdict]],
        summary=_summary(rows),
        notes=_notes(rows),
        without=without,
        charts=[growth_chart(key, _points(rows, key)) for key in COLUMNS] if rows else [],
        bands=WHAT_THE_BANDS_ARE,
    )


def _cells(row: StudyRow) -> dict[str, Any]:
    scores, age = row.z_scores, row.age_weeks
    return {
        "name": row.name,
        "report": quote(row.report),
        "picture": quote(row.picture),
        "age": UNKNOWN if age is None else f"{age:g}",
        "told": _told(row),
        "weeks": "" if row.known_age_weeks is None else row.known_age_weeks,
        "verdict": row.verdict,
        "warnings": row.warnings,
        "seconds": UNKNOWN if row.seconds is None else f"{row.seconds:.0f}",
        "volumes": [
            {
                "ml": f"{row.volumes_ml[key]:.1f}" if key in row.volumes_ml else UNKNOWN,
                "z": signed_text(scores[key]) if key in scores else UNKNOWN,
                "far": key in scores and abs(scores[key]) > FAR,
            }
            for key in COLUMNS
        ],
    }


def _told(row: StudyRow) -> str:
    """The age as the model tells it, else as the tissues' volumes show it."""
    if row.predicted_age_weeks is not None:
        return f"{row.predicted_age_weeks:.1f} by the model"
    return "" if row.age_by_volumes_weeks is None else f"{row.age_by_volumes_weeks:.1f} by volumes"


def _points(rows: Sequence[StudyRow], key: str) -> list[Point]:
    """In the charts: what has an age."""
    there = [row for row in rows if row.known_age_weeks is not None and key in row.volumes_ml]
    return [Point(row.known_age_weeks, row.volumes_ml[key], row.verdict) for row in there]


def _summary(rows: Sequence[StudyRow]) -> str:
    ages = [row.age_weeks for row in rows if row.age_weeks is not None]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    parts = [f"{min(ages):g} to {max(ages):g} weeks of post-menstrual age"] if ages else []
    if len(ages) < len(rows):
        parts.append(f"{len(rows) - len(ages)} without an age")
    if seconds:
        parts.append(f"{median(seconds):.0f} s a scan (median)")
    return "; ".join(parts)


def _notes(rows: Sequence[StudyRow]) -> list[str]:
    """What makes rows of one table not comparable."""
    notes = []
    for what, values in (("models", {row.model for row in rows}), ("versions", {row.version for row in rows})):
        if len(values) > 1:
            notes.append(f"The results come from {len(values)} {what}: {', '.join(sorted(values))}. qc.tsv says which.")
    return notes
