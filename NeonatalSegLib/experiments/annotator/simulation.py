"""A simulated annotator: the whole loop of budget, annotation and fine-tuning on scans whose truth is known.

The truth is revealed on the planned slices alone; some of these are held out and choose the mix of old and new
weights, as for a real annotator. Figures are of other scans of the same domain, none of whose slices was revealed, and
of scans of the model's own domain, which say what was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.annotation.plan import BudgetSettings, PlannedSlice
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.annotation.slice_selection import ScanToPlan
from NeonatalSegLib.datasets.cache import read_cache
from NeonatalSegLib.experiments.annotator.domains import DomainScan, read_domain_scan
from NeonatalSegLib.experiments.runs import run_jobs
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, box_of
from NeonatalSegLib.networks.strategies import STRATEGIES
from NeonatalSegLib.scans.grid import plane
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, UNKNOWN


@dataclass(frozen=True)
class AnnotatorSettings:
    """What is compared.

    Attributes:
        percents: budgets, percent of the slices of the brain (see BudgetSettings), of each annotated scan.
        strategies: fine-tuned with the first selection.
        selections: ways to choose slices; all but the first are tried with the strategy ``compared_with`` alone.
        axis: of the slices.
        annotated, tested, sources: scans that are annotated, others of the domain that are tested, and scans of the
            model's own domain that are tested, in each run.
        merged: groups of classes that the truth does not tell apart.
        finetuning: entries of FineTuningSettings that differ from the defaults.
    """

    percents: tuple[float, ...] = (5.0, 10.0, 20.0, 33.0)
    strategies: tuple[str, ...] = tuple(s for s in STRATEGIES if s != "none")
    selections: tuple[str, ...] = ("equidistant", "foreground-random", "uncertainty")
    compared_with: str = "full"
    axis: str = "mixed"
    annotated: int = 1
    tested: int = 2
    sources: int = 1
    merged: tuple[tuple[int, ...], ...] = ()
    finetuning: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def simulate(
    out: Path,
    domain: Path,
    scans: Sequence[str],
    source: Path,
    source_scans: Sequence[str],
    settings: AnnotatorSettings,
    *,
    model: str,
    rehearsal: Path | None = None,
    runs: int = 3,
    parallel: int = 1,
    scheduler: str | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Run everything that has no result yet in ``out``; results by run's key.

    Args:
        domain, source: prepared with ``domains.prepare_domain``; ``scans``, ``source_scans``: their names.
        model: name or folder.
        rehearsal: cache of prepared arrays; None: no rehearsal unless the settings ask for synthetic newborns.
        runs: seeds; each draws which scans are annotated and which tested, the slices, and the patches.
    """
    jobs: dict[str, dict[str, Any]] = {}
    for seed in range(runs):
        order = [scans[int(i)] for i in np.random.default_rng(seed).permutation(len(scans))]
        common = {
            "seed": seed,
            "annotated": order[: settings.annotated],
            "tested": order[settings.annotated : settings.annotated + settings.tested],
            # The same newborn in another contrast would not be one that no training saw.
            "source": [
                name
                for name in (source_scans[(seed + i) % len(source_scans)] for i in range(len(source_scans)))
                if name not in order[: settings.annotated]
            ][: settings.sources],
        }
        for percent in settings.percents:
            for number, selection in enumerate(settings.selections):
                chosen = settings.strategies if number == 0 else (settings.compared_with,)
                for strategy in chosen:
                    key = f"{strategy}-{selection}-{percent:g}-s{seed}"
                    jobs[key] = {**common, "strategy": strategy, "selection": selection, "percent": percent}
    work = partial(
        one_run, domain=str(domain), source=str(source), settings=settings.to_json(), model=model,
        rehearsal=None if rehearsal is None else str(rehearsal),
    )  # fmt: skip
    config = {"settings": settings.to_json(), "model": model, "scans": list(scans), "source_scans": list(source_scans)}
    return run_jobs(work, jobs, out, config=config, parallel=parallel, scheduler=scheduler, report=report)


def one_run(
    job: dict[str, Any],
    _folder: Path,
    *,
    domain: str,
    source: str,
    settings: Mapping[str, Any],
    model: str,
    rehearsal: str | None,
) -> dict[str, Any]:
    """Plan, reveal, fine-tune, test: one point of the curves."""
    from NeonatalSegLib.finetuning.loop import run_finetuning
    from NeonatalSegLib.finetuning.run import fully_labelled
    from NeonatalSegLib.finetuning.settings import FineTuningSettings
    from NeonatalSegLib.models.registry import find_model
    from NeonatalSegLib.segmentation.device import choose_device

    found = find_model(model)
    device, _ = choose_device("auto")
    merged = tuple(tuple(group) for group in settings["merged"])
    given = FineTuningSettings.from_json(
        {**settings["finetuning"], "strategy": job["strategy"], "seed": job["seed"], "merged": merged}
    )
    if "minutes" not in settings["finetuning"]:
        given = replace(given, minutes=None)  # how busy the machine is must not change the figures
    scans = [read_domain_scan(Path(domain), name) for name in job["annotated"]]
    budget = BudgetSettings(
        amount=job["percent"],
        unit="percent",
        per="scan",
        axis=settings["axis"],
        selection=job["selection"],
        extent="brain",
        seed=job["seed"],
    )
    plan = plan_slices([to_plan(scan) for scan in scans], budget)
    cases = [reveal(scan, plan.for_scan(scan.name), given.held_out, job["seed"]) for scan in scans]
    before = _held_out_before(scans, cases, merged)
    past = []
    if rehearsal is not None:
        subjects = read_cache(rehearsal)
        past = [fully_labelled(s.name, np.array(s.image()), np.array(s.labels())) for s in subjects]
    adapted = run_finetuning(
        found.load_network(),
        found.network,
        cases,
        given,
        rehearsal=past,
        drawn=True,
        before=before,
        device=device,
    )
    sides: dict[str, Any] = {}
    for side, folder, names in (("tested", domain, job["tested"]), ("source", source, job["source"])):
        groups = merged if side == "tested" else ()
        sides[side] = {
            name: test(adapted.network, found.network, read_domain_scan(Path(folder), name), groups, device)
            for name in names
        }
    return {
        **sides,
        "slices": len(plan.slices),
        "mix": adapted.mix,
        "trained": adapted.selection.trained,
        "total": adapted.selection.total,
        "seconds": adapted.seconds,
        "held_out": [_or_none(v) for v in (_mean(adapted.before), _mean(adapted.after))],
        "warnings": adapted.warnings,
    }


def to_plan(scan: DomainScan) -> ScanToPlan:
    """What is known of a scan before it is annotated: the model's brain, labels and uncertainty."""
    brain = np.isin(scan.prediction, [t.index for t in PHYSIOLOGICAL])
    return ScanToPlan(scan.name, scan.grid, brain, scan.prediction, scan.uncertainty)


def reveal(scan: DomainScan, slices: Sequence[PlannedSlice], share: float, seed: int) -> SparseCase:
    """The truth on the planned slices, some of them held out; nothing elsewhere."""
    from NeonatalSegLib.finetuning.run import hold_out

    held = {s.key for s in hold_out(slices, share, seed)}
    learned, judging = (np.full(scan.labels.shape, UNKNOWN, np.uint8) for _ in range(2))
    boxes = []
    for s in slices:
        where = plane(scan.grid, s.axis, s.index)
        if s.key in held:
            boxes.append(box_of(scan.grid, scan.grid, where))
        (judging if s.key in held else learned)[where] = scan.labels[where]
    learned[judging != UNKNOWN] = UNKNOWN
    return SparseCase(scan.name, scan.image, learned, judging, boxes=tuple(boxes))


def test(network: Any, shape: Any, scan: DomainScan, merged: Sequence[Sequence[int]], device: Any) -> dict[str, Any]:
    """DSC by class of a whole scan before (the model that prepared it) and after."""
    from NeonatalSegLib.finetuning.mixing import evaluate

    after = evaluate(network, shape, [SparseCase(scan.name, scan.image, scan.labels, scan.labels)], merged, device)
    return {"before": _json(dsc_merged(scan.prediction, scan.labels, merged)), "after": _json(after)}


def _held_out_before(
    scans: Sequence[DomainScan], cases: Sequence[SparseCase], merged: Sequence[Sequence[int]]
) -> np.ndarray:
    """DSC [10] on all held-out slices together, of the predictions that are there already."""
    known = [case.held_out != UNKNOWN for case in cases]
    found = [scan.prediction[where] for scan, where in zip(scans, known, strict=True)]
    truth = [case.held_out[where] for case, where in zip(cases, known, strict=True)]
    return dsc_merged(np.concatenate(found), np.concatenate(truth), merged)


def dsc_merged(pred: np.ndarray, truth: np.ndarray, merged: Sequence[Sequence[int]]) -> np.ndarray:
    """DSC [10] where each group of classes counts as its first."""
    from NeonatalSegLib.evaluation.metrics import dice_per_class

    names = np.arange(NUMBER_OF_CLASSES, dtype=np.uint8)
    for first, *others in merged:
        names[others] = first
    return dice_per_class(names[pred], names[truth])


def mean_of(dsc: Sequence[float | None]) -> float:
    """Mean over the tissues that were measured; the two background classes are left out."""
    values = [dsc[t.index] for t in PHYSIOLOGICAL]
    return float(np.mean([v for v in values if v is not None]))


def _mean(per_class: np.ndarray) -> float:
    from NeonatalSegLib.finetuning.mixing import mean_tissue_dsc

    value = mean_tissue_dsc(per_class)
    return float("nan") if value is None else value


def _json(values: np.ndarray) -> list[float | None]:
    return [_or_none(float(v)) for v in values]


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
