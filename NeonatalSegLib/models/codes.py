"""A model's texts as they may be sent on: codes for the names of scans and raters, file names for paths.

Names that the shipped models state stay: they are those of public data sets. Weights are not changed; whether an image
can be won back from weights is another question, which docs/privacy.md speaks of.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from NeonatalSegLib.models.bundle import CARD_FILE, METADATA_FILE, Model
from NeonatalSegLib.models.exported import EXPORT_FILE, export_bytes, read_export
from NeonatalSegLib.models.registry import is_shipped, list_models

_SUBJECTS = ("training_subjects", "validation_subjects", "test_subjects")


def coded(model: Model) -> dict[str, bytes]:
    """The bundle's files that hold names or paths, by their place in it, with codes in their stead.

    Ages are kept as whole weeks around the range; of single scans not at all. In the card, names are exchanged wherever
    they stand as words.
    """
    ours: Mapping[str, Any] = model.metadata["neonatalseg"]
    lineage: Mapping[str, Any] = ours.get("lineage") or {}
    public = {str(name) for m in list_models() if is_shipped(m) for name in _subjects(m.metadata["neonatalseg"])}
    scans = [name for name in dict.fromkeys([*_scan_names(lineage), *_subjects(ours)]) if name not in public]
    raters = list(dict.fromkeys(map(str, lineage.get("raters") or ())))
    codes = {name: f"rater-{number}" for number, name in enumerate(raters, 1)}
    codes |= {name: f"scan-{number:02d}" for number, name in enumerate(scans, 1)}
    metadata = json.loads(json.dumps(model.metadata))
    metadata["description"] = _words(model.description, codes)
    told = metadata["neonatalseg"]
    for key in told.keys() - {"network", "labels", "sha256", "format", "lineage"}:
        told[key] = _replaced(told[key], codes)
    if ages := ours.get("ages_weeks"):
        told["ages_weeks"] = [math.floor(ages[0]), math.ceil(ages[1])]
    if lineage:
        named = {key: _replaced(lineage.get(key) or [], codes) for key in ("raters", "slices", "held_out_slices")}
        settings = _replaced(lineage.get("settings") or {}, {})
        told["lineage"] |= {**named, "settings": settings, "scans": [codes.get(n, n) for n in _scan_names(lineage)]}
    out = {METADATA_FILE: (json.dumps(metadata, indent=1) + "\n").encode()}
    card = model.folder / CARD_FILE
    if card.is_file():
        out[CARD_FILE] = _words(card.read_text(encoding="utf-8", errors="replace"), codes).encode()
    if (export := read_export(model)) is not None and isinstance(calibration := export.facts.get("calibration"), dict):
        subjects = [codes.get(str(n), str(n) if n in public else "scan") for n in calibration.get("subjects") or ()]
        facts = {**export.facts, "calibration": {**calibration, "subjects": subjects}}
        out[EXPORT_FILE] = export_bytes(model, export.xml, export.weights, export.precision, facts)
    return out


def _subjects(ours: Mapping[str, Any]) -> list[str]:
    return [str(name) for key in _SUBJECTS for name in ours.get(key) or ()]


def _scan_names(lineage: Mapping[str, Any]) -> list[str]:
    return [str(scan["name"] if isinstance(scan, Mapping) else scan) for scan in lineage.get("scans") or ()]


def _replaced(value: Any, codes: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, codes) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, codes) for inner in value]
    return _text(value, codes) if isinstance(value, str) else value


def _text(text: str, codes: Mapping[str, str]) -> str:
    if text in codes:
        return codes[text]
    scan, slash, place = text.partition("/")  # the key of a slice: scan/axis/index
    if slash and scan in codes:
        return f"{codes[scan]}/{place}"
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name or PurePosixPath(text).name
    return _words(text, codes)


def _words(text: str, codes: Mapping[str, str]) -> str:
    """``text`` with names exchanged that stand as words of their own, the longest first; also as a card writes them."""
    spelled = {spelling: code for name, code in codes.items() for spelling in (name, _as_in_card(name))}
    for name in sorted(spelled, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", spelled[name], text)
    return text


def _as_in_card(name: str) -> str:
    return " ".join(name.split()).replace("|", "\\|").replace("<", "&lt;")
