"""What a segmentation leaves on disk: label map, volumes, side-car and picture; all of them or none.

For a scan named ``sub-01``: ``sub-01_dseg.nii.gz`` (uint8, 0-9), ``sub-01_volumes.tsv`` (mL), ``sub-01_dseg.json``
(model, versions, device, times, inputs, warnings), ``sub-01_dseg.png``, ``sub-01_report.html``; on request
``sub-01_probseg.nii.gz`` with ``sub-01_probseg.json``, ``sub-01_uncertainty.nii.gz``, and ``sub-01_dseg.dcm`` with
``sub-01_volumes.dcm``.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError, reason_of
from NeonatalSegLib.evaluation.metrics import volumes_table
from NeonatalSegLib.files.atomic import sha256, try_folder
from NeonatalSegLib.files.names import check_name, check_path
from NeonatalSegLib.files.together import finish_left, make_staging, move_together
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.scans.write import write_image
from NeonatalSegLib.segmentation import dicom_out
from NeonatalSegLib.segmentation.overlay import draw_overlay, upright
from NeonatalSegLib.segmentation.ownership import check_replaceable, check_same_scan, ours_among, seal
from NeonatalSegLib.segmentation.pages.scan_page import write_scan_page
from NeonatalSegLib.segmentation.segmenter import METHOD, Segmentation, Segmenter, SegmentOptions
from NeonatalSegLib.tissues import TISSUES

NOTICE = "Research use only, not for diagnosis."


def segment_to_folder(
    segmenter: Segmenter,
    scan: Scan,
    folder: str | Path,
    *,
    name: str | None = None,
    options: SegmentOptions = SegmentOptions(),
    progress: Progress | None = None,
    picture: bool = True,
    overwrite: bool = False,
    of_study: bool = False,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Path]:
    """One scan to files: what ``neonatalseg segment`` does, and ``batch`` for every scan of a study.

    Args:
        of_study: the name is one newborn's in this folder, so that a result of other images under it is an older one.
        facts: for the side-car besides, or in place of what it says.

    Returns:
        What was written, by kind (see :func:`write_outputs`).

    Raises:
        NeonatalSegError: no head in the scan, DICOM is wanted and cannot be made (``dicom_out.check_possible``), the
            folder cannot be written, or holds files of these names that are not ours
            (``ownership.check_replaceable``) or of another scan (``ownership.check_same_scan``); nothing is left.
    """
    name = check_name(name or scan.name, "scan")
    if options.dicom_seg:
        dicom_out.check_possible(scan)
    check_writable(folder)
    finish_left(Path(folder))  # what a killed run left half moved is ours
    check_replaceable(Path(folder), f"{name}_dseg.json", _names(name, options, picture), overwrite=overwrite)
    check_same_scan(Path(folder), f"{name}_dseg.json", scan.contents, overwrite=overwrite or of_study)
    segmentation = segmenter.segment(scan, options, progress)
    return write_outputs(
        segmentation, scan, folder, name=name, options=options, picture=picture, overwrite=overwrite, facts=facts
    )


def write_outputs(
    segmentation: Segmentation,
    scan: Scan,
    folder: str | Path,
    *,
    name: str | None = None,
    options: SegmentOptions | None = None,
    picture: bool = True,
    overwrite: bool = False,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Path]:
    """Write a segmentation into ``folder`` (made where missing); files of an earlier run are replaced, no others.

    What that run had and this one has not (another choice of options) is removed.

    Everything is written into a hidden folder beside the target first and moved at the end, the side-car last: a full
    disk or an interruption leaves what was there before, and a kill between two moves is finished by the next run.

    Returns:
        Paths by kind: "dseg", "volumes", "sidecar", "report", and where made "picture", "probabilities",
        "probabilities_sidecar", "uncertainty", "dicom_seg", "dicom_sr".
    """
    folder, name = Path(folder), check_name(name or scan.name, "scan")
    check_writable(folder)
    started = time.perf_counter()
    try:
        staging = make_staging(folder)
    except OSError as error:
        raise NeonatalSegError(_why_not_written(folder, error)) from error
    try:
        files = _write_images(segmentation, scan, staging, name)
        files["volumes"] = staging / f"{name}_volumes.tsv"
        files["volumes"].write_text(volumes_table(segmentation.volumes_ml), encoding="utf-8")
        seen = upright(scan.reference, segmentation.label_map) if picture else None
        if seen:
            files["picture"] = staging / f"{name}_dseg.png"
            draw_overlay(seen, files["picture"], title=name)
        if options is not None and options.dicom_seg:
            files["dicom_seg"], files["dicom_sr"] = staging / f"{name}_dseg.dcm", staging / f"{name}_volumes.dcm"
            dicom_out.write_dicom(dicom_out.source_of(scan), segmentation, files["dicom_seg"], files["dicom_sr"])
        segmentation.times_s["write"] = time.perf_counter() - started
        facts = {**sidecar(segmentation, scan, options), **facts}
        if "probabilities" in files:  # BIDS wants it beside the image
            files["probabilities_sidecar"] = staging / f"{name}_probseg.json"
            files["probabilities_sidecar"].write_text(_probabilities_sidecar(facts), encoding="utf-8")
        files["report"] = staging / f"{name}_report.html"
        write_scan_page(files["report"], name, facts, segmentation.volumes_ml, seen, files.get("picture"))
        facts["Files"] = {path.name: sha256(path) for path in files.values()}
        facts["Seal"] = seal(facts)
        files["sidecar"] = staging / f"{name}_dseg.json"  # the last to move: what it names is there
        files["sidecar"].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        names = [path.name for path in files.values()]
        check_replaceable(folder, names[-1], names, overwrite=overwrite)
        # What the last result had and this one has not would pass for a part of it.
        every = SegmentOptions(probabilities=True, uncertainty=True, dicom_seg=True)
        left_over = ours_among(folder, names[-1], set(_names(name, every, True)) - set(names))
        move_together(staging, names)
        for path in left_over:
            path.unlink(missing_ok=True)
        return {kind: folder / path.name for kind, path in files.items()}
    except (OSError, RuntimeError) as error:
        raise NeonatalSegError(_why_not_written(folder, error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _names(name: str, options: SegmentOptions, picture: bool) -> list[str]:
    """Of all files that are going to be written."""
    kinds = ["dseg.nii.gz", "volumes.tsv", "dseg.json", "report.html", *(["dseg.png"] if picture else [])]
    kinds += ["probseg.nii.gz", "probseg.json"] if options.probabilities else []
    kinds += ["uncertainty.nii.gz"] if options.uncertainty else []
    kinds += ["dseg.dcm", "volumes.dcm"] if options.dicom_seg else []
    return [f"{name}_{kind}" for kind in kinds]


def _write_images(segmentation: Segmentation, scan: Scan, staging: Path, name: str) -> dict[str, Path]:
    files = {}
    for kind, suffix, image in (
        ("dseg", "dseg", segmentation.label_map),
        ("probabilities", "probseg", segmentation.probabilities),
        ("uncertainty", "uncertainty", segmentation.uncertainty),
    ):
        if image is not None:
            files[kind] = staging / f"{name}_{suffix}.nii.gz"
            write_image(image, files[kind], forms=scan.forms)
    return files


def sidecar(segmentation: Segmentation, scan: Scan, options: SegmentOptions | None = None) -> dict[str, Any]:
    """The facts of one run for the JSON file beside the label map."""
    reference = scan.sources.get("t2", scan.sources.get("t1"))
    return {
        "Description": "Tissue segmentation of a newborn's brain by NeonatalSeg",
        "Notice": NOTICE,
        "Name": scan.name,
        "Inputs": {key: Path(source).name for key, source in scan.sources.items()},
        "InputsSHA256": dict(scan.contents),
        **({"SpatialReference": Path(reference).name} if reference else {}),
        "AgeWeeks": scan.age_weeks,
        "HeadMasked": segmentation.head_masked,
        **({} if segmentation.inside_skull_ml is None else {"InsideSkullML": round(segmentation.inside_skull_ml, 1)}),
        **({} if segmentation.age_weeks is None else {"PredictedAgeWeeks": round(segmentation.age_weeks, 2)}),
        **({} if (age := segmentation.volumes_age_weeks) is None else {"AgeByVolumesWeeks": round(age, 1)}),
        "Labels": {str(t.index): t.name for t in TISSUES},
        "Method": METHOD,
        "Model": {"Name": segmentation.model_name, "SHA256": segmentation.model_hash},
        "Options": vars(options) if options else {},
        "Device": segmentation.device,
        "Engine": segmentation.engine,
        "SecondsPerStage": {k: round(v, 3) for k, v in segmentation.times_s.items()},
        "RegistrationQuality": segmentation.registration_quality,
        "VolumesML": {k: round(v, 3) for k, v in segmentation.volumes_ml.items() if k != "background"},
        "Plausibility": segmentation.plausibility.to_json(),
        "Warnings": segmentation.warnings,
        "Versions": versions(),
    }


def _probabilities_sidecar(facts: Mapping[str, Any]) -> str:
    kept = {key: facts[key] for key in ("Sources", "SpatialReference") if key in facts}
    labels = {"Description": "Probability of each class", "LabelMap": [tissue.abbreviation for tissue in TISSUES]}
    return json.dumps({**labels, **kept}, indent=1) + "\n"


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    out = {"neonatalseg": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in ("openvino", "torch", "monai", "SimpleITK", "numpy"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue  # of the engines, one is enough
    return out


def is_as_written(folder: Path, facts: Mapping[str, Any]) -> bool:
    """True where every file that a side-car in ``folder`` names is there, and is the one that was written with it."""
    try:
        return all(sha256(folder / str(name)) == digest for name, digest in facts["Files"].items())
    except (OSError, KeyError, AttributeError):
        return False


def check_writable(folder: str | Path) -> None:
    """Make ``folder`` and try one file in it; NeonatalSegError in words where that fails.

    Called before the work, so that nobody waits for a result that cannot be kept.
    """
    folder = check_path(folder)
    try:
        try_folder(folder)
    except OSError as error:
        raise NeonatalSegError(_why_not_written(folder, error)) from error


def _why_not_written(folder: Path, error: Exception) -> str:
    reason = reason_of(error)
    return f"The results could not be written to {folder} ({reason}): free space or choose another folder with --out."
