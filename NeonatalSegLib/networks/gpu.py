"""What a graphics card is good for: decided from facts alone, so that every case is one line of a table of tests.

``torch_engine.card_of`` gathers the facts; nothing here asks torch. docs/speed.md names what only a card can prove.

>>> precision_on(Card("cuda", (8, 6), bf16=True))
'bf16'
>>> precision_on(Card("cuda", (7, 5)))
'fp16'
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from NeonatalSegLib.networks.network import NetworkSettings

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
BF16_FROM, FP16_FROM = (8, 0), (7, 0)  # compute capability with instructions for it: Ampere; Volta and Turing
GPUS = ("cuda", "mps")


@dataclass(frozen=True)
class Card:
    """A graphics card as PyTorch describes it.

    Attributes:
        kind: "cuda" (NVIDIA, and AMD through ROCm) or "mps" (Apple).
        capability: NVIDIA's compute capability, such as (8, 6); None for others.
        bf16: it has instructions for bfloat16, and does not imitate it.
        built_for: architectures that this PyTorch holds kernels for, such as "sm_80"; empty where not told.
    """

    kind: str
    capability: tuple[int, int] | None = None
    bf16: bool = False
    built_for: tuple[str, ...] = ()


def device_to_try(wish: str, there: Sequence[str]) -> str:
    """Where PyTorch should compute: "cpu", or a GPU that has yet to prove itself by one kernel.

    Args:
        wish: "auto", or the name of a device, which is then tried whether it is there or not.
        there: which of ``GPUS`` PyTorch lists.
    """
    return wish if wish != "auto" else next((name for name in GPUS if name in there), "cpu")


def precision_on(card: Card) -> str:
    """Of the numbers that a network is run with: "bf16", "fp16" or "fp32", what the card has instructions for.

    fp16 on cards before Volta is stored so and computed slower than fp32, or not at all.
    """
    if card.kind != "cuda":
        return "fp32"
    if card.bf16 and (card.capability is None or card.capability >= BF16_FROM):
        return "bf16"
    return "fp16" if card.capability is None or card.capability >= FP16_FROM else "fp32"


def plain_training_precision(precision: str) -> str:
    """For a training loop that does not scale its losses: in fp16 small gradients would be zeros, so fp32 there."""
    return "fp32" if precision == "fp16" else precision


def why_unusable(card: Card) -> str:
    """Why this PyTorch has no kernel for the card, in words; "" where it has one, or where the facts do not tell.

    A kernel for a compute capability runs on later minor versions of it; one that is kept as text ("compute_90") on
    every later card as well.
    """
    built = [m for name in card.built_for if (m := re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name))]
    if card.capability is None or not built:
        return ""
    major, minor = card.capability
    for kind, a, b, exact in ((m[1], int(m[2]), int(m[3]), m[4]) for m in built):
        if (a, b) == (major, minor) or (
            not exact and ((a == major and b <= minor) or (kind == "compute" and (a, b) <= (major, minor)))
        ):
            return ""
    known = sorted({(int(m[2]), int(m[3])) for m in built})
    text = ", ".join(f"{a}.{b}" for a, b in known)
    age = "older" if (major, minor) < known[0] else "newer"
    return f"its compute capability is {major}.{minor}, {age} than this PyTorch was built for ({text})"


def least_bytes(network: NetworkSettings, window: Sequence[int], precision: str) -> int:
    """Memory that no run of a window (z, y, x) can do without; the whole need is a few times as much.

    The last step up holds at once, at full resolution and with the first level's filters: what came down, what came
    up, and both joined.
    """
    return 4 * network.filters[0] * math.prod(window) * BYTES[precision]


def attempts(
    network: NetworkSettings,
    windows: Sequence[tuple[int, ...]],
    shape: Sequence[int],
    device: str,
    precision: str,
    free_bytes: int | None,
) -> list[tuple[str, tuple[int, ...]]]:
    """Where, and in windows of what size, a network is tried one after the other until memory is enough.

    On a GPU first, in the windows that its free memory may hold, then on the CPU in all of them.

    Args:
        windows: voxels (z, y, x), in the order in which they are wished.
        shape: of the image; no window is larger.
        precision, free_bytes: on ``device``; the memory is None where not told.
    """
    on_cpu = [("cpu", window) for window in windows]
    if device == "cpu":
        return on_cpu

    def may_fit(window: tuple[int, ...]) -> bool:
        inside = [min(n, w) for n, w in zip(shape, window, strict=True)]
        return free_bytes is None or least_bytes(network, inside, precision) <= free_bytes

    return [(device, window) for window in windows if may_fit(window)] + on_cpu
