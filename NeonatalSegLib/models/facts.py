"""What a model states about itself, read from the "neonatalseg" section of its metadata: facts and lineage.

Every entry may be missing in models of earlier versions; what is missing is empty here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Lineage:
    """How a fine-tuned model came about.

    Attributes:
        parent, parent_sha256: name and hash of the model that was fine-tuned.
        date: ISO 8601, UTC.
        strategy: which layers were trained (networks/strategies.py).
        parameters_trained, parameters_total: how many, or None.
        settings: of the fine-tuning, as in its JSON.
        slices, held_out_slices: keys of the slices that were learned from, and of those that judged.
        scans: names of the scans that the slices are of.
        scan_ages_weeks: their ages, where they are known.
        raters: who annotated.
        before, after: DSC (0-1) on the held-out slices by tissue key; None where a tissue was not there.
        before_mean, after_mean: their means, or None.
        source_before, source_after: mean DSC on the rehearsed scans of the model's own domain, or None.
        mix: share of the new weights, 0-1, or None.
        seconds: that it took, or None.
        device: in words.
        stopped_early: a person asked it to end, and the best so far was kept.
    """

    parent: str = ""
    parent_sha256: str = ""
    date: str = ""
    strategy: str = ""
    parameters_trained: int | None = None
    parameters_total: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    held_out_slices: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()
    scan_ages_weeks: Mapping[str, float] = field(default_factory=dict)
    raters: tuple[str, ...] = ()
    before: Mapping[str, float | None] = field(default_factory=dict)
    after: Mapping[str, float | None] = field(default_factory=dict)
    before_mean: float | None = None
    after_mean: float | None = None
    source_before: float | None = None
    source_after: float | None = None
    mix: float | None = None
    seconds: float | None = None
    device: str = ""
    stopped_early: bool = False

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Lineage:
        """Read the "lineage" of a model's metadata; unknown entries are passed over.

        Example:
            >>> Lineage.from_json({"scans": ["sub-01", {"name": "sub-02", "age_weeks": 36.5}]}).scan_ages_weeks
            {'sub-02': 36.5}
        """
        scans = [scan if isinstance(scan, Mapping) else {"name": scan} for scan in entries.get("scans") or ()]
        ages = {str(scan["name"]): float(scan["age_weeks"]) for scan in scans if scan.get("age_weeks")}
        texts = ("parent", "parent_sha256", "date", "strategy", "device")
        numbers = ("parameters_trained", "parameters_total", "before_mean", "after_mean", "source_before")
        found: dict[str, Any] = {name: str(entries.get(name) or "") for name in texts}
        found |= {name: _names(entries.get(name)) for name in ("slices", "held_out_slices", "raters")}
        found |= {name: dict(entries.get(name) or {}) for name in ("settings", "before", "after")}
        found |= {name: entries.get(name) for name in (*numbers, "source_after", "mix", "seconds")}
        found |= {"scans": tuple(str(scan["name"]) for scan in scans), "scan_ages_weeks": ages}
        return cls(**found, stopped_early=bool(entries.get("stopped_early")))


@dataclass(frozen=True)
class ModelFacts:
    """What a model has learned from, what chose and what tests it, and how well it did.

    Attributes:
        training_subjects: names of all newborns, templates and phantoms that its weights have learned from.
        validation_subjects: newborns that chose among its weights.
        test_subjects: newborns that took part in neither.
        ages_weeks: youngest and oldest age in training, or None.
        figures: by inputs ("T1+T2", "T2" ...): "mean_dsc_no_bg", "subjects" and more.
        one_window: trained so that one window over the whole brain is as good as several of the training patch.
        lineage: of a fine-tuned model, or None.
    """

    training_subjects: tuple[str, ...] = ()
    validation_subjects: tuple[str, ...] = ()
    test_subjects: tuple[str, ...] = ()
    ages_weeks: tuple[float, float] | None = None
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    one_window: bool = False
    lineage: Lineage | None = None

    @classmethod
    def from_json(cls, ours: Mapping[str, Any]) -> ModelFacts:
        """Read the "neonatalseg" section of metadata.json; unknown entries are passed over."""
        ages, lineage = ours.get("ages_weeks"), ours.get("lineage")
        return cls(
            training_subjects=_names(ours.get("training_subjects")),
            validation_subjects=_names(ours.get("validation_subjects")),
            test_subjects=_names(ours.get("test_subjects")),
            ages_weeks=(float(ages[0]), float(ages[1])) if ages else None,
            figures=dict(ours.get("figures") or {}),
            one_window=bool(ours.get("one_window")),
            lineage=Lineage.from_json(lineage) if lineage else None,
        )


def _names(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values or ())
