"""What the worker can do: a table of operations. A new one is a function here and a line in ``OPERATIONS``.

An operation takes the job (its fields, its folder, its progress) and the warm state (models already loaded), returns
the fields of its result, and raises NeonatalSegError for what a person can mend. Heavy imports stay inside.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from NeonatalSegLib import __version__
from NeonatalSegLib.engine.operations import finetuning, planning
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import safe_name

if TYPE_CHECKING:
    import SimpleITK as sitk

    from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions


class Job(Protocol):
    """One request as an operation sees it."""

    fields: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the operation's files go; NeonatalSegError where the request named none."""

    @property
    def stop_asked(self) -> bool:
        """True once the client wants the operation to end early with what it has."""

    def progress(self, stage: str, fraction: float, **more: Any) -> None:
        """Say how far the work is (fraction of the whole, 0-1) and more; raises Cancelled when it is to stop."""

    def expect(self, seconds: float | None) -> None:
        """Say how long the work takes from now on, where it is known from last time; None where it is not."""


class WarmModels:
    """Segmenters kept between requests, at most ``capacity`` of them: the least recently used goes first."""

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity
        self._segmenters: OrderedDict[tuple[str, str, str], Segmenter] = OrderedDict()
        # How long the last segmentation with this segmenter and these options took: the next one's time left.
        self.seconds: dict[tuple[int, SegmentOptions], float] = {}

    def get(self, model: str | None, device: str) -> tuple[Segmenter, bool]:
        """The segmenter for a model's name or path on a device, and whether it was already loaded."""
        from NeonatalSegLib.models.bundle import find_model
        from NeonatalSegLib.segmentation.segmenter import Segmenter

        found = find_model(model or None)
        # The hash is in the key: a model that was fine-tuned under the same name is another model.
        key = (str(found.folder), found.hash, device)
        warm = key in self._segmenters
        if not warm:
            self._segmenters[key] = Segmenter(found, device)
        self._segmenters.move_to_end(key)
        while len(self._segmenters) > self._capacity:
            dropped = self._segmenters.popitem(last=False)[1]
            self.seconds = {key: value for key, value in self.seconds.items() if key[0] != id(dropped)}
        return self._segmenters[key], warm


Operation = Callable[[Job, WarmModels], "dict[str, Any]"]


def hello(job: Job, models: WarmModels) -> dict[str, Any]:
    """Versions, devices (one real kernel run on each) and models. All heavy imports happen here.

    Result: ``pid``; ``versions`` {package: text}; ``devices`` (see probe_devices); ``models`` list of {name,
    description, spacing_mm, hash}; ``default_model``; ``seconds`` that this took.
    """
    started = time.perf_counter()
    job.progress("import", 0.0)
    # torch first: where several packages are missing, it is the one that a user has to decide about.
    packages = {name: importlib.import_module(name) for name in ("torch", "monai", "numpy", "SimpleITK")}
    from NeonatalSegLib.models.bundle import default_model_name, list_models

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


def segment(job: Job, models: WarmModels) -> dict[str, Any]:
    """Segment one newborn.

    Fields: ``t1``, ``t2`` (paths or null, one at least), ``name``, ``age_weeks``, ``model`` (name or path, null for the
    default), ``device``, ``options`` (fields of SegmentOptions), ``folder`` (where the result's files go).

    Result: ``label_map``, ``probabilities``, ``uncertainty`` (paths of .nrrd files on the scan's own grid, LPS; null
    where not asked for), ``volumes_ml``, ``warnings``, ``times_s`` (the segmenter's stages and "load", "read",
    "write"), ``warm`` (the model was already loaded), ``device``, ``model_name``, ``model_hash``,
    ``registration_quality``, ``age_weeks`` (as the model sees it, null where it has no age head).
    """
    options = _options(job.fields.get("options") or {})
    folder = job.folder
    times: dict[str, float] = {}

    job.progress("load model", 0.0)
    with _Stopwatch(times, "load"):
        from NeonatalSegLib.models.bundle import current_model

        segmenter, warm = models.get(job.fields.get("model"), job.fields.get("device") or "auto")
        # An accepted model that is gone, where the user relies on it.
        fallback = [] if job.fields.get("model") else current_model()[1]

    job.progress("read", 0.0)
    with _Stopwatch(times, "read"):
        from NeonatalSegLib.scans.scan import load_scan

        scan = load_scan(
            job.fields.get("t1"),
            job.fields.get("t2"),
            name=safe_name(job.fields.get("name") or ""),  # a node's name may hold anything
            age_weeks=job.fields.get("age_weeks"),
        )

    started = time.perf_counter()
    job.expect(models.seconds.get((id(segmenter), options)))
    done = segmenter.segment(scan, options, progress=job.progress)
    models.seconds[id(segmenter), options] = time.perf_counter() - started

    job.progress("write", 1.0)
    with _Stopwatch(times, "write"):
        label_map = _write(done.label_map, folder / "labels.nrrd")
        probabilities = _write(done.probabilities, folder / "probabilities.nrrd")
        uncertainty = _write(done.uncertainty, folder / "uncertainty.nrrd")
    return {
        "label_map": label_map,
        "probabilities": probabilities,
        "uncertainty": uncertainty,
        "volumes_ml": {key: float(value) for key, value in done.volumes_ml.items()},
        "warnings": [*fallback, *(str(warning) for warning in done.warnings)],
        "times_s": {key: float(value) for key, value in done.times_s.items()} | times,
        "warm": warm,
        "device": done.device,
        "model_name": done.model_name,
        "model_hash": done.model_hash,
        "registration_quality": _number(done.registration_quality),
        "age_weeks": _number(done.age_weeks),
    }


OPERATIONS: dict[str, Operation] = {
    "hello": hello,
    "segment": segment,
    "plan": planning.plan,
    "strategies": finetuning.strategies,
    "finetune": finetuning.finetune,
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


def _options(given: dict[str, Any]) -> SegmentOptions:
    from NeonatalSegLib.segmentation.segmenter import SegmentOptions

    known = [field.name for field in dataclass_fields(SegmentOptions)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise NeonatalSegError(f"Unknown option '{unknown[0]}': the options of a segmentation are {', '.join(known)}.")
    return SegmentOptions(**given)


def _write(image: sitk.Image | None, path: Path) -> str | None:
    """Write uncompressed, and look whether all of it arrived: ITK does not always report a full disk."""
    if image is None:
        return None
    import SimpleITK as sitk

    needed = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    cause = None
    try:
        sitk.WriteImage(image, str(path), useCompression=False)
    except RuntimeError as error:
        cause = error
    if cause is not None or path.stat().st_size < needed:
        raise NeonatalSegError(
            f"The result could not be written to the temporary folder {path.parent}: it needs {needed / 1e6:.1f} MB, "
            "and the disk is full or does not allow a file of that size. Free some space, or set the environment "
            "variable TMPDIR (on Windows TEMP) to a folder on another disk, and run this again."
        ) from cause
    return str(path)


def _spacing(value: Any) -> list[float]:
    return [float(v) for v in (value if isinstance(value, (list, tuple)) else (value,) * 3)]


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


class _Stopwatch:
    """``with _Stopwatch(times, "read"):`` puts the seconds spent inside into ``times["read"]``."""

    def __init__(self, times: dict[str, float], stage: str) -> None:
        self._times, self._stage = times, stage

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._times[self._stage] = time.perf_counter() - self._started
