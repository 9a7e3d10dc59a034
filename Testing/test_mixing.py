"""What of a fine-tuning is kept: mixes of old and new weights, what guards the old domain, what is too little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nested_shells import QUICK, TINY, sliced, weights, whole

from NeonatalSegLib.finetuning.loop import run_finetuning
from NeonatalSegLib.finetuning.mixing import Tried, best_mix, mixed
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.tissues import UNKNOWN


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(99)
    return build_network(TINY).eval()


def test_mixing_is_linear_between_old_and_new(network: torch.nn.Module) -> None:
    torch.manual_seed(1)
    other = build_network(TINY).eval()
    half = weights(mixed(network, other, 0.25))
    for name, value in weights(network).items():
        torch.testing.assert_close(half[name], 0.75 * value + 0.25 * weights(other)[name])


def test_a_new_model_that_forgets_is_held_back(network: torch.nn.Module) -> None:
    """With a case that guards the old domain, the mix with the least harm wins over the best on the new one.

    The smaller mix is very small: so high a learning rate is chaotic, and what 0.02 costs hangs on rounding.
    """
    strong = {**vars(QUICK), "learning_rate": 2e-2, "ema": 0.8}
    learned = run_finetuning(network, TINY, [whole("old")], FineTuningSettings(**{**strong, "steps": 250})).network
    case = sliced()
    inverted = SparseCase("new", -case.image, case.labels, case.held_out)
    settings = FineTuningSettings(**{**strong, "steps": 100, "mixes": (0.005, 1.0)})
    free = run_finetuning(learned, TINY, [inverted], settings)
    guarded = run_finetuning(learned, TINY, [inverted], settings, rehearsal=[whole("old"), whole("guard", seed=1)])
    assert free.mix == 1.0 and guarded.mix == 0.005
    assert guarded.source_before is not None and guarded.source_after is not None
    assert guarded.source_after > guarded.source_before - 0.01


def test_with_drawings_what_is_left_of_the_old_model_is_estimated(network: torch.nn.Module) -> None:
    strong = FineTuningSettings(**{**vars(QUICK), "learning_rate": 5e-2, "steps": 3})
    done = run_finetuning(network, TINY, [sliced()], strong, rehearsal=[whole("a"), whole("b", seed=1)], drawn=True)
    assert done.source_before == 1.0 and done.source_after is not None and done.source_after < 1.0


def test_where_every_mix_forgets_the_one_that_forgets_least_is_taken(network: torch.nn.Module) -> None:
    dsc = np.zeros(10)
    little, much = Tried(True, 0.6, 0.3, dsc, 0.8, network), Tried(True, 0.9, 1.0, dsc, 0.79, network)
    assert best_mix([little, much]).mix == 1.0  # neither forgets: the better one
    assert best_mix([little, much._replace(safe=False)]).mix == 0.3
    assert best_mix([little._replace(safe=False), much._replace(safe=False)]).mix == 0.3


def test_a_scan_whose_slices_are_all_held_out_judges_and_teaches_nothing(network: torch.nn.Module) -> None:
    cases = [sliced("a", evaluated=()), sliced("b", learn=(), evaluated=(10, 12))]
    done = run_finetuning(network, TINY, cases, QUICK)
    assert len(done.history) == QUICK.steps and np.isfinite(done.after).any()


def test_rehearsal_tells_apart_what_the_annotation_merges(network: torch.nn.Module) -> None:
    """The rehearsed cases' labels are whole: their classes 8 and 9 are taught as such, not as impossible."""
    settings = FineTuningSettings(**{**vars(QUICK), "steps": 12, "rehearsal": 0.9, "merged": ((6, 8), (7, 9))})
    done = run_finetuning(network, TINY, [sliced()], settings, rehearsal=[whole("old")])
    assert max(loss for _, loss, _ in done.history) < 10


def test_held_out_slices_without_a_tissue_do_not_judge(network: torch.nn.Module) -> None:
    case = sliced()
    air = np.full(case.labels.shape, UNKNOWN, np.uint8)
    air[0] = 0
    done = run_finetuning(network, TINY, [SparseCase("a", case.image, case.labels, air)], QUICK)
    assert any("not evaluated" in warning for warning in done.warnings)


def test_few_slices_are_all_learned_from_and_that_is_told(network: torch.nn.Module) -> None:
    done = run_finetuning(
        network, TINY, [sliced(evaluated=())], FineTuningSettings(**{**vars(QUICK), "mixes": (0.5, 1.0)})
    )
    assert np.isnan(done.before).all() and np.isnan(done.after).all()
    assert any("not evaluated" in warning for warning in done.warnings)
    assert all(held is None for _, _, held in done.history)


@pytest.mark.parametrize(("keep", "judged"), [("scanner", {0.3, 0.4, 0.5}), ("everything", {0.1, 0.2, 0.3})])
def test_without_a_guard_little_is_risked_and_that_is_told(
    network: torch.nn.Module, keep: str, judged: set[float]
) -> None:
    """Three of many mixes are judged: the largest, or where other scans count as well the smallest."""
    told: list[tuple[int, int]] = []

    def report(stage: str, _: float, facts: Mapping[str, Any]) -> None:
        if stage == "choose" and facts:
            told.append((facts["mix"], facts["mixes"]))

    settings = FineTuningSettings(**{**vars(QUICK), "keep": keep, "mixes": (0.5, 0.1, 0.4, 0.2, 0.3)})
    done = run_finetuning(network, TINY, [sliced()], settings, report=report)
    assert told == [(1, 3), (2, 3), (3, 3)] and done.mix in judged
    assert any("could not be estimated" in warning for warning in done.warnings) == (keep == "everything")


@pytest.mark.parametrize(("count", "judged"), [(4, {0.5}), (5, {0.1, 0.5, 1.0})])
def test_few_held_out_slices_do_not_choose_the_share(network: torch.nn.Module, count: int, judged: set[float]) -> None:
    case = sliced(evaluated=(12, 13, 15, 16, 17)[:count])
    size = case.labels.shape
    boxes = tuple((slice(z, z + 1), slice(0, size[1]), slice(0, size[2])) for z in (12, 13, 15, 16, 17)[:count])
    settings = FineTuningSettings(**{**vars(QUICK), "keep": "scanner", "mixes": (1.0, 0.1, 0.5)})
    told: list[int] = []

    def report(stage: str, _: float, facts: Mapping[str, Any]) -> None:
        if stage == "choose" and facts:
            told.append(facts["mixes"])

    done = run_finetuning(network, TINY, [replace(case, boxes=boxes)], settings, report=report)
    assert told == [len(judged)] * len(judged) and done.mix in judged


def test_of_the_mixes_that_the_guard_allows_the_largest_are_judged(network: torch.nn.Module) -> None:
    """Nothing is learned, so that nothing is lost: all are allowed."""
    still = {**vars(QUICK), "learning_rate": 0.0, "mixes": (0.1, 0.2, 0.3, 0.4, 0.5)}
    guarded = run_finetuning(
        network, TINY, [sliced()], FineTuningSettings(**still), rehearsal=[whole("a"), whole("b", seed=1)]
    )
    assert guarded.mix == 0.5 and not any("estimated" in warning for warning in guarded.warnings)
