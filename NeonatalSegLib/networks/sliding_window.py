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

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.network import NetworkSettings

OVERLAP = 0.5


def predict_windows(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    *,
    window: Sequence[int] | None = None,
    flips: bool = False,
    overlap: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Class probabilities of a prepared image.

    Args:
        image: (2, z, y, x) float32 on the device of the network.
        window: voxels (z, y, x) of a window; default the training patch. Axes on which the image is not larger are
            covered by one window.
        flips: average with the left-right mirror image (twice the time).
        overlap: of neighbouring windows, 0-1; default ``OVERLAP``. Less is faster and a little worse.
        progress: called with the fraction done (0-1) before every block of the network; may raise to stop.

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
    overlap: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[torch.Tensor, float | None]:
    """What :func:`predict_windows` gives, and the age in weeks from the same pass (None without an age head).

    The age is the mean over windows, each weighted by how much head it holds: by the sum of its probabilities of not
    being outside background. A corner window with little but air in it knows little of the age. The network itself
    says what is head, since air has no value of its own in a prepared image.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), autocast(image.device):
            return _predict(network, image, settings, tuple(window or settings.patch), flips, overlap, progress)
    finally:
        network.train(was_training)


def _predict(
    network: nn.Module,
    image: torch.Tensor,
    settings: NetworkSettings,
    window: tuple[int, ...],
    flips: bool,
    overlap: float | None,
    progress: Callable[[float], None] | None,
) -> tuple[torch.Tensor, float | None]:
    overlap = OVERLAP if overlap is None else overlap
    stride = settings.stride
    shape = image.shape[1:]
    window = tuple(-(-min(w, s) // stride) * stride for w, s in zip(window, shape, strict=True))
    step = tuple(max(1, int(w * (1 - overlap))) for w in window)
    padded = tuple(max(w, s) for w, s in zip(window, shape, strict=True))
    passes = len(dense_patch_slices(padded, window, step)) * (2 if flips else 1)

    ages: list[tuple[torch.Tensor, torch.Tensor]] = []  # (weeks, how much head) of each window

    def softmax(batch: torch.Tensor) -> torch.Tensor:
        if not settings.age_head:
            return torch.softmax(network(batch).float(), 1)
        logits, weeks = network.forward_with_age(batch)  # type: ignore[operator]
        out = torch.softmax(logits.float(), 1)
        ages.append((weeks[0], 1e-6 + (1 - out[0, 0]).sum()))  # never a sum of zero
        return out

    def predict(batch: torch.Tensor) -> torch.Tensor:
        out = softmax(batch)
        return (out + softmax(batch.flip(-1)).flip(-1)) / 2 if flips else out

    with _with_progress(network, passes, progress):
        result: Any = sliding_window_inference(
            image[None],
            window,
            1,
            predict,
            overlap=overlap,
            mode="gaussian",
            sigma_scale=0.2,
            padding_mode="replicate",
        )
    if not ages:
        return result[0].float(), None
    weeks, head = (torch.stack(values) for values in zip(*ages, strict=True))
    return result[0].float(), float((weeks * head).sum() / head.sum())


@contextmanager
def _with_progress(network: nn.Module, passes: int, progress: Callable[[float], None] | None) -> Iterator[None]:
    """Call ``progress`` before every block of the network, not only between windows.

    A whole head is one window, seconds long on a CPU: that is too long to wait for Cancel.
    """
    if progress is None:
        yield
        return
    blocks = [m for m in network.modules() if isinstance(m, (UnetBasicBlock, UnetResBlock))] or [network]
    begun = 0

    def report(*_: Any) -> None:
        nonlocal begun
        progress(begun / (passes * len(blocks)))
        begun += 1

    handles = [block.register_forward_pre_hook(report) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def autocast(device: torch.device) -> Any:
    """Mixed precision where the device gains from it: bf16 on CPUs, bf16 or fp16 on GPUs."""
    if device.type == "cuda":
        return torch.autocast(
            "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        )
    if device.type == "cpu":
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
