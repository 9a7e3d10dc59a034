"""The PyTorch engine: runs a network on an NVIDIA card, an Apple GPU, or a CPU without OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import nn

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks import sliding_window
from NeonatalSegLib.networks.gpu import Card, plain_training_precision, precision_on
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.precision import processor_features, torch_precision
from NeonatalSegLib.networks.sliding_window import OVERLAP, Tick


class TorchEngine:
    """A network on a device; an :class:`~NeonatalSegLib.networks.sliding_window.Engine`.

    Args:
        network: as ``build_network`` makes it; it is used in evaluation mode and left as it was.
        device: where it lies; None for where its weights are.
        precision: "fp32" to compute in it whatever the device would gain from; None for that.
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: torch.device | None = None, precision: str | None = None) -> None:
        self.device = device or next(network.parameters()).device
        self.network = network.to(self.device)
        self.precision = precision or best_precision(self.device)

    @property
    def device_text(self) -> str:
        """The device in words."""
        return device_text(self.device)

    def run(self, window: np.ndarray, tick: Tick) -> tuple[np.ndarray, float | None]:
        """See :class:`~NeonatalSegLib.networks.sliding_window.Engine`; asks ``tick`` before every block."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision), _with_progress(self.network, tick):
                batch = torch.from_numpy(window)[None].to(self.device)
                weeks = None
                if hasattr(self.network, "forward_with_age"):
                    logits, ages = self.network.forward_with_age(batch)  # type: ignore[operator]
                    weeks = float(ages[0])
                else:
                    logits = self.network(batch)
                return torch.softmax(logits.float(), 1)[0].cpu().numpy(), weeks
        finally:
            self.network.train(was_training)

    @property
    def free_bytes(self) -> int | None:
        """See :class:`~NeonatalSegLib.networks.sliding_window.Engine`."""
        if self.device.type != "cuda":
            return None
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept  # what it keeps for its next window is free for it

    def free_memory(self) -> None:
        """See :class:`~NeonatalSegLib.networks.sliding_window.Engine`."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _with_progress(network: nn.Module, tick: Tick) -> Iterator[None]:
    """Call ``tick`` before every block of the network, not only between windows.

    A whole head is one window, seconds long on a CPU: that is too long to wait for Cancel.
    """
    blocks = [m for m in network.modules() if isinstance(m, (UnetBasicBlock, UnetResBlock))] or [network]
    begun = 0

    def tell(*_: Any) -> None:
        nonlocal begun
        tick(begun / len(blocks))
        begun += 1

    handles = [block.register_forward_pre_hook(tell) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@lru_cache
def card_of(device: torch.device) -> Card:
    """The facts about a GPU that :mod:`gpu` decides by."""
    if device.type != "cuda":
        return Card(device.type)
    capability = torch.cuda.get_device_capability(device) if torch.version.hip is None else None
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Card(device.type, capability, bf16, tuple(torch.cuda.get_arch_list()))


def best_precision(device: torch.device) -> str:
    """Of the numbers that the network computes with: "bf16", "fp16" or "fp32", by what the device gains from."""
    return torch_precision(processor_features()) if device.type == "cpu" else precision_on(card_of(device))


def autocast(device: torch.device, precision: str | None = None) -> Any:
    """Mixed precision where the device gains from it; or in a given precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision or best_precision(device))
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def autocast_training(device: torch.device) -> Any:
    """Mixed precision for a training loop that does not scale its losses; Lightning's does it by itself."""
    return autocast(device, plain_training_precision(best_precision(device)))


def device_text(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return f"GPU: {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return "GPU: Apple"
    return f"CPU ({torch.get_num_threads()} threads)"


def predict_windows(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    *,
    window: Sequence[int] | None = None,
    flips: bool = False,
    overlap: float = OVERLAP,
    progress: Tick | None = None,
) -> torch.Tensor:
    """Class probabilities of a prepared image while a network is trained: :mod:`sliding_window` on tensors.

    Args:
        image: (2, z, y, x) float32 on the device of the network.
        window: voxels (z, y, x) of a window; default the training patch.

    Returns:
        (classes, z, y, x) float32 probabilities on the image's device.
    """
    options: Any = {"window": window, "flips": flips, "overlap": overlap, "progress": progress}
    return predict_with_age(network, image, settings, **options)[0]


def predict_age(network: nn.Module, image: torch.Tensor, settings: NetworkSettings) -> float:
    """The newborn's age in weeks, as a network with an age head sees it; arguments as in :func:`predict_windows`.

    Raises:
        NeonatalSegError: the network has no age head.
    """
    age = predict_with_age(network, image, settings)[1]
    if age is None:
        raise NeonatalSegError("This network has no age head: train one with age_head = true among its settings.")
    return age


def predict_with_age(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    *,
    window: Sequence[int] | None = None,
    flips: bool = False,
    overlap: float = OVERLAP,
    progress: Tick | None = None,
) -> tuple[torch.Tensor, float | None]:
    """What :func:`predict_windows` gives, and the age in weeks from the same pass (None without an age head)."""
    found, age = sliding_window.predict_windows(
        TorchEngine(network, image.device),
        image.float().cpu().numpy(),
        window or settings.patch,
        settings.stride,
        flips=flips,
        overlap=overlap,
        progress=progress,
    )
    return torch.from_numpy(found).to(image.device), age
