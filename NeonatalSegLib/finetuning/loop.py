"""Fine-tuning on arrays: a network, cases of which some slices are known, a strategy; minutes on one machine.

The loop is plain torch: it runs inside Slicer, where torch, MONAI, numpy and SimpleITK are all there is. Files, models
and Slicer are met in ``finetuning/run.py``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from NeonatalSegLib.errors import NeonatalSegError, is_out_of_memory
from NeonatalSegLib.finetuning.batches import Batches, loss_of_batch
from NeonatalSegLib.finetuning.guard import agreement, kept, painted_guard
from NeonatalSegLib.finetuning.mixing import Tried, best_mix, evaluate, middle, mixed, score_of
from NeonatalSegLib.finetuning.pace import Pace
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, central_part
from NeonatalSegLib.finetuning.teacher import label_the_rest
from NeonatalSegLib.networks.cpu_form import faster_on_cpu
from NeonatalSegLib.networks.losses import DeepSupervisionLoss
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.strategies import Selection, trainable_parameters
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, UNKNOWN

SHARE_FOR_TRAINING = 0.9  # of the user's minutes; the rest prepares the scans and writes the model
TEACH_FROM, TEACH_EVERY = (
    0.5,
    0.25,
)  # shares of the training: before the half the teacher knows no more than the old model
MOST_JUDGED = 3  # mixes of old and new weights, on the held-out slices
# Held-out slices from which on they choose how much is taken of the new weights "for scans like these". Two of them
# chose worse than nobody: over 20 fine-tunings +0.046 on other scans, +0.049 with the middle share in all
# (docs/label-budget.md).
ENOUGH_TO_CHOOSE = 5
UNGUARDED = (
    "What the new model loses on scans like those of its first training could not be estimated: compare both models on "
    "such scans before you use it for them."
)
SOURCE_TOLERANCE = 0.01  # mean DSC that a new model may lose on the case that guards the old domain


@dataclass
class FineTuningResult:
    """What a fine-tuning gave.

    Attributes:
        network: on the CPU, evaluation mode.
        selection: which parameters were trained.
        before, after: DSC of each of the ten classes [10] on the held-out slices, NaN where not measured.
        source_before, source_after: mean DSC on the case that guards the old domain, or None; with drawings, what is
            estimated to be left of it, of 1.
        mix: share of the new weights in the result; 0 where the old model was kept.
        history: (step, loss, mean DSC on the held-out slices or None).
        stopped_early: the user stopped it; the best so far was kept.
        device: another than asked for, where memory ran out; else None.
    """

    network: nn.Module
    selection: Selection
    before: np.ndarray
    after: np.ndarray
    source_before: float | None
    source_after: float | None
    mix: float
    history: list[tuple[int, float, float | None]]
    stopped_early: bool
    seconds: float
    warnings: list[str]
    device: torch.device | None = None


# (stage, fraction of the whole, further facts: step, steps, loss, held_out_dsc)
Report = Callable[[str, float, Mapping[str, Any]], None]


def run_finetuning(
    network: nn.Module,
    shape: NetworkSettings,
    cases: Sequence[SparseCase],
    settings: FineTuningSettings,
    *,
    rehearsal: Sequence[SparseCase] = (),
    drawn: bool = False,
    before: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FineTuningResult:
    """Fine-tune a network on annotated slices.

    Args:
        network: the old model; left as it is.
        shape: how it is built.
        cases: annotated scans.
        rehearsal: fully labelled cases of the old domain (labels in ``SparseCase.labels``). The last of two or more
            is not learned from: it guards against forgetting when old and new weights are mixed.
        drawn: these are drawings, whose truth guards nothing (see ``finetuning/guard.py``): the guard is then the
            agreement with the old model on a painting of the first annotated scan.
        before: the old model's DSC [10] on the held-out slices, where it is known already.
        report: told of every step; what it raises ends the run without a result.
        should_stop: asked before every step; True keeps the best so far.

    Raises:
        NeonatalSegError: the slices to learn from hold fewer than two classes, or memory does not suffice.
    """
    _check(cases, settings)
    device = torch.device(device)
    patches = _patch_sizes(settings.patch or shape.patch, shape.stride)
    attempts = [(device, p) for p in patches] + ([(torch.device("cpu"), patches[0])] if device.type != "cpu" else [])
    for number, (where, patch) in enumerate(attempts):
        run = None
        try:
            run = FineTuningRun(
                network,
                shape,
                cases,
                replace(settings, patch=patch),
                rehearsal=rehearsal,
                drawn=drawn,
                before=before,
                device=where,
                report=report,
                should_stop=should_stop,
            )
            adapted = run.go()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            del run
            if where.type == "cuda":
                torch.cuda.empty_cache()
            continue
        if number:
            adapted.warnings.append(f"Memory ran out: trained with patches of {patch[0]} voxels on {where.type}.")
            adapted.device = where
        return adapted
    raise NeonatalSegError("There is too little memory to fine-tune this model, even with small patches.")


class FineTuningRun:
    """One attempt."""

    def __init__(
        self,
        old: nn.Module,
        shape: NetworkSettings,
        cases: Sequence[SparseCase],
        settings: FineTuningSettings,
        *,
        rehearsal: Sequence[SparseCase],
        drawn: bool = False,
        before: np.ndarray | None,
        device: torch.device,
        report: Report | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.shape, self.settings, self.device = shape, settings, device
        self.cases = [replace(case, labels=case.labels.copy()) for case in cases]  # the teacher writes into them
        self.old = copy.deepcopy(old).to(device).eval()
        self.guard: SparseCase | None = None
        self.drawn = drawn
        if len(rehearsal) > 1 and drawn:
            self.guard = painted_guard(self.old, shape, cases[0], rehearsal[-1], device)
        elif len(rehearsal) > 1:  # one window of it: it is evaluated often
            middle = central_part(rehearsal[-1], shape.patch)
            self.guard = SparseCase(middle.name, middle.image, middle.labels, middle.labels)
        self.rehearsal = rehearsal[:-1] if len(rehearsal) > 1 else rehearsal
        self.before, self.report, self.should_stop = before, report, should_stop
        self.started, self.scoring_seconds = time.perf_counter(), 0.0
        self.history: list[tuple[int, float, float | None]] = []
        self.warnings: list[str] = []
        torch.manual_seed(settings.seed)
        fresh = build_network(shape) if settings.strategy == "scratch" else copy.deepcopy(old)
        self.network = faster_on_cpu(fresh.to(device), device)
        self.selection = trainable_parameters(self.network, shape, settings.strategy)
        tissues = [t.index for t in PHYSIOLOGICAL]  # without one of them there is nothing to score
        self.evaluated = any(np.isin(case.held_out, tissues).any() for case in cases)

    def go(self) -> FineTuningResult:
        self.report_stage("measure before", 0.0)
        began = time.perf_counter()
        before = self.evaluate(self.old) if self.before is None else self.before
        source_before = self.evaluate_guard(self.old)
        self.scoring_seconds = time.perf_counter() - began
        if self.settings.strategy == "none":
            return self.result(
                self.old,
                before=before,
                after=before,
                source_before=source_before,
                source_after=source_before,
                mix=0.0,
                stopped=False,
            )
        new, stopped = self.train()
        self.report_stage("choose", 0.92)
        network, mix, after, source_after = self.choose(new, before, source_before)
        self.report_stage("done", 1.0)
        return self.result(
            network,
            before=before,
            after=after,
            source_before=source_before,
            source_after=source_after,
            mix=mix,
            stopped=stopped,
        )

    def train(self) -> tuple[nn.Module, bool]:
        """The running mean of the weights at its best judgement, and whether the user stopped."""
        s = self.settings
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, s.learning_rate, weight_decay=s.weight_decay)
        pace = Pace(s.steps, self.seconds_for_training())
        mean = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(s.ema))
        loss_of = DeepSupervisionLoss()
        best, best_score, stopped = None, -1.0, False
        self.network.train()
        with Batches(self.cases, self.rehearsal, s, self.device) as batches:
            while not pace.over and not stopped:
                if stopped := self.should_stop():
                    break
                loss = loss_of_batch(self.network, self.old, loss_of, batches.take(), s)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 12.0)
                for group in optimizer.param_groups:
                    group["lr"] = s.learning_rate * pace.learning_rate(s.warm_up)
                optimizer.step()
                pace.step_done()
                mean.update_parameters(self.network)
                self.teach(pace, mean.module, batches)
                if (held := self.judge(pace, mean.module)) is not None and held > best_score:
                    best, best_score = copy.deepcopy(mean.module), held
                self.history.append((pace.done, float(loss.detach()), held))
                self.report_step(pace)
        if stopped and self.evaluated and self.history and self.history[-1][2] is None:
            held = self.score(mean.module)
            best = copy.deepcopy(mean.module) if held > best_score else best
        return (best or mean.module).eval(), stopped

    def report_step(self, pace: Pace) -> None:
        """Tell of the step that was just done."""
        step, loss, held = self.history[-1]
        left = self.scoring_seconds * min(MOST_JUDGED, len(self.settings.mixes))
        facts = {"step": step, "steps": pace.steps, "loss": loss, "held_out_dsc": held, "choosing_seconds": left}
        self.report_stage("train", 0.05 + 0.85 * pace.share, **facts)

    def seconds_for_training(self) -> float | None:
        """What is left of the user's minutes when the last judgements are taken off; None where there is no limit."""
        if self.settings.minutes is None:
            return None
        gone = time.perf_counter() - self.started
        return SHARE_FOR_TRAINING * 60 * self.settings.minutes - gone - self.scoring_seconds * MOST_JUDGED

    def judge(self, pace: Pace, mean: nn.Module) -> float | None:
        """Mean DSC on the held-out slices, where it is time for it."""
        every = self.settings.judge_every
        return self.score(mean) if self.evaluated and every and pace.passed(every) else None

    def score(self, mean: nn.Module) -> float:
        """Mean DSC on the held-out slices of the weights so far in the middle one of the mixes with the old ones.

        While the learning rate is high the new weights alone are no good: of one scan they had 0.55 after 100 steps,
        0.7 of them 0.81, the old model 0.67 (docs/label-budget.md).
        """
        share = 1.0 if self.settings.strategy == "scratch" else middle(self.settings.mixes)
        return score_of(self.evaluate(mixed(self.old, mean, share)))

    def teach(self, pace: Pace, mean: nn.Module, batches: Batches) -> None:
        """Where it is time for it, label the rest of the annotated scans by the running mean of the weights."""
        due = pace.passed(TEACH_EVERY) and TEACH_FROM - 1e-9 <= pace.share < 1 - 1e-9
        if self.settings.teacher and due:
            batches.settle()
            for case in self.cases:
                label_the_rest(case, mean, self.shape, self.settings.certain, self.settings.merged, self.device)

    def choose(
        self, new: nn.Module, before: np.ndarray, source_before: float | None
    ) -> tuple[nn.Module, float, np.ndarray, float | None]:
        """Mix old and new weights: the best on the held-out slices that keeps the old domain within its tolerance."""
        mixes = (1.0,) if self.settings.strategy == "scratch" else self.settings.mixes
        if self.settings.keep == "scanner" and 0 < sum(len(case.boxes) for case in self.cases) < ENOUGH_TO_CHOOSE:
            mixes = (middle(mixes),)
        candidates = self.worth_judging(new, mixes, source_before)
        if not self.evaluated:
            safe, mix, guard, network = candidates[len(candidates) // 2]
            self.warnings.append(
                "Too few slices to hold any out: the new model was not evaluated, and its weights are a mix of "
                f"{100 * mix:.0f} % new and {100 - 100 * mix:.0f} % old."
            )
            self.warn_of_forgetting(safe)
            return network, mix, np.full(NUMBER_OF_CLASSES, np.nan), guard
        tried = []
        for number, (safe, mix, guard, network) in enumerate(candidates):
            left = self.scoring_seconds * (len(candidates) - number)
            facts = {"mix": number + 1, "mixes": len(candidates), "choosing_seconds": left}
            self.report_stage("choose", 0.92 + 0.07 * number / len(candidates), **facts)
            score = self.evaluate(network)
            tried.append(Tried(safe, score_of(score), mix, score, guard, network))
        best = best_mix(tried)
        if best.score < score_of(before):
            self.warnings.append("The new model is worse than the old one on the held-out slices: discard it.")
        self.warn_of_forgetting(best.safe)
        return best.network, best.mix, best.per_class, best.guard

    def warn_of_forgetting(self, safe: bool) -> None:
        if not safe:
            self.warnings.append(
                f"The new model is estimated to lose more than {SOURCE_TOLERANCE} of mean DSC on scans like those of "
                "its first training, at every mix that was tried."
            )

    def worth_judging(
        self, new: nn.Module, mixes: Sequence[float], source_before: float | None
    ) -> list[tuple[bool, float, float | None, nn.Module]]:
        """(safe, mix, guard, network) of the largest mixes that keep the old domain; where none does, of the safest.

        The guard costs a small part of a judgement on held-out slices, so that it goes first. Without a guard nobody
        knows which mixes keep it: the smallest are taken, where it is to be kept.
        """
        found = []
        for mix in sorted(mixes):
            network = mixed(self.old, new, mix)
            guard = self.evaluate_guard(network)
            lost = None if guard is None or source_before is None else source_before - guard
            forgets = self.settings.keep == "everything" and lost is not None and lost > SOURCE_TOLERANCE
            found.append((not forgets, mix, guard, network))
        if self.guard is None and self.settings.keep == "everything":
            self.warnings.append(UNGUARDED)
            return found[:MOST_JUDGED]
        safe = [entry for entry in found if entry[0]]
        return safe[-MOST_JUDGED:] or [max(found, key=lambda entry: entry[2] or 0.0)]

    def evaluate(self, network: nn.Module) -> np.ndarray:
        """DSC [10] on the held-out slices of all cases together."""
        return evaluate(network, self.shape, self.cases, self.settings.merged, self.device)

    def evaluate_guard(self, network: nn.Module) -> float | None:
        if self.guard is None:
            return None
        if self.drawn:
            return kept(agreement(network, self.guard, self.shape, self.device))
        return score_of(evaluate(network, self.shape, [self.guard], (), self.device))

    def report_stage(self, stage: str, fraction: float, **facts: Any) -> None:
        if self.report is not None:
            self.report(stage, fraction, facts)

    def result(
        self,
        network: nn.Module,
        *,
        before: np.ndarray,
        after: np.ndarray,
        source_before: float | None,
        source_after: float | None,
        mix: float,
        stopped: bool,
    ) -> FineTuningResult:
        return FineTuningResult(
            network=network.cpu().eval(),
            selection=self.selection,
            before=before,
            after=after,
            source_before=source_before,
            source_after=source_after,
            mix=mix,
            history=self.history,
            stopped_early=stopped,
            seconds=time.perf_counter() - self.started,
            warnings=self.warnings,
        )


def _check(cases: Sequence[SparseCase], settings: FineTuningSettings) -> None:
    known = np.unique(np.concatenate([np.unique(case.labels) for case in cases])) if cases else np.array([])
    classes = [int(c) for c in known if c != UNKNOWN]
    if not classes:
        raise NeonatalSegError("No annotated slice is left to learn from: complete more slices.")
    if len(classes) == 1 and settings.strategy != "none":
        raise NeonatalSegError(
            f"All annotated slices hold one class only ({classes[0]}): nothing can be learned from them. Annotate "
            "slices that cut through the brain."
        )


def _patch_sizes(patch: tuple[int, int, int], stride: int) -> list[tuple[int, int, int]]:
    """The patch wanted, then two thirds and one third of it, for when memory runs out."""
    sizes = [tuple(max(2 * stride, p * share // 3 // stride * stride) for p in patch) for share in (3, 2, 1)]
    return list(dict.fromkeys(sizes))  # type: ignore[arg-type]
