"""From annotated slices on disk to a new model: what ``neonatalseg finetune`` and the panel run.

Example:
    >>> annotated = read_annotations("study")  # doctest: +SKIP
    >>> tuned = finetune(find_model(), annotated, FineTuningSettings(strategy="full"))  # doctest: +SKIP
    >>> tuned.save()  # a candidate in the model store  # doctest: +SKIP
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NeonatalSegLib.annotation.completed import AnnotatedScan
from NeonatalSegLib.annotation.plan import PlannedSlice
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, annotated_on, box_of
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.scans.grid import plane
from NeonatalSegLib.tissues import PHYSIOLOGICAL, UNKNOWN

if TYPE_CHECKING:
    from NeonatalSegLib.datasets.cache import CachedSubject
    from NeonatalSegLib.finetuning.loop import FineTuningResult, Report
    from NeonatalSegLib.finetuning.settings import FineTuningSettings

FEWEST_TO_HOLD_OUT = 4  # slices; with fewer, all are needed for learning
PHANTOMS = 3  # synthetic newborns for rehearsal, where no other cases are given; one of them is not learned from


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuning's end: the network with its figures, and where it comes from.

    Attributes:
        adapted: network, selection, figures on held-out slices, history, warnings.
        parent: the model before.
        learned, held_out: keys of the slices.
        scans: names and ages in weeks, where known.
        licence: the section of the parent's card, read before the training: the parent may be gone after it.
    """

    adapted: FineTuningResult
    parent: Model
    settings: FineTuningSettings
    learned: tuple[str, ...]
    held_out: tuple[str, ...]
    scans: tuple[tuple[str, float | None], ...]
    raters: tuple[str, ...]
    device: str
    licence: str = ""

    def lineage(self) -> dict[str, Any]:
        """What the new model's metadata say of its making; DSC by tissue key, null where not measured."""
        a = self.adapted
        return {
            "parent": self.parent.name,
            "parent_sha256": self.parent.hash,
            "strategy": self.settings.strategy,
            "parameters_trained": a.selection.trained,
            "parameters_total": a.selection.total,
            "settings": self.settings.to_json(),
            "slices": list(self.learned),
            "held_out_slices": list(self.held_out),
            "scans": [{"name": name, "age_weeks": age} for name, age in self.scans],
            "raters": list(self.raters),
            "before": by_tissue(a.before),
            "after": by_tissue(a.after),
            "before_mean": _mean(a.before),
            "after_mean": _mean(a.after),
            "source_before": a.source_before,
            "source_after": a.source_after,
            "mix": a.mix,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(a.seconds, 1),
            "device": self.device,
            "stopped_early": a.stopped_early,
        }

    def save(self) -> Model:
        """Write the network as a new version, a candidate, in the user's model store, with its export for CPUs."""
        from NeonatalSegLib.models.exported import export_where_possible
        from NeonatalSegLib.models.store import add_version

        model = add_version(
            self.adapted.network, self.parent.network, self.parent, self.lineage(), licence=self.licence
        )
        export_where_possible(model)
        return model


def finetune(
    model: Model,
    annotated: Sequence[AnnotatedScan],
    settings: FineTuningSettings,
    *,
    rehearsal: Sequence[CachedSubject] | None = None,
    device: str = "auto",
    report: Report | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FineTuned:
    """Fine-tune a model on the completed slices of a study.

    Args:
        model: the old model.
        annotated: as ``annotation.completed.read_annotations`` gives them.
        rehearsal: prepared, fully labelled scans of the model's own domain, at its spacing; None: synthetic newborns.
        device: "auto", "cpu" or "cuda".
        report, should_stop: as in :func:`NeonatalSegLib.finetuning.loop.run_finetuning`.

    Raises:
        NeonatalSegError: nothing annotated, a scan that cannot be read, one class only, too little memory.
    """
    from NeonatalSegLib.finetuning.loop import run_finetuning
    from NeonatalSegLib.models.card import inherited_licence
    from NeonatalSegLib.networks.torch_engine import device_text
    from NeonatalSegLib.segmentation.device import choose_device

    where, notices = choose_device(device)
    licence = inherited_licence(model)
    network = model.load_network()
    _tell(report, "prepare", 0.0)
    slices = [s for scan in annotated for s in scan.slices]
    known = learned_before(model)
    held_out = {s.key for s in hold_out(slices, settings.held_out, settings.seed, known)}
    cases = [prepare_case(scan, held_out, model.spacing_mm) for scan in annotated]
    notices += [f"{case.name}: {warning}" for case in cases for warning in case.warnings]
    _tell(report, "prepare", 0.02)
    past = _rehearsal_cases(rehearsal, settings, model.spacing_mm)
    if again := held_out & known:
        notices.append(
            f"{len(again)} of the {len(held_out)} held-out slices were learned by {model.name} or a model before it: "
            "its figures on them are too good. Complete more new slices."
        )

    def with_count(stage: str, fraction: float, facts: Mapping[str, Any]) -> None:
        _tell(report, stage, fraction, {**facts, "held_out_slices": len(held_out)})

    adapted = run_finetuning(
        network,
        model.network,
        cases,
        settings,
        rehearsal=past,
        drawn=rehearsal is None,
        device=where,
        report=with_count,
        should_stop=should_stop,
    )
    adapted.warnings[:0] = notices
    return FineTuned(
        adapted,
        model,
        settings,
        tuple(s.key for s in slices if s.key not in held_out),
        tuple(s.key for s in slices if s.key in held_out),
        tuple((scan.name, scan.age_weeks) for scan in annotated),
        tuple(sorted({rater for scan in annotated for rater in scan.raters})),
        device_text(adapted.device or where),
        licence,
    )


def learned_before(model: Model) -> set[str]:
    """Keys of the slices that this model and those that it came from have learned, as far as their lineage is here."""
    from NeonatalSegLib.models.registry import installed_model

    keys: set[str] = set()
    seen: set[str] = set()
    while model.name not in seen:
        seen.add(model.name)
        lineage = model.facts.lineage
        if lineage is None:
            break
        keys.update(lineage.slices)
        try:
            model = installed_model(lineage.parent)
        except NeonatalSegError:
            break
    return keys


def hold_out(
    slices: Sequence[PlannedSlice], share: float, seed: int, known: Set[str] = frozenset()
) -> list[PlannedSlice]:
    """The slices that judge: every n-th in the order of scan, axis and position, from a start that the seed draws.

    Those whose keys are not ``known`` come first: what the old model has learned says little about it. None where there
    are fewer than ``FEWEST_TO_HOLD_OUT``: then all are needed for learning.
    """
    if len(slices) < FEWEST_TO_HOLD_OUT or share <= 0:
        return []
    count = max(1, min(round(share * len(slices)), len(slices) - 1))
    ordered = sorted(slices, key=lambda s: (s.scan, s.axis, s.index))
    fresh = [s for s in ordered if s.key not in known]
    if len(fresh) <= count:
        old = [s for s in ordered if s.key in known]
        return fresh + old[:: max(1, len(old) // max(1, count - len(fresh)))][: count - len(fresh)]
    ordered = fresh
    start = float(np.random.default_rng(seed).uniform(0, 1))
    return [ordered[int((i + start) * len(ordered) / count)] for i in range(count)]


def prepare_case(scan: AnnotatedScan, held_out: set[str], spacing_mm: float) -> SparseCase:
    """An annotated scan on the network's grid; a voxel of a held-out slice is never learned from."""
    from NeonatalSegLib.brain_finder.find import brain_distance
    from NeonatalSegLib.scans.preprocessing import prepare
    from NeonatalSegLib.scans.scan import load_scan

    loaded = load_scan(scan.t1, scan.t2, name=scan.name, age_weeks=scan.age_weeks)
    prepared = prepare(loaded, spacing_mm, find_brain=brain_distance)  # as the network will see it
    if not prepared.target.is_like(scan.grid, tolerance_mm=0.1):
        raise NeonatalSegError(f"The annotation of {scan.name} does not lie on the grid of its scan.")
    masks = {False: np.zeros(scan.labels.shape, bool), True: np.zeros(scan.labels.shape, bool)}
    boxes = []
    for s in scan.slices:
        where = plane(scan.grid, s.axis, s.index)
        masks[s.key in held_out][where] = True
        if s.key in held_out:
            boxes.append(box_of(prepared.grid, prepared.target, where))
    learned = annotated_on(prepared.grid, prepared.target, scan.labels, masks[False])
    judging = annotated_on(prepared.grid, prepared.target, scan.labels, masks[True])
    labels = np.where(judging == UNKNOWN, learned, UNKNOWN)
    return SparseCase(scan.name, prepared.array, labels, judging, prepared.warnings, tuple(boxes))


def by_tissue(per_class: np.ndarray) -> dict[str, float | None]:
    """DSC of the eight tissues by key; None where not measured (JSON has no NaN)."""
    values = {t.key: float(per_class[t.index]) for t in PHYSIOLOGICAL}
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def _mean(per_class: np.ndarray) -> float | None:
    from NeonatalSegLib.finetuning.mixing import mean_tissue_dsc

    return mean_tissue_dsc(per_class)


def _rehearsal_cases(
    given: Sequence[CachedSubject] | None, settings: FineTuningSettings, spacing_mm: float
) -> list[SparseCase]:
    if settings.rehearsal <= 0 or settings.strategy in ("none", "scratch"):
        return []
    if given is not None:
        if merged := [s.name for s in given if s.merged]:
            raise NeonatalSegError(
                f"{merged[0]} cannot be rehearsed: its labels do not tell all tissues apart. Leave templates out of "
                "the cache to rehearse with."
            )
        return [fully_labelled(s.name, np.array(s.image()), np.array(s.labels())) for s in given]
    from NeonatalSegLib.datasets.cache import prepare_phantom

    with ThreadPoolExecutor(PHANTOMS) as side_by_side:  # 6 s each, while the user waits for the first figure
        drawn = list(side_by_side.map(lambda n: prepare_phantom(settings.seed + n, spacing_mm), range(PHANTOMS)))
    return [fully_labelled(f"phantom{n:02d}", image, labels) for n, (_, image, labels) in enumerate(drawn)]


def fully_labelled(name: str, image: np.ndarray, labels: np.ndarray) -> SparseCase:
    """A case to rehearse: every voxel known, nothing held out."""
    return SparseCase(name, image, labels, np.full(labels.shape, UNKNOWN, np.uint8))


def read_rehearsal(folder: str | Path, spacing_mm: float) -> list[CachedSubject]:
    """A cache of prepared arrays (``neonatalseg train --cache-only``) to rehearse with.

    Raises:
        NeonatalSegError: there is none, or it was prepared at another spacing than the model's.
    """
    from NeonatalSegLib.datasets.cache import cache_spacing, read_cache

    subjects = read_cache(folder)
    if (found := cache_spacing(folder)) != spacing_mm:
        raise NeonatalSegError(f"{folder} holds arrays at {found:g} mm; the model works at {spacing_mm:g} mm.")
    return subjects


def _tell(report: Report | None, stage: str, fraction: float, facts: Mapping[str, Any] = {}) -> None:
    if report is not None:
        report(stage, fraction, facts)
