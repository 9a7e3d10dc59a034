"""The user's own models as people see them: their names, where they come from, and what they score before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from NeonatalSegLib.tissues import PHYSIOLOGICAL

SOURCE_ROW = "Other kinds (est.)"  # what is known of scans like those that the model learned from before


@dataclass(frozen=True)
class Scores:
    """Dice (0-1) on the held-out slices by tissue key, before and after; None where a tissue was not there.

    ``source_before`` and ``source_after`` are the means on what guards the scans that the model knew before: of a scan
    that was given for it, or 1 and the share that is estimated to be left.
    """

    before: Mapping[str, float | None] = field(default_factory=dict)
    after: Mapping[str, float | None] = field(default_factory=dict)
    before_mean: float | None = None
    after_mean: float | None = None
    source_before: float | None = None
    source_after: float | None = None

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Scores:
        """From a result of the operation "finetune", or from a model's lineage: both have these keys."""
        return Scores(
            dict(fields.get("before") or {}),
            dict(fields.get("after") or {}),
            fields.get("before_mean"),
            fields.get("after_mean"),
            fields.get("source_before"),
            fields.get("source_after"),
        )

    @property
    def rows(self) -> tuple[tuple[str, str, str, str], ...]:
        """(tissue, before, after, change) as shown; none where nothing was measured.

        The tissues on the held-out slices, their mean, and last what the model knew before, where that was measured.
        """
        if not self.before and not self.after:
            return ()
        pairs = [(t.name, self.before.get(t.key), self.after.get(t.key)) for t in PHYSIOLOGICAL]
        pairs.append(("Mean", self.before_mean, self.after_mean))
        if self.source_before is not None:
            pairs.append((SOURCE_ROW, self.source_before, self.source_after))
        return tuple(
            (name, dice_text(before), dice_text(after), change_text(before, after)) for name, before, after in pairs
        )


def dice_text(value: float | None) -> str:
    """Three decimals, a dash where nothing was measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def change_text(before: float | None, after: float | None) -> str:
    """The difference with its sign, a dash where one of the two was not measured."""
    if before is None or after is None or not math.isfinite(after - before):
        return "–"
    text = f"{after - before:+.3f}"
    return text.lstrip("+-") if float(text) == 0 else text
