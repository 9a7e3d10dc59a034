"""What lies in a study's folder: one row a result, read from the side-cars, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.segmentation.growth import GROWTH, INTRACRANIAL
from NeonatalSegLib.segmentation.verdict import VERDICTS
from NeonatalSegLib.tissues import PHYSIOLOGICAL, TISSUES

SIDE_CAR_BEGINS = "Tissue segmentation of a newborn's brain by NeonatalSeg"
SIDE_CAR_ENDS = "_dseg.json"
UNKNOWN = "n/a"
TISSUE_KEYS = tuple(t.key for t in TISSUES if t.index > 0)


@dataclass(frozen=True)
class StudyRow:
    """One result of a study; what its side-car does not say is None or empty.

    Attributes:
        name: of the scan, unique in the study.
        age_weeks: post-menstrual age as given; ``predicted_age_weeks`` as the model tells it.
        volumes_ml: by tissue key, "brain" and "intracranial".
        verdict: "pass", "check", "fail", or "n/a" in results of versions that gave none.
        finding_kinds: short keys of what speaks against the result.
        warnings: in words, what speaks against the result first.
        seconds: from reading to writing.
        model: its name and the first digits of its hash.
        method: ``segmenter.METHOD`` of the version that made it.
        report: page of the scan below the study's folder with "/" between folders; ``picture`` likewise. "" where
            there is none.
        age_by_volumes_weeks: post-menstrual age as the tissues show it, by which no volume is judged.
    """

    name: str
    age_weeks: float | None = None
    predicted_age_weeks: float | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    verdict: str = UNKNOWN
    finding_kinds: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    registration_quality: float | None = None
    seconds: float | None = None
    device: str = UNKNOWN
    engine: str = UNKNOWN
    model: str = UNKNOWN
    version: str = UNKNOWN
    method: str = UNKNOWN
    report: str = ""
    picture: str = ""
    age_by_volumes_weeks: float | None = None

    @property
    def known_age_weeks(self) -> float | None:
        """As given, else as the model tells it."""
        return self.age_weeks if self.age_weeks is not None else self.predicted_age_weeks

    @property
    def z_scores(self) -> dict[str, float]:
        """At the age that is known, by the keys of ``growth.GROWTH``; without what cannot be told."""
        age = self.known_age_weeks
        scores = {key: GROWTH[key].z_score(ml, age) for key, ml in self.volumes_ml.items() if key in GROWTH}
        return {key: score for key, score in scores.items() if score is not None}


def read_rows(out: Path) -> list[StudyRow]:
    """The results at or below ``out``, by name; hidden folders and side-cars that are not ours are passed over.

    Of two results of one name, such as on a T1 and on a T2 that was there at another time, the newer one counts.
    """
    rows: dict[str, StudyRow] = {}
    made: dict[str, Path] = {}
    for path in sorted(out.rglob(f"*{SIDE_CAR_ENDS}")):
        if any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            facts = read_object(path, "side-car", nan=True)
        except NeonatalSegError:
            continue
        if str(facts.get("Description", "")).startswith(SIDE_CAR_BEGINS):
            row = _row(facts, path, out)
            if other := made.get(row.name):
                newer = path.stat().st_mtime_ns > other.stat().st_mtime_ns
                kept, older = (path, other) if newer else (other, path)
                said = f"{older.relative_to(out).as_posix()} is another, older result of this name: it is not counted."
                row = row if newer else rows[row.name]
                path, row = kept, replace(row, warnings=(*row.warnings, said))
            rows[row.name], made[row.name] = row, path
    return [rows[name] for name in sorted(rows)]


def _row(facts: Mapping[str, Any], path: Path, out: Path) -> StudyRow:
    stem = path.name.removesuffix(SIDE_CAR_ENDS)
    model, engine = _object(facts.get("Model")), _object(facts.get("Engine"))
    plausibility, versions = _object(facts.get("Plausibility")), _object(facts.get("Versions"))
    seconds = [_number(s) for s in _object(facts.get("SecondsPerStage")).values()]
    return StudyRow(
        name=str(facts.get("Name") or stem.split("_space-")[0]),
        age_weeks=_number(facts.get("AgeWeeks")),
        predicted_age_weeks=_number(facts.get("PredictedAgeWeeks")),
        age_by_volumes_weeks=_number(facts.get("AgeByVolumesWeeks")),
        volumes_ml=_volumes(_object(facts.get("VolumesML"))),
        verdict=verdict if (verdict := plausibility.get("Verdict")) in VERDICTS else UNKNOWN,
        finding_kinds=tuple(dict.fromkeys(str(_object(f).get("Kind")) for f in _list(plausibility.get("Findings")))),
        warnings=tuple(str(text) for text in _list(facts.get("Warnings"))),
        registration_quality=_number(facts.get("RegistrationQuality")),
        seconds=sum(s for s in seconds if s is not None) if seconds else None,
        device=str(facts.get("Device") or UNKNOWN),
        engine=" ".join(str(engine[key]) for key in ("Name", "Precision") if engine.get(key)) or UNKNOWN,
        model=f"{model.get('Name', UNKNOWN)} {str(model.get('SHA256') or '')[:12]}".strip(),
        version=str(versions.get("neonatalseg") or UNKNOWN),
        method=str(facts.get("Method", UNKNOWN)),
        report=_beside(path, f"{stem}_report.html", out),
        picture=_beside(path, f"{stem}_dseg.png", out),
    )


def _volumes(given: Mapping[str, Any]) -> dict[str, float]:
    volumes = {key: ml for key in TISSUE_KEYS if (ml := _number(given.get(key))) is not None}
    for name, keys in (
        ("brain", [t.key for t in PHYSIOLOGICAL if t.brain]),
        (INTRACRANIAL, [t.key for t in PHYSIOLOGICAL]),
    ):
        if all(key in volumes for key in keys):
            volumes[name] = sum(volumes[key] for key in keys)
    return volumes


def _beside(path: Path, name: str, out: Path) -> str:
    file = path.with_name(name)
    return file.relative_to(out).as_posix() if file.is_file() else ""


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """A finite number, else None: side-cars may have been edited."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if good else None
