"""The files of a study's results as a whole: volumes.tsv with its side-car, and dataset_description.json.

The table is made from what lies in the folder, not from what one process has done: several jobs, each with its own list
of scans, share one folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import sha256, write_text
from NeonatalSegLib.files.names import check_path, shown
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.segmentation.ownership import check_replaceable, seal
from NeonatalSegLib.tissues import TISSUES

TABLE, SIDE_CAR, DESCRIPTION = "volumes.tsv", "volumes.json", "dataset_description.json"
NAME = "NeonatalSeg"
SIDE_CAR_BEGINS = "Tissue segmentation of a newborn's brain by NeonatalSeg"
ATTEMPTS = 20  # to write the table while other jobs do the same; a tenth of a second each
KEYS = [t.key for t in TISSUES if t.index > 0]


def check_study_folder(out: Path, *, overwrite: bool = False) -> None:
    """Before the work: refuse a folder whose table or description are somebody else's.

    Raises:
        NeonatalSegError: they are named, such as where ``out`` is the BIDS data set itself.
    """
    check_path(out)
    if overwrite:
        return
    if (out / DESCRIPTION).exists() and not _describes_ours(out):
        raise NeonatalSegError(
            f"{shown(out)} holds the {DESCRIPTION} of another data set: nothing was written. Choose a folder for the "
            f"results, such as {shown(out / 'derivatives' / 'neonatalseg')}, or give --overwrite."
        )
    check_replaceable(out, SIDE_CAR, (TABLE, SIDE_CAR))


def write_study_files(out: Path, *, overwrite: bool = False) -> Path:
    """Write the table of all results at or below ``out``, and the description where there is none of ours.

    Returns:
        The table.

    Raises:
        NeonatalSegError: they cannot be written, or are somebody else's.
    """
    try:
        if not _describes_ours(out):
            write_text(out / DESCRIPTION, json.dumps(_description(), indent=1) + "\n")
        for attempt in range(ATTEMPTS):
            text = table_text(out)
            try:
                if not (out / TABLE).exists() or (out / TABLE).read_text(encoding="utf-8") != text:
                    _write_table(out, text, overwrite)
                if table_text(out) == text:  # else another job has finished a scan in between
                    break
            except NeonatalSegError:
                if attempt == ATTEMPTS - 1:
                    raise
            time.sleep(0.1)  # another job may be between its two files
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NeonatalSegError(f"{shown(out / TABLE)} could not be written ({reason}).") from error
    return out / TABLE


def table_text(out: Path) -> str:
    """One row a result: volumes in mL, ages in weeks (given, and by the model), verdict, warnings."""
    head = ["name", "age_weeks", "predicted_age_weeks", *(f"{key}_ml" for key in KEYS), "verdict", "warnings"]
    rows = {name: _row(name, facts) for name, facts in _results(out).items()}
    return "".join("\t".join(row) + "\n" for row in [[*head, "warning_texts"], *(rows[name] for name in sorted(rows))])


def _results(out: Path) -> dict[str, dict[str, Any]]:
    """Side-cars by the scan's name."""
    found = {}
    for path in sorted(out.rglob("*_dseg.json")):
        if any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            facts = read_object(path, "side-car", nan=True)
            if str(facts.get("Description", "")).startswith(SIDE_CAR_BEGINS):
                found[str(facts.get("Name") or path.name.split("_space-")[0].removesuffix("_dseg.json"))] = facts
        except NeonatalSegError:
            continue
    return found


def _row(name: str, facts: dict[str, Any]) -> list[str]:
    ages = [facts.get("AgeWeeks"), facts.get("PredictedAgeWeeks")]
    volumes, warnings = facts.get("VolumesML") or {}, [str(w) for w in facts.get("Warnings") or []]
    verdict = (facts.get("Plausibility") or {}).get("Verdict", "n/a")
    cells = [name, *(_number(age, "g") for age in ages), *(_number(volumes.get(key), ".3f") for key in KEYS)]
    cells += [str(verdict), str(len(warnings)), " | ".join(warnings) or "n/a"]
    return [" ".join(cell.split()) for cell in cells]


def _number(value: Any, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, (int, float)) else "n/a"


def _write_table(out: Path, text: str, overwrite: bool) -> None:
    check_replaceable(out, SIDE_CAR, (TABLE, SIDE_CAR), overwrite=overwrite)
    before = [sha256(out / TABLE)] if (out / TABLE).exists() else []
    facts: dict[str, Any] = {
        "GeneratedBy": f"{NAME} {__version__}",
        **{f"{key}_ml": {"Description": f"Volume of {key}", "Units": "mL"} for key in KEYS},
        "age_weeks": {"Description": "Post-menstrual age at scan, as given", "Units": "weeks"},
        "predicted_age_weeks": {"Description": "Post-menstrual age as the model sees it", "Units": "weeks"},
        "warnings": {"Description": "How many; warning_texts has them"},
        # First the side-car, then the table: where a kill comes in between, the old table is still known as ours.
        "Files": {TABLE: [hashlib.sha256(text.encode()).hexdigest(), *before]},
    }
    facts["Seal"] = seal(facts)
    write_text(out / SIDE_CAR, json.dumps(facts, indent=1) + "\n")
    write_text(out / TABLE, text)


def _description() -> dict[str, Any]:
    return {
        "Name": "NeonatalSeg tissue segmentations",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": NAME, "Version": __version__}],
    }


def _describes_ours(out: Path) -> bool:
    """True where the description says that the folder holds our results, whatever else it says."""
    try:
        facts = read_object(out / DESCRIPTION, "description")
    except NeonatalSegError:
        return False
    by = facts.get("GeneratedBy")
    first = by[0] if isinstance(by, list) and by else {}
    return facts.get("DatasetType") == "derivative" and isinstance(first, dict) and first.get("Name") == NAME
