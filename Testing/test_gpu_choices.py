"""What is chosen for a graphics card, from its facts alone; docs/speed.md names what only a card can prove."""

from __future__ import annotations

import pytest
import torch

from NeonatalSegLib.networks.gpu import (
    Card,
    attempts,
    device_to_try,
    least_bytes,
    plain_training_precision,
    precision_on,
    why_unusable,
)
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.torch_engine import card_of
from NeonatalSegLib.segmentation.segmenter import window_sizes

LAPTOP = NetworkSettings((16, 32, 64, 128, 256), 0.8, (96, 96, 96))
PAPER = NetworkSettings((32, 64, 128, 256, 320, 320), 0.5, (128, 128, 128), heads=3)
BUILT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")  # as a wheel of torch for CUDA 12.8
GB = 10**9


@pytest.mark.parametrize(
    ("card", "run", "train"),
    [
        pytest.param(Card("cuda", (6, 1)), "fp32", "fp32", id="GTX 1080: Pascal"),
        pytest.param(Card("cuda", (7, 0)), "fp16", "fp32", id="V100: Volta"),
        pytest.param(Card("cuda", (7, 5)), "fp16", "fp32", id="T4, RTX 2080: Turing"),
        pytest.param(Card("cuda", (7, 5), bf16=True), "fp16", "fp32", id="Turing that imitates bf16"),
        pytest.param(Card("cuda", (8, 0), bf16=True), "bf16", "bf16", id="A100: Ampere"),
        pytest.param(Card("cuda", (8, 6), bf16=True), "bf16", "bf16", id="RTX 3060"),
        pytest.param(Card("cuda", (8, 9), bf16=True), "bf16", "bf16", id="RTX 4090: Ada"),
        pytest.param(Card("cuda", (9, 0), bf16=True), "bf16", "bf16", id="H100, H200: Hopper"),
        pytest.param(Card("cuda", (12, 0), bf16=True), "bf16", "bf16", id="RTX 5090: Blackwell"),
        pytest.param(Card("cuda", (8, 6)), "fp16", "fp32", id="a torch built without bf16"),
        pytest.param(Card("cuda", None, bf16=True), "bf16", "bf16", id="AMD through ROCm"),
        pytest.param(Card("cuda", None), "fp16", "fp32", id="older AMD"),
        pytest.param(Card("mps"), "fp32", "fp32", id="Apple"),
    ],
)
def test_precision_by_compute_capability_and_bf16(card: Card, run: str, train: str) -> None:
    assert precision_on(card) == run
    assert plain_training_precision(precision_on(card)) == train


@pytest.mark.parametrize(
    ("capability", "built", "words"),
    [
        ((7, 5), BUILT, ""),
        ((8, 6), BUILT, ""),
        ((8, 9), BUILT, ""),  # runs the kernels for 8.6
        ((12, 1), BUILT, ""),
        ((13, 0), BUILT, ""),  # from the kernels that are kept as text
        ((6, 1), BUILT, r"6\.1, older than .* built for \(7\.5, 8\.0"),
        ((12, 0), ("sm_80", "sm_86", "sm_90"), r"12\.0, newer than .* \(8\.0, 8\.6, 9\.0\)"),
        ((9, 0), ("sm_80", "sm_90a"), ""),
        ((10, 3), ("sm_100a",), "newer"),  # "a" stands for this version alone
        (None, ("gfx90a",), ""),
        ((8, 6), (), ""),
        ((8, 6), ("gfx90a",), ""),
    ],
)
def test_a_card_without_kernels_is_told_in_words(
    capability: tuple[int, int] | None, built: tuple[str, ...], words: str
) -> None:
    import re

    found = why_unusable(Card("cuda", capability, built_for=built))
    assert re.search(words, found) if words else found == ""


@pytest.mark.parametrize(
    ("wish", "there", "expected"),
    [
        ("auto", (), "cpu"),
        ("auto", ("cuda",), "cuda"),
        ("auto", ("mps",), "mps"),
        ("auto", ("mps", "cuda"), "cuda"),
        ("cpu", ("cuda",), "cpu"),
        ("cuda", (), "cuda"),  # asked for: it is tried, and the user is told why it does not work
    ],
)
def test_the_device_that_is_tried(wish: str, there: tuple[str, ...], expected: str) -> None:
    assert device_to_try(wish, there) == expected


@pytest.mark.parametrize(
    ("network", "one_window", "device", "precision", "free_bytes", "expected"),
    [
        (LAPTOP, False, "cpu", "fp32", None, [("cpu", 96), ("cpu", 64), ("cpu", 32)]),
        (LAPTOP, False, "mps", "fp32", None, [("mps", 96), ("mps", 64), ("mps", 32), ("cpu", 96)]),
        (LAPTOP, False, "cuda", "bf16", 24 * GB, [("cuda", 96), ("cuda", 64), ("cuda", 32), ("cpu", 96)]),
        (LAPTOP, True, "cuda", "bf16", 24 * GB, [("cuda", 144), ("cuda", 96)]),
        (LAPTOP, True, "cuda", "bf16", 300_000_000, [("cuda", 96), ("cuda", 64), ("cuda", 32), ("cpu", 144)]),
        (LAPTOP, True, "cuda", "fp32", 300_000_000, [("cuda", 96), ("cuda", 64)]),
        (LAPTOP, False, "cuda", "bf16", 50_000_000, [("cuda", 64), ("cuda", 32), ("cpu", 96)]),
        (LAPTOP, False, "cuda", "bf16", 1_000, [("cpu", 96), ("cpu", 64), ("cpu", 32)]),
        (PAPER, False, "cuda", "fp16", 2 * GB, [("cuda", 128), ("cuda", 64)]),
        (PAPER, False, "cuda", "fp16", 400_000_000, [("cuda", 64)]),
    ],
)
def test_windows_by_memory(
    network: NetworkSettings,
    one_window: bool,
    device: str,
    precision: str,
    free_bytes: int | None,
    expected: list[tuple[str, int]],
) -> None:
    """A head of 130 x 170 x 120 voxels; the rest of the list is not written out."""
    shape = (130, 170, 120)
    found = attempts(network, window_sizes(network, shape, one_window), shape, device, precision, free_bytes)
    assert [(where, window[0]) for where, window in found][: len(expected)] == expected
    assert {where for where, _ in found} <= {device, "cpu"}
    assert found[-1][0] == "cpu"


def test_a_small_image_needs_no_more_than_itself() -> None:
    windows = window_sizes(LAPTOP)
    assert attempts(LAPTOP, windows, (40, 40, 40), "cuda", "bf16", 20_000_000)[0] == ("cuda", windows[0])


def test_the_least_memory_is_what_the_last_step_up_holds() -> None:
    """On a real network: the arrays that its last block is given and joins."""
    settings = NetworkSettings((8, 16, 16), 1.5, (32, 32, 32), heads=0)
    network = build_network(settings).eval()
    held = []
    last = network.upsamples[-1]  # type: ignore[union-attr, index]
    last.register_forward_pre_hook(lambda _, given: held.extend(x.nbytes for x in given[1:]))  # what came down
    last.transp_conv.register_forward_hook(lambda _, __, up: held.append(up.nbytes))
    last.conv_block.register_forward_pre_hook(lambda _, given: held.append(given[0].nbytes))  # both joined
    with torch.inference_mode():
        network(torch.zeros(1, 2, 32, 32, 32))
    assert len(held) == 3
    assert least_bytes(settings, (32, 32, 32), "fp32") == sum(held)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card that PyTorch can use")
def test_a_real_card_describes_itself() -> None:
    card = card_of(torch.device("cuda"))
    assert card.capability is not None
    assert why_unusable(card) == ""
