"""Labelled scans that a model does not know well, prepared once: where the simulated annotator works."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.brain_finder.find import brain_distance
from NeonatalSegLib.datasets.bids import Subject, find_subjects
from NeonatalSegLib.datasets.templates import find_templates
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_file, write_text
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.preprocessing import foreground, labels_on, prepare
from NeonatalSegLib.scans.scan import Scan, load_scan, make_scan
from NeonatalSegLib.scans.way_back import most_probable
from NeonatalSegLib.segmentation.segmenter import Segmenter, entropy

GAMMA = 0.35  # of the changed contrast: fluid and tissue are brightened until they nearly meet
BIAS = 0.8  # amplitude of the changed contrast's multiplicative field: from 1 - BIAS to 1 + BIAS over the head


@dataclass(frozen=True)
class DomainScan:
    """A scan on the network's grid with its truth, and what the model makes of it before any annotation.

    Attributes:
        image: (2, z, y, x) float16.
        labels: (z, y, x) uint8, the truth.
        prediction: (z, y, x) uint8, of the model.
        uncertainty: (z, y, x) float16, entropy 0-1 of the model.
        grid: where all of them lie.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    prediction: np.ndarray
    uncertainty: np.ndarray
    grid: Grid


def read_templates(folder: Path, ages_weeks: Sequence[int]) -> list[tuple[Scan, sitk.Image]]:
    """Age templates with their labels (``datasets.templates.find_templates``)."""
    return [_read(template) for template in find_templates(folder, ages_weeks)]


def read_labelled(folder: Path, names: Sequence[str]) -> list[tuple[Scan, sitk.Image]]:
    """Subjects of a BIDS folder with label maps; ``names`` empty: all that have one."""
    found = {s.name: s for s in find_subjects(folder)}
    if missing := [name for name in names if name not in found]:
        raise NeonatalSegError(f"There is no subject {missing[0]} in {folder}.")
    chosen = [found[name] for name in names] or [s for s in found.values() if s.labels is not None]
    pairs = []
    for s in chosen:
        if s.labels is None:
            raise NeonatalSegError(f"{s.name} in {folder} has no label map (*_dseg): its truth cannot be revealed.")
        pairs.append(_read(s))
    return pairs


def _read(subject: Subject) -> tuple[Scan, sitk.Image]:
    assert subject.labels is not None
    scan = load_scan(subject.t1, subject.t2, name=subject.name, age_weeks=subject.age_weeks)
    return scan, read_labels(subject.labels).image


def with_changed_contrast(scan: Scan, seed: int) -> Scan:
    """T1 alone, with a gamma curve and a smooth bias field in a direction that the seed draws."""
    if scan.t1 is None:
        raise NeonatalSegError(f"{scan.name} has no T1, whose contrast is to be changed.")
    array = sitk.GetArrayFromImage(scan.t1).astype(np.float32)
    inside = sitk.GetArrayFromImage(foreground(scan.t1)) > 0  # a copy: a view would outlive its image
    low, high = np.percentile(array[inside], (0.1, 99.9))
    unit = np.clip((array - low) / (high - low), 0, 1) ** GAMMA
    direction = np.random.default_rng(seed).normal(size=3)
    direction /= np.linalg.norm(direction)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in array.shape), indexing="ij")
    ramp = sum(d * axis for d, axis in zip(direction, axes, strict=True))
    field = 1.0 + BIAS * np.clip(ramp, -1, 1)
    changed = np.where(inside, 1.0 + 999.0 * unit * field, 0.0).astype(np.float32)
    image = sitk.GetImageFromArray(changed)
    image.CopyInformation(scan.t1)
    return make_scan(image, None, name=scan.name, age_weeks=scan.age_weeks)


def prepare_domain(
    folder: Path, pairs: Callable[[], Sequence[tuple[Scan, sitk.Image]]], segmenter: Segmenter, wanted: str
) -> list[DomainScan]:
    """Prepare and predict what is not in ``folder`` yet; read the rest.

    The folder belongs to one model and one choice of scans, which ``wanted`` says in words.
    """
    index = folder / "domain.json"
    claim = {"model": segmenter.model.name, "sha256": segmenter.model.hash, "wanted": wanted}
    if index.is_file():
        known = read_object(index, "index of prepared scans")
        if {key: known.get(key) for key in claim} != claim:
            raise NeonatalSegError(
                f"{folder} was prepared with the model {known.get('model')} and {known.get('wanted')}: "
                "choose a new folder."
            )
        return [read_domain_scan(folder, name) for name in known["scans"]]
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for scan, labels in pairs():
        _prepare_scan(folder, scan, labels, segmenter)
        names.append(scan.name)
    write_text(index, json.dumps({**claim, "scans": names}, indent=1))
    return [read_domain_scan(folder, name) for name in names]


def read_domain_scan(folder: Path, name: str) -> DomainScan:
    """One scan of a prepared domain."""
    with np.load(folder / f"{name}.npz") as kept:
        size = tuple(int(n) for n in kept["labels"].shape[::-1])
        spacing = float(kept["spacing_mm"])
        grid = Grid(size, (spacing,) * 3, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))  # type: ignore[arg-type]
        return DomainScan(
            name, kept["image"], kept["labels"], kept["prediction"], kept["uncertainty"].astype(np.float32), grid
        )


def _prepare_scan(folder: Path, scan: Scan, labels: sitk.Image, segmenter: Segmenter) -> None:
    from NeonatalSegLib.finetuning.mixing import HELD_OUT_OVERLAP
    from NeonatalSegLib.networks.sliding_window import predict_windows

    network = segmenter.model.network
    prepared = prepare(scan, segmenter.model.spacing_mm, find_brain=brain_distance)
    probabilities, _ = predict_windows(
        segmenter.engine, prepared.array, network.patch, network.stride, overlap=HELD_OUT_OVERLAP
    )
    arrays: dict[str, Any] = {
        "image": prepared.array.astype(np.float16),
        "labels": labels_on(prepared.grid, labels),
        "prediction": most_probable(probabilities),
        "uncertainty": entropy(probabilities, axis=0).astype(np.float16),
        "spacing_mm": segmenter.model.spacing_mm,
    }
    write_file(folder / f"{scan.name}.npz", lambda part: np.savez(part, **arrays))
