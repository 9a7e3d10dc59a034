"""The operation "hello": what this Python has: versions, devices that work, models."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from NeonatalSegLib import __version__
from NeonatalSegLib.engine.operations.job import Job, WarmModels
from NeonatalSegLib.errors import NeonatalSegError


def hello(job: Job, models: WarmModels) -> dict[str, Any]:
    """Versions, devices (one real kernel run on each GPU) and models. The heavy imports happen here.

    Result: ``pid``; ``versions`` {package: text}; ``devices`` (see probe_devices); ``models`` list of {name,
    description, spacing_mm, hash}; ``default_model``; ``seconds`` that this took.
    """
    started = time.perf_counter()
    job.progress("import", 0.0)
    packages = {name: importlib.import_module(name) for name in ("numpy", "SimpleITK")}
    from NeonatalSegLib.models.registry import default_model_name, list_models

    # Now, so that the first segmentation does not wait for it.
    importlib.import_module("NeonatalSegLib.segmentation.segmenter")
    engine = _import_engine()
    job.progress("devices", 0.8)
    versions = {
        "NeonatalSeg": __version__,
        "Python": platform.python_version(),
        **{name: str(package.__version__) for name, package in packages.items()},
        **{name: found for name in ("openvino", "torch", "monai") if (found := _installed(name))},
    }
    known = [
        {"name": m.name, "description": m.description, "spacing_mm": _spacing(m.spacing_mm), "hash": m.hash}
        for m in list_models()
    ]
    return {
        "pid": os.getpid(),
        "python": sys.executable,
        "versions": versions,
        "devices": probe_devices(engine),
        "models": known,
        "default_model": default_model_name(),
        "seconds": time.perf_counter() - started,
    }


def probe_devices(engine: str) -> list[dict[str, Any]]:
    """The devices there are, the GPU first, which is named only after one real kernel ran on it.

    Each is ``{"name": "cuda" | "mps" | "cpu", "text": "GPU: NVIDIA ...", "works": bool, "reason": str}``; the CPU also
    says which ``engine`` runs on it. ``works`` is False where the driver promises a GPU on which a convolution does not
    run, as with compute capabilities too old or too new for this build of torch; ``reason`` then says so in words.
    torch is imported only where a driver shows a GPU.
    """
    from NeonatalSegLib.segmentation.device import choose_device, gpu_may_be_there

    devices: list[dict[str, Any]] = []
    if gpu_may_be_there():
        import torch

        from NeonatalSegLib.networks.torch_engine import device_text

        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        for name in (name for name, is_there in there.items() if is_there):
            text, reason = "GPU", ""
            try:
                text = device_text(choose_device(name)[0])
            except NeonatalSegError as error:
                reason = str(error)
            devices.append({"name": name, "text": text, "works": not reason, "reason": reason})
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = {"name": "cpu", "text": f"CPU ({threads} threads)", "works": True, "reason": "", "engine": engine}
    return [*devices, cpu]


def _import_engine() -> str:
    """The engine of CPUs here, imported: "openvino" or "torch".

    Raises:
        ModuleNotFoundError: there is neither.
    """
    from NeonatalSegLib.networks.openvino_engine import has_wheels, import_openvino

    try:
        import_openvino()
        return "openvino"
    except NeonatalSegError:
        for name in ("torch", "monai"):
            if importlib.util.find_spec(name) is None:
                wanted = "openvino" if has_wheels() else name
                raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted) from None
        return "torch"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _spacing(value: Any) -> list[float]:
    return [float(v) for v in (value if isinstance(value, (list, tuple)) else (value,) * 3)]
