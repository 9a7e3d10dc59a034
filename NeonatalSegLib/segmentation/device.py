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


@lru_cache(1)
def nvidia_card() -> bool:
    """Whether a driver shows an NVIDIA card."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


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
