"""The paper's four experiments and one on its loss: which trainings each consists of (findings.py: what they end in).

Each takes a :class:`Study` and returns jobs (``trial.trial``) by key. An epoch is a pass over a job's scans. In one
folder the experiments share the runs that are the same: the base line's are also the AgeU-Net's other half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from NeonatalSegLib.datasets.splits import Aged, Split
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings, epochs_of
from NeonatalSegLib.networks.strategies import STRATEGIES
from NeonatalSegLib.scans.grid import AXES
from NeonatalSegLib.training.settings import TrainingSettings

Job = dict[str, Any]
Jobs = dict[str, Job]


@dataclass(frozen=True)
class Study:
    """What the experiments are drawn from.

    Attributes:
        subjects: everybody in the data, prepared or not.
        runs: of every condition.
    """

    subjects: Sequence[Aged]
    settings: ExperimentSettings
    runs: int

    def split(self, run: int) -> Split:
        """Sides "train", "more", "validation" and "test" of one run."""
        return self.settings.sides(self.subjects, run)

    def transfer(self, run: int) -> Split:
        """Sides "source", "source-test", "target-train" and "target-test" of one run."""
        return self.settings.transfer_sides(self.subjects, run)


def baseline(study: Study) -> Jobs:
    """The fully labelled pipeline: Tables 1 and 2."""
    jobs = {}
    for run in range(study.runs):
        split = study.split(run)
        jobs[f"full-run{run}"] = _job("full", run, study.settings.training, split.names("train"), _held_out(split))
    return jobs


def age(study: Study) -> Jobs:
    """AgeU-Net beside the U-Net on the same newborns with the same seeds."""
    training = study.settings.training
    training = replace(training, network=replace(training.network, age_head=True))
    jobs = baseline(study)
    for run in range(study.runs):
        split = study.split(run)
        jobs[f"age-run{run}"] = _job("age", run, training, split.names("train"), _held_out(split))
    return jobs


def budget(study: Study) -> Jobs:
    """A third of the slices of three times the scans, along four choices of axis, beside full labels: Table 3."""
    settings, jobs = study.settings, baseline(study)
    design, training = settings.budget, settings.training
    for run in range(study.runs):
        split = study.split(run)
        held_out, drawn = _held_out(split), budget_scans(study, split, run)
        for condition, axis, selection in sparse_conditions(settings):
            slices = {"axis": axis, "percent": design.percent, "selection": selection, "seed": training.seed + run}
            jobs[f"{condition}-run{run}"] = _job(condition, run, training, drawn, held_out, slices=slices)
        full = drawn[: design.scans]
        # As many steps as the sparse conditions: passes over fewer scans are shorter, so there are more of them.
        passes = -(-training.epochs * steps(drawn, training) // steps(full, training))
        for condition, epochs in (("budget-full", design.full_epochs), ("budget-full-iterations", passes)):
            jobs[f"{condition}-run{run}"] = _job(condition, run, epochs_of(training, epochs), full, held_out)
    return jobs


def sparse_conditions(settings: ExperimentSettings) -> list[tuple[str, str, str]]:
    """(condition, axis, selection) of the budget's sparse conditions."""
    design = settings.budget
    rows = [(f"budget-{axis}", axis, design.selection) for axis in ("random", *AXES)]
    if design.selection == "random":
        rows += [(f"budget-{axis}-equidistant", axis, "equidistant") for axis in design.equidistant]
    return rows


def budget_scans(study: Study, split: Split, run: int) -> list[str]:
    """The sparse conditions' scans; the base line's come first, so that its fully labelled ones are among them."""
    design, random = study.settings.budget, np.random.default_rng([study.settings.split.seed, run])
    names = [str(n) for side in ("train", "more") for n in random.permutation(split.names(side))]
    if len(names) < (many := design.scans * design.times):
        raise NeonatalSegError(
            f"The budget experiment needs {many} training scans ({design.times} x {design.scans}), there are "
            f"{len(names)} in run {run}: ask for fewer fully labelled scans, or give a split with a side 'more'."
        )
    return names[:many]


def transfer(study: Study) -> Jobs:
    """From older to younger newborns with six strategies; what is lost on the older ones stands beside it."""
    design, training, jobs = study.settings.transfer, study.settings.training, {}
    young = replace(training, learning_rate=design.learning_rate)
    for run in range(study.runs):
        sides = study.transfer(run)
        source, target = sides.names("source"), sides.names("target-train")
        held_out = {"target": list(sides.names("target-test")), "source": list(sides.names("source-test"))}
        start = f"transfer-source-run{run}"
        jobs[start] = _job("transfer-source", run, epochs_of(training, design.source_epochs), source, held_out)
        for strategy in STRATEGIES:
            scratch = strategy == "scratch"
            jobs[f"transfer-{strategy}-run{run}"] = _job(
                f"transfer-{strategy}",
                run,
                epochs_of(young, design.scratch_epochs if scratch else design.epochs),
                target,
                held_out,
                start=None if scratch else start,
                strategy=strategy,
            )
    return jobs


def heads(study: Study) -> Jobs:
    """The base line with the two ways to weigh the outputs' losses, both with the paper's optimiser."""
    sgd = replace(study.settings.training, optimizer="sgd", learning_rate=1e-2, weight_decay=3e-5)
    jobs = {}
    for run in range(study.runs):
        split = study.split(run)
        for weights in ("sum", "mean"):
            training = replace(sgd, head_weights=weights)
            jobs[f"heads-{weights}-run{run}"] = _job(
                f"heads-{weights}", run, training, split.names("train"), _held_out(split)
            )
    return jobs


JOBS: Mapping[str, Callable[[Study], Jobs]] = {
    "baseline": baseline,
    "age": age,
    "budget": budget,
    "transfer": transfer,
    "heads": heads,
}


def names_in(jobs: Mapping[str, Job]) -> set[str]:
    """The scans that jobs train on or evaluate: those that have to be prepared."""
    return {n for job in jobs.values() for names in (job["train"], *job["evaluate"].values()) for n in names}


def without(jobs: Jobs, names: set[str]) -> Jobs:
    """The jobs without some scans, as if these had not been on their sides; an epoch stays a pass over the rest."""
    return {key: _without(job, names) for key, job in jobs.items()} if names else jobs


def _without(job: Job, names: set[str]) -> Job:
    train = [n for n in job["train"] if n not in names]
    if not train:
        raise NeonatalSegError(f"{job['condition']}, run {job['run']}: every scan to train on was left out.")
    evaluate = {side: [n for n in held if n not in names] for side, held in job["evaluate"].items()}
    per_epoch = -(-len(train) // job["training"]["batch_size"])
    return {**job, "train": train, "evaluate": evaluate, "training": {**job["training"], "steps_per_epoch": per_epoch}}


def same_runs(jobs: Mapping[str, Job]) -> dict[str, str]:
    """The key under which each job is run: that of the first which trains and evaluates the same."""
    first: dict[str, str] = {}
    same = {}
    for key, job in jobs.items():
        content = {k: v for k, v in job.items() if k != "condition"}
        same[key] = first.setdefault(json.dumps(content, sort_keys=True), key)
    return same


def steps(train: Sequence[str], training: TrainingSettings) -> int:
    """Steps of one epoch: a pass over the scans."""
    return -(-len(train) // training.batch_size)


def _job(
    condition: str,
    run: int,
    training: TrainingSettings,
    train: Sequence[str],
    evaluate: Mapping[str, Sequence[str]],
    *,
    slices: Mapping[str, Any] | None = None,
    start: str | None = None,
    strategy: str | None = None,
) -> Job:
    # Nobody is validated while it trains: all epochs are trained, and the validation newborns choose nothing.
    settings = replace(
        training,
        seed=training.seed + run,
        validation=(),
        test=(),
        phantoms=0,
        in_turn=True,
        steps_per_epoch=steps(train, training),
        validate_every=training.epochs,
    )
    return {
        "condition": condition,
        "run": run,
        "train": sorted(train),
        "evaluate": {side: list(names) for side, names in evaluate.items()},
        "training": settings.to_json(),
        "slices": slices,
        "start": start,
        "strategy": strategy,
    }


def _held_out(split: Split) -> dict[str, list[str]]:
    return {side: list(split.names(side)) for side in ("validation", "test")}
