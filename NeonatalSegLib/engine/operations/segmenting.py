"""The operation "segment": one newborn, from files to files."""

from __future__ import annotations

import math
import time
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NeonatalSegLib.engine.operations.job import Job, WarmModels
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import safe_name

if TYPE_CHECKING:
    import SimpleITK as sitk

    from NeonatalSegLib.segmentation.segmenter import SegmentOptions


def segment(job: Job, models: WarmModels) -> dict[str, Any]:
    """Segment one newborn.

    Fields: ``t1``, ``t2`` (paths or null, one at least), ``name``, ``age_weeks``, ``model`` (name or path, null for the
    default), ``device``, ``engine``, ``options`` (fields of SegmentOptions), ``folder`` (where the result's files go).

    Result: ``label_map``, ``probabilities``, ``uncertainty`` (paths of .nrrd files on the scan's own grid, LPS; null
    where not asked for), ``volumes_ml``, ``verdict`` (pass, check or fail), ``findings`` (what it rests on: Level, Kind
    and Text of each), ``warnings``, ``times_s`` (the segmenter's stages and "load", "read", "write"), ``warm`` (the
    model was loaded), ``device``, ``engine`` (its facts), ``model_name``, ``model_hash``, ``registration_quality``,
    ``age_weeks`` (as the model sees it, null where it has no age head), ``volumes_age_weeks`` (as the tissues' volumes
    show it, or null).
    """
    options = _options(job.fields.get("options") or {})
    folder = job.folder
    times: dict[str, float] = {}

    job.progress("load model", 0.0)
    with _Stopwatch(times, "load"):
        from NeonatalSegLib.models.registry import current_model

        device, engine = (job.fields.get(key) or "auto" for key in ("device", "engine"))
        segmenter, warm = models.get(job.fields.get("model"), device, engine)
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
            orientation=options.assume_orientation,
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
        "verdict": done.plausibility.verdict,
        "findings": done.plausibility.to_json()["Findings"],
        "warnings": [*fallback, *(str(warning) for warning in done.warnings)],
        "times_s": {key: float(value) for key, value in done.times_s.items()} | times,
        "warm": warm,
        "device": done.device,
        "engine": done.engine,
        "model_name": done.model_name,
        "model_hash": done.model_hash,
        "registration_quality": _number(done.registration_quality),
        "age_weeks": _number(done.age_weeks),
        "volumes_age_weeks": _number(done.volumes_age_weeks),
    }


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
    from NeonatalSegLib.scans.write import write_image

    try:
        write_image(image, path, level=0)
    except OSError as error:
        needed = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
        raise NeonatalSegError(
            f"The result could not be written to the temporary folder {path.parent}: it needs {needed / 1e6:.1f} MB, "
            "and the disk is full or does not allow a file of that size. Free some space, or set the environment "
            "variable TMPDIR (on Windows TEMP) to a folder on another disk, and run this again."
        ) from error
    return str(path)


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
