"""Prepared arrays on disk: built once with SimpleITK, read anywhere with numpy alone.

A cache is a folder with ``cache.json`` and, for every subject, ``<name>_image.npy`` ((2, z, y, x) float16, z-scored,
T1 and T2, absent = 0) and ``<name>_labels.npy`` ((z, y, x) uint8). Carry it to a machine with a GPU as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES

if TYPE_CHECKING:  # it leads to SimpleITK, which a machine that only trains may not have
    from NeonatalSegLib.datasets.bids import Subject

FORMAT = 1


@dataclass(frozen=True)
class CachedSubject:
    """One subject's prepared arrays, memory-mapped when asked for; ``merged`` as in ``bids.Subject``."""

    name: str
    folder: Path
    age_weeks: float | None
    merged: tuple[tuple[int, ...], ...] = ()

    def image(self) -> np.ndarray:
        """(2, z, y, x) float16 on the network's grid."""
        return np.load(self.folder / f"{self.name}_image.npy", mmap_mode="r")

    def labels(self) -> np.ndarray:
        """(z, y, x) uint8, 0-9."""
        return np.load(self.folder / f"{self.name}_labels.npy", mmap_mode="r")


def build_cache(
    subjects: Sequence[Subject], folder: str | Path, spacing_mm: float, *, phantoms: int = 0, seed: int = 0
) -> list[CachedSubject]:
    """Prepare every subject that is not in the cache yet; ``phantoms`` synthetic newborns are added.

    Raises:
        NeonatalSegError: the folder holds a cache of another spacing, a subject has no labels, its labels lie on
            another grid, or a label value is unknown; file and values are named.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index_file = folder / "cache.json"
    index: dict[str, Any] = {"format": FORMAT, "spacing_mm": spacing_mm, "subjects": {}}
    if index_file.exists():
        index = _read_index(folder)
        if index["spacing_mm"] != spacing_mm:
            raise NeonatalSegError(
                f"{folder} holds arrays at {index['spacing_mm']} mm, {spacing_mm} mm are wanted: choose another folder."
            )
    for subject in subjects:
        if subject.name not in index["subjects"]:
            arrays = _prepare_subject(subject, spacing_mm)
            _add(folder, index, subject.name, subject.age_weeks, *arrays, subject.merged)
    for number in range(phantoms):
        name = f"phantom{number:02d}"
        if name not in index["subjects"]:
            age, image, labels = prepare_phantom(seed + number, spacing_mm)
            _add(folder, index, name, age, image, labels)
    return read_cache(folder)


def read_cache(folder: str | Path) -> list[CachedSubject]:
    """The subjects of a cache, sorted by name; NeonatalSegError where there is none or it is of another format."""
    folder = Path(folder)
    index = _read_index(folder)
    return [
        CachedSubject(name, folder, entry["age_weeks"], tuple(tuple(group) for group in entry.get("merged", ())))
        for name, entry in sorted(index["subjects"].items())
    ]


def _read_index(folder: Path) -> dict:
    try:
        index = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NeonatalSegError(f"{folder} holds no cache of prepared arrays (cache.json): build one first.") from error
    if index.get("format") != FORMAT:
        raise NeonatalSegError(
            f"{folder} is a cache of format {index.get('format')}, expected {FORMAT}: build it again."
        )
    return index


def _add(
    folder: Path,
    index: dict,
    name: str,
    age: float | None,
    image: np.ndarray,
    labels: np.ndarray,
    merged: Sequence[Sequence[int]] = (),
) -> None:
    np.save(folder / f"{name}_image.npy", image.astype(np.float16))
    np.save(folder / f"{name}_labels.npy", labels)
    index["subjects"][name] = {"age_weeks": age} | ({"merged": merged} if merged else {})
    part = folder / "cache.json.part"
    part.write_text(json.dumps(index, indent=1), encoding="utf-8")
    os.replace(part, folder / "cache.json")


def _prepare_subject(subject: Subject, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    from NeonatalSegLib.preprocessing import labels_on, prepare
    from NeonatalSegLib.scan import load_scan

    if subject.labels is None:
        raise NeonatalSegError(f"{subject.name} has no label map (*_dseg): it cannot be trained on.")
    prepared = prepare(load_scan(subject.t1, subject.t2, name=subject.name), spacing_mm)
    labels = read_labels(subject.labels)
    if not prepared.target.is_like(type(prepared.target).of(labels), tolerance_mm=0.1):
        raise NeonatalSegError(
            f"The label map {subject.labels} does not lie on the grid of its scan: resample it first."
        )
    return prepared.array, labels_on(prepared.grid, labels)


def read_labels(path: str | Path):  # type: ignore[no-untyped-def]  # a SimpleITK image; SimpleITK is imported late
    """A label map as a uint8 SimpleITK image; NeonatalSegError names values that are not 0-9."""
    import SimpleITK as sitk

    from NeonatalSegLib.scan import read_image

    image = read_image(path)
    values = np.unique(sitk.GetArrayViewFromImage(image))
    unknown = [v for v in values.tolist() if v != int(v) or not 0 <= v < NUMBER_OF_CLASSES]
    if unknown:
        text = ", ".join(f"{v:g}" for v in unknown[:8])
        raise NeonatalSegError(f"{path} holds the unknown label values {text}: expected whole numbers 0-9.")
    return sitk.Cast(image, sitk.sitkUInt8)


def prepare_phantom(seed: int, spacing_mm: float) -> tuple[float, np.ndarray, np.ndarray]:
    from NeonatalSegLib.datasets.phantom import draw_newborn
    from NeonatalSegLib.preprocessing import labels_on, prepare

    age = float(np.random.default_rng(seed).uniform(34, 43))
    phantom = draw_newborn(age_weeks=age, seed=seed, spacing_mm=spacing_mm)
    prepared = prepare(phantom.scan, spacing_mm)
    return age, prepared.array, labels_on(prepared.grid, phantom.labels)
