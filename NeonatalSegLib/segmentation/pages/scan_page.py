"""The page of one scan: verdict on top, planes to scroll, volumes against growth, how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from NeonatalSegLib.evaluation.metrics import volume_sums
from NeonatalSegLib.segmentation.growth import GROWTH, INTRACRANIAL, centile_text, signed_text
from NeonatalSegLib.segmentation.overlay import Upright
from NeonatalSegLib.segmentation.pages.charts import NAMES, WHAT_THE_BANDS_ARE, Point, growth_chart
from NeonatalSegLib.segmentation.pages.planes import picture_uri, planes_data
from NeonatalSegLib.segmentation.pages.render import render
from NeonatalSegLib.segmentation.study_results import UNKNOWN
from NeonatalSegLib.segmentation.verdict import VERDICTS
from NeonatalSegLib.tissues import PHYSIOLOGICAL

FAR = 2.0  # z-scores from here on stand out
PLANES = (  # with what lies left, right, above and below on the screen
    {"key": "axial", "name": "Axial", "sides": ("R", "L", "A", "P")},
    {"key": "coronal", "name": "Coronal", "sides": ("R", "L", "S", "I")},
    {"key": "sagittal", "name": "Sagittal", "sides": ("A", "P", "S", "I")},
)


def write_scan_page(
    file: Path,
    name: str,
    facts: Mapping[str, Any],
    volumes_ml: Mapping[str, float],
    seen: Upright | None = None,
    picture: Path | None = None,
) -> None:
    """Write the page; everything is in it, so that the file can be sent alone.

    Args:
        facts: the side-car (``outputs.sidecar``).
        volumes_ml: by tissue key.
        seen: what its planes show; None for a page without.
        picture: the same as a still picture, for readers that run no script.
    """
    plausibility = facts.get("Plausibility") or {}
    findings = plausibility.get("Findings") or []
    told = {finding["Text"] for finding in findings}
    verdict = plausibility.get("Verdict", UNKNOWN)
    age, age_text = _age(facts)
    values = {**volumes_ml, **volume_sums(dict(volumes_ml))}
    text = render(
        "scan.html",
        "planes.js",
        name=name,
        facts={**facts, "Inputs": {key: Path(source).name for key, source in facts["Inputs"].items()}},  # no paths
        age=age_text,
        age_unknown=age is None,
        usual_at="" if age is None else f" at {age:g} weeks",
        verdict=VERDICTS.get(verdict, "not judged"),
        verdict_class=verdict if verdict in VERDICTS else "",
        findings=findings,
        notices=[warning for warning in facts["Warnings"] if warning not in told],
        planes=planes_data(seen) if seen else None,
        plane_names=PLANES,
        still=picture_uri(picture) if seen and picture else "",
        reference="T2" if "t2" in facts["Inputs"] else "T1",
        rows=_rows(values, age),
        charts=[_chart(key, values[key], age, verdict) for key in [*(t.key for t in PHYSIOLOGICAL), INTRACRANIAL]],
        bands=WHAT_THE_BANDS_ARE,
    )
    file.write_text(text, encoding="utf-8")


def _age(facts: Mapping[str, Any]) -> tuple[float | None, str]:
    """The age that the growth charts go by, and in words."""
    given, told = facts.get("AgeWeeks"), facts.get("PredictedAgeWeeks")
    if given is not None:
        return float(given), f"{given:g} weeks of post-menstrual age"
    if told is not None:
        return float(told), f"Age not given; {told:.1f} weeks by the model"
    return None, "Age not given"


def _rows(values: Mapping[str, float], age: float | None) -> list[dict[str, Any]]:
    """Of the table: the eight tissues, then the sums."""
    rows: list[dict[str, Any]] = []
    for tissue in PHYSIOLOGICAL:
        rows.append({"index": tissue.index, "name": tissue.name, "colour": tissue.colour, "key": tissue.key})
    rows.append({"index": 0, "name": "Brain (without CSF and ventricles)", "key": "brain"})
    rows.append({"index": 0, "name": NAMES[INTRACRANIAL], "key": INTRACRANIAL})
    for row in rows:
        growth = GROWTH.get(row["key"])
        limits = growth.usual_ml(age) if growth and age is not None else None
        z = growth.z_score(values[row["key"]], age) if growth else None
        row |= {
            "ml": f"{values[row['key']]:.1f}",
            "usual": f"{limits[0]:.1f} to {limits[1]:.1f}" if limits else UNKNOWN,
            "z": UNKNOWN if z is None else signed_text(z),
            "far": z is not None and abs(z) > FAR,
            "centile": UNKNOWN if z is None else centile_text(z).removesuffix(" centile"),
        }
    return rows


def _chart(key: str, volume_ml: float, age: float | None, verdict: str) -> dict[str, Any]:
    z = GROWTH[key].z_score(volume_ml, age)
    text = f"{volume_ml:.1f} mL" if z is None else f"{volume_ml:.1f} mL, {centile_text(z)}"
    when = "age not known" if age is None else f"at {age:g} weeks"
    label = f"{NAMES[key]}: {text}, {when}, on the growth bands from 26 to 45 weeks"
    return {"chart": growth_chart(key, [Point(age, volume_ml, verdict)]), "label": label, "text": text}
