"""The card (docs/README.md) of a fine-tuned model: where it comes from, what it scored, and the licence it inherits."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

from NeonatalSegLib.files.regular import open_regular
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.facts import Lineage
from NeonatalSegLib.models.scores import Scores

MOST_CARD_BYTES = 4_000_000


def version_description(parent: str, lineage: Lineage) -> str:
    """One line for lists."""
    scores = Scores.of(vars(lineage))
    text = f"{parent} after fine-tuning ({lineage.strategy or 'unnamed strategy'}) on {_learned_from(lineage)}"
    if scores.before_mean is not None and scores.after_mean is not None:
        text += f"; mean DSC {scores.before_mean:.3f} -> {scores.after_mean:.3f} on held-out slices"
    return text + "."


def version_card(
    name: str, parent: Model, lineage: Lineage, description: str, notes: str = "", licence: str = ""
) -> str:
    """The whole card as Markdown."""
    facts = {
        "Parent": f"{parent.name}, SHA-256 {parent.hash[:12]}...",
        "Date": lineage.date,
        "Strategy": lineage.strategy,
        "Parameters trained": _parameters(lineage),
        "Learned from": _learned_from(lineage),
        "Held out": _count(lineage.held_out_slices, "slice"),
        "Scans": ", ".join(lineage.scans),
        "Raters": ", ".join(lineage.raters),
        "DSC on the parent's own domain": _own_domain(lineage),
        "Share of the new weights": lineage.mix,
        "Time": None if lineage.seconds is None else f"{float(lineage.seconds):.0f} s",
        "Device": lineage.device,
        "Stopped early": "yes, the best so far was kept" if lineage.stopped_early else None,
    }
    rows = "\n".join(f"| {_cell(k)} | {_cell(v)} |" for k, v in facts.items() if v not in (None, ""))
    parts = [
        f"# {name}",
        description,
        "**Research use only, not for diagnosis or care.** The licence of the parent applies (see Licence).",
        f"| | |\n|---|---|\n{rows}",
        f"## Before and after\n\n{_scores(lineage)}",
        f"## Notes\n\n{notes.strip()}" if notes.strip() else "",
        licence or inherited_licence(parent),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def inherited_licence(parent: Model) -> str:
    """The section Licence of the parent's card, word for word, under its heading."""
    text = ""
    with contextlib.suppress(OSError), open_regular(parent.folder / "docs" / "README.md") as stream:
        text = stream.read(MOST_CARD_BYTES).decode("utf-8", "replace")
    found = re.search(r"^##[ \t]+Licen[cs]e\b.*?(?=^##?[ \t]|\Z)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if found:
        return found[0].strip()
    return (
        f"## Licence\n\nThe card of {parent.name} states no licence: ask whoever made that model before passing it on."
    )


def _learned_from(lineage: Lineage) -> str:
    return f"{_count(lineage.slices, 'slice')} of {_count(lineage.scans, 'scan')}"


def _parameters(lineage: Lineage) -> str:
    trained, total = lineage.parameters_trained, lineage.parameters_total
    return f"{trained:,} of {total:,}" if trained is not None and total else ""


def _own_domain(lineage: Lineage) -> str:
    before, after = lineage.source_before, lineage.source_after
    return "" if before is None or after is None else f"{before:.3f} before, {after:.3f} after"


def _count(things: Sequence[str], name: str) -> str:
    number = len(things)
    return f"{number} {name}{'s' * (number != 1)}"


def _scores(lineage: Lineage) -> str:
    rows = Scores.of(vars(lineage)).rows
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
