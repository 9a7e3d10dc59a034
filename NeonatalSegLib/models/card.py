"""The card (docs/README.md) of a fine-tuned model: where it comes from, what it scored, and the licence it inherits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.scores import Scores


def version_description(parent: str, lineage: Mapping[str, Any]) -> str:
    """One line for lists."""
    scores = Scores.of(lineage)
    text = f"{parent} after fine-tuning ({lineage.get('strategy') or 'unnamed strategy'}) on {_learned_from(lineage)}"
    if scores.before_mean is not None and scores.after_mean is not None:
        text += f"; mean DSC {scores.before_mean:.3f} -> {scores.after_mean:.3f} on held-out slices"
    return text + "."


def version_card(name: str, parent: Model, lineage: Mapping[str, Any], description: str, notes: str = "") -> str:
    """The whole card as Markdown."""
    facts = {
        "Parent": f"{parent.name}, SHA-256 {parent.hash[:12]}...",
        "Date": lineage.get("date"),
        "Strategy": lineage.get("strategy"),
        "Parameters trained": _parameters(lineage),
        "Learned from": _learned_from(lineage),
        "Held out": _count(lineage.get("held_out_slices"), "slice"),
        "Scans": ", ".join(scan_names(lineage)),
        "Raters": ", ".join(map(str, lineage.get("raters") or ())),
        "DSC on the parent's own domain": _own_domain(lineage),
        "Share of the new weights": lineage.get("mix"),
        "Time": f"{float(lineage['seconds']):.0f} s" if lineage.get("seconds") is not None else None,
        "Device": lineage.get("device"),
        "Stopped early": "yes, the best so far was kept" if lineage.get("stopped_early") else None,
    }
    rows = "\n".join(f"| {_cell(k)} | {_cell(v)} |" for k, v in facts.items() if v not in (None, ""))
    parts = [
        f"# {name}",
        description,
        "**Research use only, not for diagnosis or care.** The licence of the parent applies (see Licence).",
        f"| | |\n|---|---|\n{rows}",
        f"## Before and after\n\n{_scores(lineage)}",
        f"## Notes\n\n{notes.strip()}" if notes.strip() else "",
        inherited_licence(parent),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def inherited_licence(parent: Model) -> str:
    """The section Licence of the parent's card, word for word, under its heading."""
    try:
        text = (parent.folder / "docs" / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^##[ \t]+Licen[cs]e\b.*?(?=^##?[ \t]|\Z)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if found:
        return found[0].strip()
    return (
        f"## Licence\n\nThe card of {parent.name} states no licence: ask whoever made that model before passing it on."
    )


def scan_names(lineage: Mapping[str, Any]) -> list[str]:
    """Names of the scans whose slices were used; an entry is a name, or {"name", "age_weeks"}."""
    return [str(scan["name"] if isinstance(scan, Mapping) else scan) for scan in lineage.get("scans") or ()]


def _learned_from(lineage: Mapping[str, Any]) -> str:
    return f"{_count(lineage.get('slices'), 'slice')} of {_count(lineage.get('scans'), 'scan')}"


def _parameters(lineage: Mapping[str, Any]) -> str:
    trained, total = lineage.get("parameters_trained"), lineage.get("parameters_total")
    return f"{trained:,} of {total:,}" if trained is not None and total else ""


def _own_domain(lineage: Mapping[str, Any]) -> str:
    before, after = lineage.get("source_before"), lineage.get("source_after")
    return "" if before is None or after is None else f"{before:.3f} before, {after:.3f} after"


def _count(things: Sequence[Any] | None, name: str) -> str:
    number = len(things or ())
    return f"{number} {name}{'s' * (number != 1)}"


def _scores(lineage: Mapping[str, Any]) -> str:
    rows = Scores.of(lineage).rows
    if not rows:
        return "Not measured: no slice was held out."
    lines = "\n".join(f"| {name} | {before} | {after} | {change} |" for name, before, after, change in rows)
    return (
        "DSC on the held-out slices. Nothing was learned from them, but they chose which weights were kept: the "
        f"figures after are somewhat too good.\n\n| Tissue | Before | After | Change |\n|---|---:|---:|---:|\n{lines}"
    )


def _cell(value: object) -> str:
    """Text for a cell of a Markdown table: names of scans and raters are the user's."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
