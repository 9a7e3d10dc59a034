"""Equations 1-3 of the paper, and the network that they train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss as MonaiDiceCELoss

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.losses import DeepSupervisionLoss, DiceCELoss, shrink_labels
from NeonatalSegLib.networks.network import PRESETS, NetworkSettings, build_network, parameter_count

TINY = NetworkSettings((4, 8, 8, 12), 1.0, (16, 24, 32), heads=2)


def reference_loss(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> float:
    """Equations 1 and 2 in float64, voxel by voxel, sums over one sample, mean over samples."""
    losses, ce = [], []
    for n in range(len(logits)):
        classes = logits.shape[1]
        overlap, u_sum, v_sum = np.zeros(classes), np.zeros(classes), np.zeros(classes)
        for i in np.ndindex(*labels.shape[1:]):
            if not mask[(n, *i)]:
                continue
            z = logits[(n, slice(None), *i)].astype(np.float64)
            u = np.exp(z - z.max())
            u /= u.sum()
            k = labels[(n, *i)]
            overlap[k] += u[k]
            u_sum += u
            v_sum[k] += 1
            ce.append(-np.log(u[k]))
        losses.append(-2 / classes * sum(o / (u + v) for o, u, v in zip(overlap, u_sum, v_sum, strict=True)))
    return float(np.mean(losses) + np.mean(ce))


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, 4, 5, 6, 7), generator=random)
    labels = torch.randint(0, 4, (2, 5, 6, 7), generator=random)
    mask = torch.rand((2, 5, 6, 7), generator=random) < 0.4
    return logits, labels, mask


@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_the_papers(masked: bool) -> None:
    logits, labels, mask = example()
    mask = mask if masked else torch.ones_like(mask)
    expected = reference_loss(logits.numpy(), labels.numpy(), mask.numpy())
    assert float(DiceCELoss()(logits, labels, mask)) == pytest.approx(expected, abs=1e-5)


def test_loss_agrees_with_monai_where_both_define_it() -> None:
    """Fully labelled, every class present: MONAI's value is ours plus 1 (it writes 1 - Dice)."""
    logits, labels, _ = example(1)
    monai = MonaiDiceCELoss(softmax=True, to_onehot_y=True)(logits, labels[:, None])
    assert float(DiceCELoss()(logits, labels)) == pytest.approx(float(monai) - 1, abs=1e-4)


def test_what_is_not_annotated_has_no_gradient() -> None:
    logits, labels, mask = example()
    logits.requires_grad_()
    wrong = torch.where(mask, labels, (labels + 1) % 4)
    DiceCELoss()(logits, wrong, mask).backward()
    assert logits.grad is not None
    assert not logits.grad.movedim(1, -1)[~mask].any()
    assert logits.grad.movedim(1, -1)[mask].abs().min() > 0


def test_an_empty_mask_gives_zero_and_no_gradient() -> None:
    logits, labels, mask = example()
    logits.requires_grad_()
    loss = DiceCELoss()(logits, labels, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_a_perfect_prediction_reaches_the_minimum() -> None:
    _, labels, _ = example()
    logits = 50 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    assert float(DiceCELoss()(logits, labels)) == pytest.approx(-1, abs=1e-4)


def test_deep_supervision_is_the_weighted_mean_of_equation_3() -> None:
    logits, labels, _ = example()
    labels = labels[:, :4, :6, :6]
    final, half = logits[:, :, :4, :6, :6], torch.randn(2, 4, 2, 3, 3)
    small, _ = shrink_labels(labels, None, (2, 3, 3), 4)
    expected = (1 * DiceCELoss()(final, labels) + 0.5 * DiceCELoss()(half, small)) / 1.5
    assert float(DeepSupervisionLoss()([final, half], labels)) == pytest.approx(float(expected), abs=1e-6)


def test_shrunk_labels_are_the_majority_of_what_is_annotated() -> None:
    labels = torch.tensor([[[[1, 1], [2, 2]], [[2, 3], [3, 2]]]])
    assert shrink_labels(labels, None, (1, 1, 1), 4)[0].item() == 2
    only = torch.zeros_like(labels, dtype=torch.bool)
    only[0, 1, 0, 0] = only[0, 0, 0, 0] = only[0, 0, 0, 1] = True  # labels 2, 1, 1
    small, known = shrink_labels(labels, only, (1, 1, 1), 4)
    assert small.item() == 1
    assert known is not None and known.item()


def test_one_annotated_slice_reaches_every_head() -> None:
    """With sparse slices, nearest-voxel shrinking would lose every odd slice."""
    labels = torch.ones((1, 16, 16, 16), dtype=torch.long)
    mask = torch.zeros((1, 16, 16, 16), dtype=torch.bool)
    mask[:, 7] = True
    for size in (8, 4):
        _, known = shrink_labels(labels, mask, (size,) * 3, 4)
        assert known is not None
        assert known.sum() == size * size


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_papers_sizes(name: str) -> None:
    millions = parameter_count(build_network(PRESETS[name])) / 1e6
    expected = {"paper-big": (30.5, 32.5), "paper-small": (15, 25), "laptop": (4, 6.5)}[name]  # 31.4 M in the paper
    assert expected[0] < millions < expected[1]


def test_training_outputs_halve_in_resolution_and_evaluation_gives_one() -> None:
    network = build_network(TINY)
    x = torch.randn(1, 2, 16, 24, 32)
    outputs = network.train()(x)
    assert [tuple(o.shape) for o in outputs] == [(1, 10, 16, 24, 32), (1, 10, 8, 12, 16), (1, 10, 4, 6, 8)]
    assert network.eval()(x).shape == (1, 10, 16, 24, 32)


def test_the_papers_code_sums_the_heads_and_the_default_divides() -> None:
    """With the paper's three heads the sum, and with it an SGD step, is 1.875 times the mean."""
    random = torch.Generator().manual_seed(0)
    outputs = [torch.randn((1, 10, n, n, n), generator=random) for n in (16, 8, 4, 2)]
    labels = torch.randint(0, 10, (1, 16, 16, 16), generator=random)
    summed, divided = DeepSupervisionLoss(normalised=False)(outputs, labels), DeepSupervisionLoss()(outputs, labels)
    assert float(summed / divided) == pytest.approx(1 + 0.5 + 0.25 + 0.125, rel=1e-5)


def test_every_head_learns() -> None:
    network = build_network(TINY).train()
    labels = torch.randint(0, 10, (1, 16, 24, 32))
    DeepSupervisionLoss()(network(torch.randn(1, 2, 16, 24, 32)), labels).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_a_network_can_learn_one_patch() -> None:
    torch.manual_seed(0)
    network = build_network(TINY).train()
    labels = torch.zeros((1, 16, 16, 16), dtype=torch.long)
    labels[:, 3:13, 3:13, 3:13] = 3
    labels[:, 6:10, 6:10, 6:10] = 7
    x = torch.stack([labels[0].float(), 10 - labels[0].float()])[None] + 0.1 * torch.randn(1, 2, 16, 16, 16)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        loss = DeepSupervisionLoss()(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network.eval()(x).argmax(1) == labels).float().mean() > 0.97


def test_settings_survive_json_and_refuse_nonsense() -> None:
    assert NetworkSettings.from_json(TINY.to_json()) == TINY
    with pytest.raises(NeonatalSegError, match="patch"):
        dataclasses.replace(TINY, patch=(16, 24, 33))
    with pytest.raises(NeonatalSegError, match="Unknown network setting 'depth'"):
        NetworkSettings.from_json({**TINY.to_json(), "depth": 3})
    with pytest.raises(NeonatalSegError, match="'filters' is missing"):
        NetworkSettings.from_json({"spacing_mm": 1.0, "patch": [16, 16, 16]})
