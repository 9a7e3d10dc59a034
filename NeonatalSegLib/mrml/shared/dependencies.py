"""What has to be installed into Slicer's Python before the first segmentation, asked for once and in plain words.

Nothing is installed at start-up. What Segment needs is small; PyTorch, which is large, comes with the first
fine-tuning, or where there is an NVIDIA card: through the PyTorch extension where it is there, which chooses the build
for the card. All the rest comes in one call of pip. Where no NVIDIA card is seen, pip is told to take PyTorch's build
for the CPU: its default on Linux brings gigabytes of CUDA that nothing could use.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import slicer

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.openvino_engine import has_wheels
from NeonatalSegLib.segmentation.device import nvidia_card


@dataclass(frozen=True)
class Requirement:
    """A package: its name for import, what pip is told (a floor, no pin), and its size in words."""

    module: str
    requirement: str
    size: str


OPENVINO = Requirement("openvino", "openvino>=2025.0", "OpenVINO, 33 to 85 MB")
PSUTIL = Requirement("psutil", "psutil>=5.9", "psutil, under 1 MB")
TORCH = Requirement("torch", "torch>=2.10", "PyTorch")
TORCH_SIZES = {
    False: "PyTorch for the CPU (no NVIDIA graphics card was seen), about 0.2 GB to download",
    True: "PyTorch with support for the NVIDIA graphics card, 2 to 4 GB to download, up to 7 GB on the disk",
}
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
MONAI = Requirement("monai", "monai>=1.4", "MONAI, about 2 MB")
# What runs without a screen (segment_headless.py) need besides: asked for together with the rest, never alone.
HEADLESS = (
    Requirement("typer", "typer>=0.15", "typer, under 1 MB, for runs without a screen"),
    Requirement("matplotlib", "matplotlib>=3.8", "matplotlib, about 9 MB, for their pictures"),
    Requirement("jinja2", "jinja2>=3.1", "Jinja2, under 1 MB, for their reports"),
)
EXTENSION = (
    "The better way to PyTorch is the extension PyTorch: it chooses the build for this computer's graphics card. "
    "Cancel, install it in Extensions > Install extensions, restart Slicer, and click again; or go on without it."
)
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


def torch_extension() -> bool:
    """True where the PyTorch extension is installed."""
    return importlib.util.find_spec("PyTorchUtils") is not None


def question(needed: Sequence[Requirement]) -> str:
    """The text of the one dialog."""
    lines = "\n".join(f"  - {_size(requirement)}" for requirement in needed)
    text = (
        "NeonatalSeg computes with packages that are not part of Slicer. These will be downloaded and installed into "
        f"this Slicer's Python, once:\n\n{lines}\n\nIt takes some minutes, in which Slicer waits. What these packages "
        "need comes with them; pip may update a package that Slicer has already (setuptools, for instance)."
    )
    if TORCH in needed and not torch_extension():
        text += f"\n\n{EXTENSION}"
    return f"{text}\n\nInstall now?"


def ensure(
    ask: Callable[[str], bool], *, finetuning: bool = False, say: Callable[[str], None] = lambda text: None
) -> bool:
    """Install what is :func:`missing` after ``ask(text)`` said yes; False where it said no.

    ``say`` is told what is being installed, before Slicer waits for it, and "" afterwards.

    Raises:
        NeonatalSegError: an installation failed.
    """
    needed = missing(finetuning=finetuning)
    if not needed:
        return True
    needed += [requirement for requirement in HEADLESS if not _is_there(requirement)]
    if not ask(question(needed)):
        return False
    names = ", ".join(requirement.requirement for requirement in needed)
    say(f"Installing {names} into Slicer's Python. Slicer waits until that is done.")
    slicer.app.processEvents()  # or the text would be drawn afterwards
    try:
        _install(needed)
    except Exception as error:  # pip fails in many ways, with an exception type of each Slicer version
        raise NeonatalSegError(
            f"{names} could not be installed ({error}). Check the network connection and the room on the disk, then "
            "try again."
        ) from error
    finally:
        say("")
    if left := missing(finetuning=finetuning):
        names = ", ".join(requirement.module for requirement in left)
        raise NeonatalSegError(f"{names} could not be installed. Restart Slicer and try again.")
    return True


def pip_arguments(needed: Sequence[Requirement]) -> str:
    """What pip is told, in one line: all packages at once, so that it settles what they need together."""
    words = [requirement.requirement for requirement in needed]
    if TORCH in needed and sys.platform != "darwin" and not nvidia_card():
        words.append(f"--extra-index-url {CPU_BUILDS}")  # "+cpu" counts as newer than the same version without
    return " ".join(words)


def _size(requirement: Requirement) -> str:
    return TORCH_SIZES[nvidia_card()] if requirement is TORCH else requirement.size


def _install(needed: Sequence[Requirement]) -> None:
    """The extension's PyTorch, then one call of pip; no question whether to restart Slicer is asked in between."""
    left = list(needed)
    if TORCH in left and torch_extension():
        utils = importlib.import_module("PyTorchUtils")
        utils.PyTorchUtilsLogic().installTorch(torchVersionRequirement=">=2.10")
        left.remove(TORCH)
    if not left:
        return
    try:
        packaging = importlib.import_module("slicer.packaging")
    except ImportError:  # before Slicer 5.12
        slicer.util.pip_install(pip_arguments(left))
        return
    packaging.pip_install(pip_arguments(left), requester="NeonatalSeg")
