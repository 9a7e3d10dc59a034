"""What makes a folder of results a BIDS data set: dataset_description.json, dseg.tsv and .bidsignore."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError, reason_of
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.names import shown
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.segmentation.study_results import UNKNOWN, read_rows
from NeonatalSegLib.segmentation.study_scans import StudyScan
from NeonatalSegLib.tissues import lookup_table

DESCRIPTION, LOOKUP, IGNORED = "dataset_description.json", "dseg.tsv", ".bidsignore"
NAME = "NeonatalSeg"
BIDS_VERSION = "1.10.0"
RAW = "raw"  # the data set that the scans are from, in BIDS URIs
# What BIDS has no names for: pages, pictures, volumes and the entropy.
NOT_BIDS = ("*.html", "*.png", "*_volumes.tsv", "*_uncertainty.nii.gz", "*.dcm", "volumes.*", "qc.*")


def check_description(out: Path) -> None:
    """Refuse a folder that is another data set, or whose labels are others.

    Raises:
        NeonatalSegError: it is named, with what to do.
    """
    if (out / DESCRIPTION).exists() and not _describes_ours(out):
        raise NeonatalSegError(
            f"{shown(out)} holds the {DESCRIPTION} of another data set: nothing was written. Choose a folder for the "
            f"results, such as {shown(out / 'derivatives' / 'neonatalseg')}, or give --overwrite."
        )
    if _text(out / LOOKUP) not in ("", lookup_table()):
        raise NeonatalSegError(
            f"{shown(out / LOOKUP)} is the table of other labels: nothing was written. Move it away, choose another "
            "folder, or give --overwrite."
        )


def write_dataset_files(out: Path, source: Path | None = None) -> list[str]:
    """Write the files of the data set; what people added to the description, or to .bidsignore, stays.

    Args:
        source: root of the BIDS data set that the scans are from.

    Returns:
        Notes in words: that the results in ``out`` are of several versions or models.

    Raises:
        NeonatalSegError: they cannot be written.
    """
    rows = read_rows(out)
    before = _description(out) if _describes_ours(out) else {}
    versions = sorted({row.version for row in rows} - {__version__, UNKNOWN})
    ours = [{"Name": NAME, "Version": version} for version in [__version__, *versions]]
    others = [one for one in before.get("GeneratedBy", []) if isinstance(one, dict) and one.get("Name") != NAME]
    facts = {
        "Name": "NeonatalSeg tissue segmentations",
        "BIDSVersion": BIDS_VERSION,
        **before,
        "DatasetType": "derivative",
        "GeneratedBy": [*ours, *others],
        **(_source_facts(out, source) if source else {}),
    }
    lines = _text(out / IGNORED).splitlines()
    ignored = [*lines, *(line for line in NOT_BIDS if line not in lines)]
    texts = {
        DESCRIPTION: json.dumps(facts, indent=1) + "\n",
        LOOKUP: lookup_table(),
        IGNORED: "\n".join(ignored) + "\n",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if _text(out / name) != text:
                write_text(out / name, text)
    except OSError as error:
        raise NeonatalSegError(f"{shown(out)} could not be written ({reason_of(error)}).") from error
    if len(models := sorted({f"{row.model} (method {row.method})" for row in rows})) > 1:
        return [f"The results in {shown(out)} are of {len(models)} models or methods: {'; '.join(models)}."]
    return []


def bids_sources(scan: StudyScan, out: Path) -> dict[str, Any]:
    """For a result's side-car: which files of the data set it was made from, where ``out`` lies inside that data set.

    Elsewhere the path to the data set would have to stand in the description, and paths are nobody's business.
    """
    images = [path for path in (scan.t2, scan.t1) if path]
    if scan.dataset is None or not _lies_in(out, scan.dataset):
        return {}
    uris = []
    for path in images:
        with contextlib.suppress(ValueError):
            uris.append(f"bids:{RAW}:{path.absolute().relative_to(scan.dataset.absolute()).as_posix()}")
    return {"Sources": uris, "SpatialReference": uris[0]} if len(uris) == len(images) else {}


def _source_facts(out: Path, source: Path) -> dict[str, Any]:
    try:
        described = read_object(source / DESCRIPTION, "description")
    except NeonatalSegError:
        described = {}
    found = {"DOI": str(described["DatasetDOI"])} if described.get("DatasetDOI") else {}
    if not _lies_in(out, source):
        return {"SourceDatasets": [found]} if found else {}
    relative = Path(os.path.relpath(source.absolute(), out.absolute())).as_posix()
    return {"SourceDatasets": [{"URL": relative, **found}], "DatasetLinks": {RAW: relative}}


def _lies_in(out: Path, root: Path) -> bool:
    return out.resolve().is_relative_to(root.resolve())


def _description(out: Path) -> dict[str, Any]:
    try:
        return read_object(out / DESCRIPTION, "description")
    except NeonatalSegError:
        return {}


def _describes_ours(out: Path) -> bool:
    """True where the description says that the folder holds our results, whatever else it says."""
    facts = _description(out)
    by = facts.get("GeneratedBy")
    first = by[0] if isinstance(by, list) and by else {}
    return facts.get("DatasetType") == "derivative" and isinstance(first, dict) and first.get("Name") == NAME


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        return "unreadable"
