"""A one-page HTML report of one segmentation that works offline: picture, volumes, warnings, how it was made."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from NeonatalSegLib.evaluation.metrics import volume_sums
from NeonatalSegLib.segmentation.verdict import VERDICTS
from NeonatalSegLib.tissues import PHYSIOLOGICAL

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}: newborn brain tissues</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 img { width: 100%; background: #000 } table { border-collapse: collapse; margin: 1rem 0 }
 td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd } td.n { text-align: right }
 .swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid #888 }
 .verdict { padding: .5rem .8rem; font-weight: 600 } .fail { background: #f5b7b1 } .check { background: #fde3a7 }
 .pass { background: #d5f0d5 } .warning { background: #fff3cd; padding: .5rem .8rem; margin: .4rem 0 }
 small { color: #555 }
</style></head><body>
<h1>{{ name }}</h1>
<p><strong>{{ facts.Notice }}</strong></p>
{% if facts.Plausibility is defined %}
<p class="verdict {{ facts.Plausibility.Verdict }}">Plausibility: {{ verdict }}</p>
{% endif %}
{% for warning in facts.Warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
{% if picture %}
<img alt="Axial, coronal and sagittal planes, plain and with the tissues" src="{{ picture }}">
{% endif %}
<table><tr><th>Tissue</th><th>Volume, mL</th></tr>
{% for row in rows %}<tr><td><span class="swatch" style="background: rgb{{ row.colour }}"></span>{{ row.name }}</td>
<td class="n">{{ "%.1f"|format(row.volume) }}</td></tr>
{% endfor %}{% for label, volume in sums %}<tr><td>{{ label }}</td><td class="n">{{ "%.1f"|format(volume) }}</td></tr>
{% endfor %}</table>
<table>
<tr><th>Age at scan</th><td>{{ facts.AgeWeeks ~ " weeks" if facts.AgeWeeks is not none else "not given" }}</td></tr>
{% if facts.PredictedAgeWeeks is defined %}
<tr><th>Age by the model</th><td>{{ "%.1f"|format(facts.PredictedAgeWeeks) }} weeks</td></tr>
{% endif %}
{% if facts.SegmentedAgainWithoutHead %}
<tr><th>Head</th><td>masked: the scan shows much besides the brain, and was segmented again without it</td></tr>
{% endif %}
{% for modality, path in facts.Inputs.items() %}<tr><th>{{ modality|upper }}</th><td>{{ path }}</td></tr>{% endfor %}
<tr><th>Model</th><td>{{ facts.Model.Name }} <small>SHA-256 {{ facts.Model.SHA256 }}</small></td></tr>
<tr><th>Device</th><td>{{ facts.Device }}</td></tr>
{% if facts.Engine %}
<tr><th>Engine</th><td>{{ facts.Engine.Name }}, {{ facts.Engine.Precision }} <small>{{ facts.Engine.Reason }};
{{ facts.Engine.Processor }}: {{ facts.Engine.ProcessorFeatures }}</small></td></tr>
{% endif %}
<tr><th>Seconds</th><td>{% for stage, s in facts.SecondsPerStage.items() %}{{ stage }} {{ s }} {% endfor %}</td></tr>
<tr><th>Agreement of T1 and T2</th>
<td>{% if facts.RegistrationQuality is none %}one modality only
{% else %}{{ "%.2f"|format(facts.RegistrationQuality) }}{% endif %}</td></tr>
<tr><th>Versions</th><td>{% for package, v in facts.Versions.items() %}{{ package }} {{ v }} {% endfor %}</td></tr>
</table></body></html>
"""


def write_report(
    file: Path, name: str, facts: Mapping[str, Any], volumes_ml: Mapping[str, float], picture: Path | None
) -> None:
    """Write the page; the picture is put into it, so that the file can be sent alone.

    Args:
        facts: the side-car (``outputs.sidecar``).
        volumes_ml: by tissue key.
    """
    from jinja2 import Environment

    sums = volume_sums(dict(volumes_ml))
    source = ""
    if picture is not None:
        source = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
    page = Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        name=name,
        facts={**facts, "Inputs": {key: Path(source).name for key, source in facts["Inputs"].items()}},  # no paths
        picture=source,
        verdict=VERDICTS.get(facts.get("Plausibility", {}).get("Verdict", ""), ""),
        rows=[{"name": t.name, "colour": t.colour, "volume": volumes_ml[t.key]} for t in PHYSIOLOGICAL],
        sums=[("Brain (tissue)", sums["brain"]), ("Intracranial (brain and fluid)", sums["intracranial"])],
    )
    file.write_text(text, encoding="utf-8")
