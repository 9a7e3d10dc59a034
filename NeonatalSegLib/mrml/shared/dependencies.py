"""What has to be installed into Slicer's Python before the first segmentation, asked for once and in plain words.

Nothing is installed at start-up. What Segment needs is small; PyTorch, which is large, comes with the first
fine-tuning, or where there is an NVIDIA card: through the PyTorch extension, which chooses the build for the card; the
rest through Slicer's own packaging functions. Slicer's own packages (numpy, SimpleITK, vtk) are left alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import slicer

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.openvino_engine import has_wheels
from NeonatalSegLib.segmentation.device import nvidia_card


@dataclass(frozen=True)
class Requirement:
    """A package: its name for import, what pip is told, and its size in words."""

    module: str
    requirement: str
    size: str


OPENVINO = Requirement("openvino", "openvino>=2025.0", "OpenVINO, 33 to 85 MB")
PSUTIL = Requirement("psutil", "psutil>=5.9", "psutil, under 1 MB")
TORCH = Requirement("torch", "torch>=2.10", "PyTorch, about 0.2 GB to download for the CPU, 2 to 4 GB with GPU support")
MONAI = Requirement("monai", "monai>=1.4", "MONAI, about 2 MB")
DECLINED = "Nothing was installed. Viewing, editing and exporting work as before; segmenting needs these packages."


def to_segment() -> list[Requirement]:
    """The first step, small: OpenVINO; PyTorch where a graphics card or nothing else can use it, or it is there."""
    torch = [TORCH, MONAI]
    if nvidia_card() or not has_wheels() or all(_is_there(needed) for needed in torch):
        return [*torch, PSUTIL]
    return [OPENVINO, PSUTIL]


def to_finetune() -> list[Requirement]:
    """The second step: PyTorch as well, when someone fine-tunes."""
    small = [OPENVINO] if has_wheels() else []
    return [TORCH, MONAI, *small, PSUTIL]


def missing(*, finetuning: bool = False) -> list[Requirement]:
    """What cannot be imported here of what segmenting, or ``finetuning``, needs; nothing is imported to find out."""
    importlib.invalidate_caches()
    needed = to_finetune() if finetuning else to_segment()
    return [requirement for requirement in needed if not _is_there(requirement)]


def _is_there(requirement: Requirement) -> bool:
    return importlib.util.find_spec(requirement.module) is not None


def question(needed: list[Requirement]) -> str:
    """The text of the one dialog."""
    lines = "\n".join(f"  - {requirement.size}" for requirement in needed)
    return (
        "NeonatalSeg computes with packages that are not part of Slicer. These will be downloaded and installed into "
        f"this Slicer's Python, once:\n\n{lines}\n\nIt takes some minutes. Slicer's own packages are not changed. "
        "Install now?"
    )


def ensure(ask: Callable[[str], bool], *, finetuning: bool = False) -> bool:
    """Install what is :func:`missing` after ``ask(text)`` said yes; False where it said no.

    Raises:
        NeonatalSegError: an installation failed.
    """
    needed = missing(finetuning=finetuning)
    if not needed:
        return True
    if not ask(question(needed)):
        return False
    for requirement in needed:
        try:
            _install(requirement)
        except Exception as error:  # pip fails in many ways, with an exception type of each Slicer version
            raise NeonatalSegError(
                f"{requirement.requirement} could not be installed ({error}). Check the network connection and the "
                "room on the disk, then try again."
            ) from error
    if left := missing(finetuning=finetuning):
        names = ", ".join(requirement.module for requirement in left)
        raise NeonatalSegError(f"{names} could not be installed. Restart Slicer and try again.")
    return True


def _install(requirement: Requirement) -> None:
    if requirement is TORCH:
        try:
            utils = importlib.import_module("PyTorchUtils")
        except ImportError:  # the extension is absent, as with a source checkout: pip's default build
            pass
        else:
            utils.PyTorchUtilsLogic().installTorch(torchVersionRequirement=">=2.10")
            return
    try:
        packaging = importlib.import_module("slicer.packaging")
    except ImportError:  # before Slicer 5.12
        slicer.util.pip_install(requirement.requirement)
        return
    packaging.pip_ensure([requirement.requirement], prompt_install=False, requester="NeonatalSeg")
