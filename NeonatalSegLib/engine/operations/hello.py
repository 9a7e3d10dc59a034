"""The operation "hello": what this Python has: versions, devices that work, models."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from typing import TYPE_CHECKING, Any

from NeonatalSegLib import __version__
from NeonatalSegLib.engine.operations.job import Job, WarmModels
from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    pass


def hello(job: Job, models: WarmModels) -> dict[str, Any]:
    """Versions, devices (one real kernel run on each) and models. All heavy imports happen here.

    Result: ``pid``; ``versions`` {package: text}; ``devices`` (see probe_devices); ``models`` list of {name,
    description, spacing_mm, hash}; ``default_model``; ``seconds`` that this took.
    """
    started = time.perf_counter()
    job.progress("import", 0.0)
    # torch first: where several packages are missing, it is the one that a user has to decide about.
    packages = {name: importlib.import_module(name) for name in ("torch", "monai", "numpy", "SimpleITK")}
    from NeonatalSegLib.models.registry import default_model_name, list_models

    # Now, so that the first segmentation does not wait for it.
    importlib.import_module("NeonatalSegLib.segmentation.segmenter")
    job.progress("devices", 0.8)
    versions = {
        "NeonatalSeg": __version__,
        "Python": platform.python_version(),
        **{name: str(package.__version__) for name, package in packages.items()},
    }
    known = [
        {"name": m.name, "description": m.description, "spacing_mm": _spacing(m.spacing_mm), "hash": m.hash}
        for m in list_models()
    ]
    return {
        "pid": os.getpid(),
        "python": sys.executable,
        "versions": versions,
        "devices": probe_devices(),
        "models": known,
        "default_model": default_model_name(),
        "seconds": time.perf_counter() - started,
    }


def probe_devices() -> list[dict[str, Any]]:
    """The devices that torch sees, the GPU first, each named only after one real kernel ran on it.

    Each is ``{"name": "cuda" | "cpu", "text": "GPU: NVIDIA ...", "works": bool, "reason": str}``. ``works`` is False
    where the driver promises a GPU on which a convolution does not run, as with compute capabilities too old or too new
    for this build of torch; ``reason`` then says so in words.
    """
    import torch

    from NeonatalSegLib.segmentation.segmenter import choose_device, device_text

    devices = []
    if torch.cuda.is_available():
        text, reason = "GPU", ""
        try:
            text = device_text(choose_device("cuda")[0])
        except NeonatalSegError as error:
            reason = str(error)
        devices.append({"name": "cuda", "text": text, "works": not reason, "reason": reason})
    devices.append({"name": "cpu", "text": device_text(torch.device("cpu")), "works": True, "reason": ""})
    return devices


def _spacing(value: Any) -> list[float]:
    return [float(v) for v in (value if isinstance(value, (list, tuple)) else (value,) * 3)]
