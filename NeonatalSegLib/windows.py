"""A network over a whole volume in few large windows with Gaussian blending (MONAI's sliding-window inference)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from NeonatalSegLib.network import NetworkSettings

OVERLAP = 0.4


def predict_windows(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    *,
    window: Sequence[int] | None = None,
    flips: bool = False,
    before_window: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Class probabilities of a prepared image.

    Args:
        image: (2, z, y, x) float32 on the device of the network.
        window: voxels (z, y, x) of a window; default the training patch. Axes on which the image is not larger are
            covered by one window.
        flips: average with the left-right mirror image (twice the time).
        before_window: called with the fraction done (0-1) before every window; may raise to stop.

    Returns:
        (classes, z, y, x) float32 probabilities on the image's device.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), autocast(image.device):
            return _predict(network, image, settings, tuple(window or settings.patch), flips, before_window)
    finally:
        network.train(was_training)


def _predict(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    window: tuple[int, ...],
    flips: bool,
    before_window: Callable[[float], None] | None,
) -> torch.Tensor:
    from monai.inferers import sliding_window_inference
    from monai.inferers.utils import dense_patch_slices

    stride = settings.stride
    shape = image.shape[1:]
    window = tuple(-(-min(w, s) // stride) * stride for w, s in zip(window, shape, strict=True))
    step = tuple(max(1, int(w * (1 - OVERLAP))) for w in window)
    padded = tuple(max(w, s) for w, s in zip(window, shape, strict=True))
    total = len(dense_patch_slices(padded, window, step)) * (2 if flips else 1)
    done = 0

    def step_through(batch: torch.Tensor) -> torch.Tensor:
        nonlocal done
        if before_window:
            before_window(done / total)
        out = torch.softmax(network(batch).float(), 1)
        done += 1
        if flips:
            if before_window:
                before_window(done / total)
            out = (out + torch.softmax(network(batch.flip(-1)).float(), 1).flip(-1)) / 2
            done += 1
        return out

    result: Any = sliding_window_inference(
        image[None],
        window,
        1,
        step_through,
        overlap=OVERLAP,
        mode="gaussian",
        sigma_scale=0.2,
        padding_mode="replicate",
    )
    return result[0].float()


def autocast(device: torch.device) -> Any:
    """Mixed precision where the device gains from it: bf16 on CPUs, bf16 or fp16 on GPUs."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    if device.type == "cpu":
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
