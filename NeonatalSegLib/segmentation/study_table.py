"""The files of a study's results as a whole: tables with their data dictionaries, and the page.

They are made from what lies in the folder, not from what one process has done: several jobs, each with its own list
of scans, share one folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import sha256, write_text
from NeonatalSegLib.files.names import check_path, shown
from NeonatalSegLib.files.text import cell
from NeonatalSegLib.segmentation.dataset import NAME, check_description
from NeonatalSegLib.segmentation.growth import GROWTH, INTRACRANIAL
from NeonatalSegLib.segmentation.ownership import check_replaceable, seal
from NeonatalSegLib.segmentation.pages.study_page import study_page
from NeonatalSegLib.segmentation.study_results import TISSUE_KEYS, UNKNOWN, StudyRow, read_rows
from NeonatalSegLib.segmentation.verdict import VERDICTS

TABLE, SIDE_CAR = "volumes.tsv", "volumes.json"
QC_TABLE, QC_SIDE_CAR, PAGE = "qc.tsv", "qc.json", "report.html"
WRITTEN = (TABLE, SIDE_CAR, QC_TABLE, QC_SIDE_CAR, PAGE)
ATTEMPTS = 20  # to write the files while other jobs do the same; a tenth of a second each
VOLUME_KEYS = (*TISSUE_KEYS, "brain", INTRACRANIAL)
Z_KEYS = tuple(key for key, growth in GROWTH.items() if growth.published_sd_ml)


def check_study_folder(out: Path, *, overwrite: bool = False) -> None:
    """Before the work: refuse a folder whose tables, page or description are somebody else's.

    Raises:
        NeonatalSegError: they are named, such as where ``out`` is the BIDS data set itself.
    """
    check_path(out)
    if overwrite:
        return
    check_description(out)
    check_replaceable(out, SIDE_CAR, WRITTEN)


def write_study_files(out: Path, *, overwrite: bool = False, without: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write tables and page of all results at or below ``out``.

    ``volumes.tsv`` and ``qc.tsv`` (one row a result) with their data dictionaries, ``report.html`` with links to each
    scan's report. Cheap to call again: what has not changed is not written.

    Args:
        without: scans that have no result, with the reason, by name; the page tells them. What an earlier run, with
            other options or images, left of them is in no table.

    Returns:
        ``volumes.tsv``.

    Raises:
        NeonatalSegError: they cannot be written, or are somebody else's.
    """
    try:
        for attempt in range(ATTEMPTS):
            rows = _counted(out, without)
            try:
                _write_changed(out, study_texts(rows, without), overwrite)
                if _counted(out, without) == rows:  # else another job has finished a scan in between
                    break
            except NeonatalSegError:
                if attempt == ATTEMPTS - 1:
                    raise
            time.sleep(0.1)  # another job may be between its files
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NeonatalSegError(f"{shown(out / TABLE)} could not be written ({reason}).") from error
    return out / TABLE


def _counted(out: Path, without: Mapping[str, str]) -> list[StudyRow]:
    """All results but those that an earlier run left of scans which have none now."""
    return [row for row in read_rows(out) if row.name not in without]


def study_texts(rows: Sequence[StudyRow], without: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The text of each file by name, but for the side-car of the volumes, which knows the others' hashes."""
    return {
        TABLE: _table([_volume_cells(row) for row in rows], VOLUME_COLUMNS),
        QC_TABLE: _table([_qc_cells(row) for row in rows], QC_COLUMNS),
        QC_SIDE_CAR: json.dumps(QC_COLUMNS, indent=1) + "\n",
        PAGE: study_page(rows, without),
    }


_NAME = {"Description": "Name of the scan; the same in volumes.tsv and qc.tsv"}
VOLUME_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "name": _NAME,
    "age_weeks": {"Description": "Post-menstrual age at scan, as given", "Units": "weeks"},
    "predicted_age_weeks": {"Description": "Post-menstrual age as the model tells it", "Units": "weeks"},
    "age_by_volumes_weeks": {"Description": "Post-menstrual age that the tissues' volumes show", "Units": "weeks"},
    **{f"{key}_ml": {"Description": f"Volume of {key}", "Units": "mL"} for key in TISSUE_KEYS},
    "brain_ml": {"Description": "Sum of the tissues without CSF and ventricles", "Units": "mL"},
    "intracranial_ml": {"Description": "Sum of the eight tissues: brain, CSF and ventricles", "Units": "mL"},
    **{
        f"{key}_z": {
            "Description": f"Indicative z-score of the volume of {key} at the age given, else at the age by the model; "
            "no clinical reference (NeonatalSegLib/segmentation/growth.py says how it is made)"
        }
        for key in Z_KEYS
    },
    "verdict": {"Description": "On plausibility; qc.tsv has the reasons", "Levels": VERDICTS},
}
QC_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "name": _NAME,
    "verdict": {"Description": "On plausibility", "Levels": VERDICTS},
    "finding_kinds": {"Description": "What speaks against the result, as short keys", "Delimiter": ","},
    "warnings": {"Description": "How many; what speaks against the result is among them"},
    "warning_texts": {"Description": "In words", "Delimiter": " | "},
    "registration_quality": {"Description": "Agreement of T1 and T2 by local contrast, 0 to 1; n/a for one modality"},
    "seconds": {"Description": "From reading the scan to writing its results", "Units": "s"},
    "device": {"Description": "What computed"},
    "engine": {"Description": "What ran the network, and its precision"},
    "model": {"Description": "Name of the model and the first 12 digits of its SHA-256"},
    "version": {"Description": "Of NeonatalSeg"},
}


def _volume_cells(row: StudyRow) -> list[str]:
    scores = row.z_scores
    ages = (row.age_weeks, row.predicted_age_weeks, row.age_by_volumes_weeks)
    cells = [cell(row.name), *(_number(age, "g") for age in ages)]
    cells += [_number(row.volumes_ml.get(key), ".3f") for key in VOLUME_KEYS]
    return [*cells, *(_number(scores.get(key), ".2f") for key in Z_KEYS), row.verdict]


def _qc_cells(row: StudyRow) -> list[str]:
    said = [row.name, row.verdict, ",".join(row.finding_kinds) or UNKNOWN, str(len(row.warnings))]
    said.append(" | ".join(row.warnings) or UNKNOWN)
    numbers = [_number(row.registration_quality, ".3f"), _number(row.seconds, ".1f")]
    return [*map(cell, said), *numbers, *map(cell, (row.device, row.engine, row.model, row.version))]


def _table(rows: Sequence[Sequence[str]], columns: Mapping[str, Any]) -> str:
    return "".join("\t".join(" ".join(text.split()) for text in cells) + "\n" for cells in [list(columns), *rows])


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else f"{value:{form}}"


def _write_changed(out: Path, texts: Mapping[str, str], overwrite: bool) -> None:
    """Write what differs from the files that are there."""
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    before = {name: sha256(out / name) for name in texts if (out / name).exists()}
    if before == hashes and (out / SIDE_CAR).exists():
        return
    check_replaceable(out, SIDE_CAR, WRITTEN, overwrite=overwrite)
    facts: dict[str, Any] = {
        **VOLUME_COLUMNS,
        "GeneratedBy": f"{NAME} {__version__}",
        # First the side-car, then the files: where a kill comes in between, the old ones are still known as ours.
        "Files": {name: sorted({hashes[name], before.get(name, hashes[name])}) for name in texts},
    }
    facts["Seal"] = seal(facts)
    write_text(out / SIDE_CAR, json.dumps(facts, indent=1) + "\n")
    for name, text in texts.items():
        if before.get(name) != hashes[name]:
            write_text(out / name, text)
