"""Where PyTorch computes: a GPU that has run one real kernel, or the CPU. Asks for torch only where a GPU may be."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.gpu import device_to_try, why_unusable

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps", "gpu")  # the last: Intel's, through OpenVINO


@lru_cache(1)
def gpu_may_be_there() -> bool:
    """Whether PyTorch is installed and a driver shows a GPU for it; torch, seconds to import, is not asked."""
    if importlib.util.find_spec("torch") is None:
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return Path("/dev/kfd").exists() or nvidia_card()  # the first is AMD's


def nvidia_card() -> bool:
    """Whether a driver shows an NVIDIA card."""
    return gpus() > 0


@lru_cache(1)
def gpus() -> int:
    """How many NVIDIA cards a driver shows to this process; torch, seconds to import, is not asked."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        told = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        return count.value if told else 0
    except (OSError, AttributeError):
        return 0


def gpu_of_worker(name: object, number: int, visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES of one of several workers on a computer, so that they share out its cards.

    Args:
        name: of the worker, its number in a local cluster.
        number: of cards that the process that asks sees.
        visible: that variable as the worker has it, if it is set.

    Example:
        >>> [gpu_of_worker(n, 2, None) for n in range(3)], gpu_of_worker(1, 2, "4,6")
        (['0', '1', '0'], '6')
    """
    cards = [card.strip() for card in visible.split(",")] if visible else [str(n) for n in range(number)]
    return cards[int(str(name)) % len(cards)]


def _why_no_kernel(name: str) -> str:
    """Why a card could not run a kernel, in better words than the driver's where its facts tell; else ""."""
    import torch

    from NeonatalSegLib.networks.torch_engine import card_of

    try:
        return why_unusable(card_of(torch.device(name)))
    except (RuntimeError, AssertionError):  # it does not even describe itself
        return ""


def choose_device(wish: str) -> tuple[torch.device, list[str]]:
    """A device that has run one real kernel, and a notice where a GPU is there but does not work.

    Raises:
        NeonatalSegError: unknown name, or a GPU asked for that is not usable.
    """
    import torch

    if wish not in ("auto", "cpu", "cuda", "mps"):
        raise NeonatalSegError(f"There is no device {wish!r} for PyTorch: choose auto, cpu, cuda or mps.")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = device_to_try(wish, [n for n, is_there in there.items() if is_there])
    if name == "cpu":
        return torch.device("cpu"), []
    try:
        # A GPU may be listed and still be too old or too new for this build: let it convolve before promising it.
        probe = torch.nn.functional.conv3d(
            torch.ones(1, 1, 4, 4, 4, device=name), torch.ones(1, 1, 3, 3, 3, device=name)
        )
        if float(probe[0, 0, 0, 0, 0]) != 27.0:
            raise RuntimeError("wrong result")
        return torch.device(name), []
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = _why_no_kernel(name) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        if wish != "auto":
            raise NeonatalSegError(f"No GPU can be used ({reason}). Choose --device auto or cpu.") from error
        return torch.device("cpu"), [f"A GPU is there but cannot be used ({reason}); the CPU was used."]
