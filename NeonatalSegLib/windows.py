"""A network over a whole volume in few large windows with Gaussian blending (MONAI's sliding-window inference)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import sliding_window_inference
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import nn

from NeonatalSegLib.network import NetworkSettings

OVERLAP = 0.5


def predict_windows(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    *,
    window: Sequence[int] | None = None,
    flips: bool = False,
    progress: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Class probabilities of a prepared image.

    Args:
        image: (2, z, y, x) float32 on the device of the network.
        window: voxels (z, y, x) of a window; default the training patch. Axes on which the image is not larger are
            covered by one window.
        flips: average with the left-right mirror image (twice the time).
        progress: called with the fraction done (0-1) before every block of the network; may raise to stop.

    Returns:
        (classes, z, y, x) float32 probabilities on the image's device.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), autocast(image.device):
            return _predict(network, image, settings, tuple(window or settings.patch), flips, progress)
    finally:
        network.train(was_training)


def _predict(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    window: tuple[int, ...],
    flips: bool,
    progress: Callable[[float], None] | None,
) -> torch.Tensor:
    stride = settings.stride
    shape = image.shape[1:]
    window = tuple(-(-min(w, s) // stride) * stride for w, s in zip(window, shape, strict=True))
    step = tuple(max(1, int(w * (1 - OVERLAP))) for w in window)
    padded = tuple(max(w, s) for w, s in zip(window, shape, strict=True))
    passes = len(dense_patch_slices(padded, window, step)) * (2 if flips else 1)

    def softmax(batch: torch.Tensor) -> torch.Tensor:
        return torch.softmax(network(batch).float(), 1)

    def predict(batch: torch.Tensor) -> torch.Tensor:
        out = softmax(batch)
        return (out + softmax(batch.flip(-1)).flip(-1)) / 2 if flips else out

    with _told(network, passes, progress):
        result: Any = sliding_window_inference(
            image[None],
            window,
            1,
            predict,
            overlap=OVERLAP,
            mode="gaussian",
            sigma_scale=0.2,
            padding_mode="replicate",
        )
    return result[0].float()


@contextmanager
def _told(network: nn.Module, passes: int, progress: Callable[[float], None] | None) -> Iterator[None]:
    """Call ``progress`` before every block of the network, not only between windows.

    A whole head is one window, seconds long on a CPU: that is too long to wait for Cancel.
    """
    if progress is None:
        yield
        return
    blocks = [m for m in network.modules() if isinstance(m, (UnetBasicBlock, UnetResBlock))] or [network]
    begun = 0

    def tell(*_: Any) -> None:
        nonlocal begun
        progress(begun / (passes * len(blocks)))
        begun += 1

    handles = [block.register_forward_pre_hook(tell) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def autocast(device: torch.device) -> Any:
    """Mixed precision where the device gains from it: bf16 on CPUs, bf16 or fp16 on GPUs."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    if device.type == "cpu":
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
