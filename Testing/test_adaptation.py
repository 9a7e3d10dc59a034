"""Fine-tuning on arrays: what each strategy trains, what is learned from, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from nested_shells import QUICK, STILL, TINY, shells, sliced, weights, whole

from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.finetuning.loop import FineTuningRun, run_finetuning
from NeonatalSegLib.finetuning.mixing import HELD_OUT_OVERLAP, evaluate, mean_tissue_dsc, score_of
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, SparsePatches, annotated_on
from NeonatalSegLib.networks.losses import DiceCELoss, merge_classes
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.strategies import STRATEGIES, blocks, trainable_parameters
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.tissues import UNKNOWN


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(99)
    return build_network(TINY).eval()


# Strategies


def test_the_papers_network_trains_the_blocks_that_the_paper_names() -> None:
    """Six levels: bottleneck and neighbours; two blocks more; four more: all but first, last up-sampling and output."""
    settings = NetworkSettings((2, 2, 2, 2, 2, 2), 1.0, (64, 64, 64), heads=2)
    network = build_network(settings)
    order, bottleneck, heads = blocks(network, settings)
    assert len(order) == 12 and bottleneck == 5 and len(heads) == 2
    trained = {}
    for strategy in STRATEGIES:
        trainable_parameters(network, settings, strategy)
        trained[strategy] = [p for p, b in enumerate(order) if all(q.requires_grad for q in b.parameters())]
        head_trains = [q.requires_grad for head in heads for q in head.parameters()]
        assert all(head_trains) if strategy != "none" else not any(head_trains)
    assert trained["none"] == []
    assert trained["shallow"] == [4, 5, 6]
    assert trained["medium"] == [3, 4, 5, 6, 7]
    assert trained["deep"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert trained["full"] == trained["scratch"] == list(range(12))


def test_the_count_is_that_of_the_parameters_which_change(network: torch.nn.Module) -> None:
    for strategy in ("shallow", "medium", "deep", "full"):
        before = weights(network)
        done = run_finetuning(network, TINY, [sliced()], FineTuningSettings(**{**vars(QUICK), "strategy": strategy}))
        after = weights(done.network)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed <= done.selection.names
        assert sum(before[name].numel() for name in changed) >= 0.95 * done.selection.trained  # a bias may stand still
        assert done.selection.total == sum(value.numel() for value in before.values())


def test_the_old_network_is_left_as_it_was(network: torch.nn.Module) -> None:
    before, flags = weights(network), [p.requires_grad for p in network.parameters()]
    run_finetuning(network, TINY, [sliced()], QUICK)
    assert all(torch.equal(before[name], value) for name, value in weights(network).items())
    assert [p.requires_grad for p in network.parameters()] == flags and not network.training


def test_none_changes_nothing_and_scratch_forgets_everything(network: torch.nn.Module) -> None:
    none = run_finetuning(network, TINY, [sliced()], FineTuningSettings(**{**vars(QUICK), "strategy": "none"}))
    assert none.history == [] and none.mix == 0
    assert all(torch.equal(weights(network)[name], value) for name, value in weights(none.network).items())
    still = FineTuningSettings(**{**vars(QUICK), "strategy": "scratch", "learning_rate": 0.0, "weight_decay": 0.0})
    scratch = run_finetuning(network, TINY, [sliced()], still)
    assert scratch.mix == 1.0
    kernels = [name for name, value in weights(network).items() if value.ndim == 5]
    assert not any(torch.equal(weights(network)[name], weights(scratch.network)[name]) for name in kernels)


def test_an_unknown_strategy_is_told_with_the_known_ones() -> None:
    with pytest.raises(NeonatalSegError, match="shallow, medium, deep, full, scratch"):
        FineTuningSettings(strategy="everything")


# What is learned from


def test_labels_that_nobody_gave_do_not_matter(network: torch.nn.Module) -> None:
    """The same annotated slices in two different truths give the same weights."""
    case, (image, labels) = sliced(), shells()
    given = np.zeros(labels.shape, bool)
    given[[6, 10, 14]] = True
    other = np.where(given, labels, (labels + 3) % 10).astype(np.uint8)
    grid = Grid(labels.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    one, two = (
        run_finetuning(
            network, TINY, [SparseCase("a", image, annotated_on(grid, grid, truth, given), case.held_out)], QUICK
        )
        for truth in (labels, other)
    )
    assert all(torch.equal(weights(one.network)[name], value) for name, value in weights(two.network).items())


def test_every_patch_shows_annotated_voxels_and_invents_none() -> None:
    case = sliced(evaluated=())
    patches = SparsePatches([case], [], 0.0, (16, 16, 16), STILL, seed=3)
    for number in range(20):
        drawn, labels = patches.draw(number)
        known = (labels != UNKNOWN).numpy()
        assert known.any()
        planes = np.unique(np.nonzero(known)[0])
        assert set(np.diff(planes)) <= {4} and known.sum(0).max() <= 3
        told = np.linspace(-1.5, 1.5, 10)[labels.numpy()[known]]  # what the shells' image is there, up to its noise
        assert np.abs(drawn[0].numpy()[known] - told).max() < 0.33
        again, same = patches.draw(number)
        assert torch.equal(drawn, again) and torch.equal(labels, same)


def test_patches_from_beyond_the_border_are_unknown() -> None:
    image, labels = shells(side=8)
    patches = SparsePatches([SparseCase("a", image, labels, labels)], [], 0, (16, 16, 16), STILL, seed=0)
    _, drawn = patches.draw(0)
    assert int((drawn != UNKNOWN).sum()) == 8**3


def test_rehearsal_takes_its_share() -> None:
    case = sliced()
    past = SparseCase("past", np.full_like(case.image, 7.0), whole("w").labels, whole("w").held_out)
    patches = SparsePatches([case], [past], 0.3, (8, 8, 8), STILL, seed=0)
    share = np.mean([float(patches.draw(i)[0].min()) == 7.0 for i in range(200)])
    assert 0.2 < share < 0.4


def test_fine_tuning_helps_on_slices_that_it_never_saw(network: torch.nn.Module) -> None:
    settings = FineTuningSettings(**{**vars(QUICK), "steps": 160, "learning_rate": 2e-2, "ema": 0.8})
    done = run_finetuning(network, TINY, [sliced()], settings)
    before, after = mean_tissue_dsc(done.before), mean_tissue_dsc(done.after)
    assert before is not None and after is not None and after > before + 0.1
    assert [step for step, _, held in done.history if held is not None] == [32, 64, 96, 128, 160]


def test_a_network_without_deep_supervision_is_fine_tuned_as_well() -> None:
    shape = NetworkSettings((4, 6, 8), 2.0, (16, 16, 16), heads=0)
    done = run_finetuning(build_network(shape), shape, [sliced()], QUICK)
    assert len(done.history) == QUICK.steps


def test_while_it_trains_a_mix_with_the_old_weights_is_judged(network: torch.nn.Module) -> None:
    """The new weights alone are no good while the learning rate is high, and Stop would have nothing to keep."""
    torch.manual_seed(3)
    wild = build_network(TINY).eval()
    run = FineTuningRun(
        network, TINY, [sliced()], FineTuningSettings(**{**vars(QUICK), "mixes": (1e-6, 2e-6, 1.0)}), rehearsal=[],
        before=None, device=torch.device("cpu"), report=None, should_stop=lambda: False,
    )  # fmt: skip
    old, new = (score_of(run.evaluate(one)) for one in (network, wild))
    assert abs(run.score(wild) - old) < 1e-3 < abs(new - old)


def test_the_result_is_judged_on_held_out_slices_alone(network: torch.nn.Module) -> None:
    """The figure is that of the returned network on the held-out voxels, counted by hand."""
    case = sliced()
    done = run_finetuning(network, TINY, [case], QUICK)
    known = case.held_out != UNKNOWN
    windows = predict_windows(done.network, torch.from_numpy(case.image), TINY, overlap=HELD_OUT_OVERLAP)
    found = windows.argmax(0).numpy().astype(np.uint8)
    np.testing.assert_allclose(done.after, dice_per_class(found[known], case.held_out[known]), equal_nan=True)
    assert np.isnan(evaluate(network, TINY, [whole("nothing held out")])).all()


# Merged classes


def test_merged_classes_have_the_probability_of_both() -> None:
    logits = torch.randn(2, 10, 3, 3, 3)
    together = torch.softmax(merge_classes(logits, [(6, 8), (7, 9)]), 1)
    apart = torch.softmax(logits, 1)
    torch.testing.assert_close(together[:, 6], apart[:, 6] + apart[:, 8])
    torch.testing.assert_close(together[:, 7], apart[:, 7] + apart[:, 9])
    torch.testing.assert_close(together[:, :6], apart[:, :6])
    assert float(together[:, 8:].max()) < 1e-6


def test_a_merged_label_does_not_say_which_of_its_tissues_a_voxel_is() -> None:
    """Swapping the two logits of a group leaves the loss as it is."""
    logits, labels = torch.randn(1, 10, 4, 4, 4), torch.full((1, 4, 4, 4), 6)
    swapped = logits[:, [0, 1, 2, 3, 4, 5, 8, 7, 6, 9]]
    loss = DiceCELoss()
    one, two = (loss(merge_classes(values, [(6, 8)]), labels) for values in (logits, swapped))
    torch.testing.assert_close(one, two)


def test_judging_merged_classes_counts_both_as_one(network: torch.nn.Module) -> None:
    image, labels = shells()
    merged = np.where(labels == 8, 6, labels).astype(np.uint8)
    by_ten = evaluate(network, TINY, [SparseCase("a", image, labels, labels)], [(6, 8)])
    by_nine = evaluate(network, TINY, [SparseCase("a", image, labels, merged)], [(6, 8)])
    np.testing.assert_allclose(by_ten, by_nine, equal_nan=True)
    assert np.isnan(by_nine[8])


# The end of a run


def test_stop_keeps_the_best_so_far(network: torch.nn.Module) -> None:
    steps: list[int] = []

    def report(stage: str, fraction: float, facts: Mapping[str, Any]) -> None:
        steps.extend([facts["step"]] if "step" in facts else [])

    settings = FineTuningSettings(**{**vars(QUICK), "steps": 50})
    done = run_finetuning(network, TINY, [sliced()], settings, report=report, should_stop=lambda: len(steps) >= 3)
    assert done.stopped_early and len(done.history) == 3
    assert np.isfinite(done.after).any() and not np.isnan(mean_tissue_dsc(done.after) or np.nan)


def test_the_best_judgement_is_kept_and_not_the_last(network: torch.nn.Module) -> None:
    """A learning rate that is far too high: the judgements, one a step, go up and down."""
    wild = {**vars(QUICK), "steps": 8, "learning_rate": 0.2, "judge_every": 0.125, "ema": 0.0}
    fell = []
    for seed in range(4):
        done = run_finetuning(network, TINY, [sliced()], FineTuningSettings(**{**wild, "seed": seed}))
        judged = [held for _, _, held in done.history if held is not None]
        assert len(judged) == 8 and mean_tissue_dsc(done.after) == pytest.approx(max(judged), abs=1e-6)
        fell.append(max(judged) - judged[-1])
    assert max(fell) > 0.01


def test_cancel_ends_without_a_result(network: torch.nn.Module) -> None:
    def report(stage: str, fraction: float, facts: Mapping[str, Any]) -> None:
        if facts.get("step") == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_finetuning(network, TINY, [sliced()], QUICK, report=report)


def test_too_little_memory_makes_smaller_patches() -> None:
    settings = NetworkSettings((4, 6, 8), 2.0, (24, 24, 24), heads=1)

    class Small(torch.nn.Module):
        """A network on a machine that cannot hold the gradients of a large patch."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build_network(settings)

        def forward(self, x: torch.Tensor) -> Any:
            if self.training and torch.is_grad_enabled() and x.shape[-1] > 16:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return self.inner(x)

    done = run_finetuning(Small(), settings, [sliced()], FineTuningSettings(**{**vars(QUICK), "patch": (24, 24, 24)}))
    assert len(done.history) == QUICK.steps
    assert any("16 voxels" in warning for warning in done.warnings)


def test_another_error_is_not_taken_for_a_lack_of_memory(network: torch.nn.Module) -> None:
    case = sliced()
    with pytest.raises(RuntimeError, match="channels"):
        run_finetuning(network, TINY, [SparseCase("a", case.image[:1], case.labels, case.held_out)], QUICK)


def test_one_class_teaches_nothing(network: torch.nn.Module) -> None:
    case = sliced()
    background = np.where(case.labels == UNKNOWN, UNKNOWN, 0).astype(np.uint8)
    with pytest.raises(NeonatalSegError, match="one class only"):
        run_finetuning(network, TINY, [SparseCase("a", case.image, background, case.held_out)], QUICK)


def test_no_known_voxel_is_told(network: torch.nn.Module) -> None:
    case = sliced(learn=())
    with pytest.raises(NeonatalSegError, match="No annotated slice"):
        run_finetuning(network, TINY, [case], QUICK)


def test_settings_survive_json() -> None:
    import json

    settings = FineTuningSettings("deep", steps=7, merged=((6, 8),), patch=(32, 32, 32), augmentation=STILL)
    assert FineTuningSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(NeonatalSegError, match="'step'"):
        FineTuningSettings.from_json({"step": 3})


# Slices on the network's grid


def grid(size: tuple[int, int, int], spacing: tuple[float, float, float], degrees: float = 0.0) -> Grid:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    direction = (1.0, 0.0, 0.0, 0.0, float(c), -float(s), 0.0, float(s), float(c))
    return Grid(size, spacing, (0.0, 0.0, 0.0), direction)


@pytest.mark.parametrize("spacing", [0.5, 0.86, 3.0])
def test_no_annotated_slice_is_lost_on_the_way_to_the_network(spacing: float) -> None:
    scan = grid((20, 20, round(30 / spacing)), (1.0, 1.0, spacing))
    net = grid((20, 20, 36), (0.8, 0.8, 0.8))
    for index in range(1, scan.size[2] - 1):
        labels, annotated = np.zeros(scan.shape, np.uint8), np.zeros(scan.shape, bool)
        labels[index], annotated[index] = 5, True
        if not 0 <= index * spacing <= 0.8 * 35:
            continue
        found = annotated_on(net, scan, labels, annotated)
        planes = np.unique(np.nonzero(found == 5)[0])
        assert planes.size and set(np.unique(found)) == {5, UNKNOWN}
        assert np.abs(planes * 0.8 - index * spacing).max() <= max(0.8, spacing) / 2 + 1e-6


def test_labels_arrive_where_they_are_in_space() -> None:
    """An oblique scan: each known network voxel carries the label of the scan voxel that holds its centre."""
    scan, net = grid((30, 30, 30), (1.0, 1.0, 1.0), 25.0), grid((40, 40, 40), (0.8, 0.8, 0.8))
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, scan.shape).astype(np.uint8)
    annotated = np.zeros(scan.shape, bool)
    annotated[12], annotated[:, 7] = True, True
    found = annotated_on(net, scan, labels, annotated)
    known = np.argwhere(found != UNKNOWN)
    assert len(known) > 500
    agree = 0
    for z, y, x in known:
        point = np.array([x, y, z]) * 0.8
        i, j, k = np.rint(np.linalg.inv(scan.matrix()[:3, :3]) @ point).astype(int)
        agree += bool(annotated[k, j, i]) and labels[k, j, i] == found[z, y, x]
    assert agree == len(known)
