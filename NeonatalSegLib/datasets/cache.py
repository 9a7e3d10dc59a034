"""Prepared arrays on disk: built once with SimpleITK, read anywhere with numpy alone.

A cache is a folder with ``cache.json`` and, for every subject, ``<name>_image.npy`` ((2, z, y, x) float16, z-scored,
T1 and T2, absent = 0), ``<name>_labels.npy`` ((z, y, x) uint8) and ``<name>_inside.npy`` ((z, y, x) bool, the head).
Carry it to a machine with a GPU as it is. A subject whose files or age have changed is prepared again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NeonatalSegLib.datasets.kinds import NEWBORN, PHANTOM, PHANTOM_PREFIX, kind_by_name
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_file, write_text
from NeonatalSegLib.files.names import check_name
from NeonatalSegLib.files.settings import read_object

if TYPE_CHECKING:  # it leads to SimpleITK, which a machine that only trains may not have
    from NeonatalSegLib.datasets.bids import Subject

FORMAT = 1


@dataclass(frozen=True)
class CachedSubject:
    """One subject's prepared arrays, memory-mapped when asked for.

    Attributes:
        merged: as in ``bids.Subject``.
        digest: SHA-256 of the arrays; empty in caches of older versions.
        kind: one of ``datasets/kinds.py``.
    """

    name: str
    folder: Path
    age_weeks: float | None
    merged: tuple[tuple[int, ...], ...] = ()
    digest: str = ""
    kind: str = NEWBORN

    def image(self) -> np.ndarray:
        """(2, z, y, x) float16 on the network's grid."""
        return np.load(self.folder / f"{self.name}_image.npy", mmap_mode="r")

    def labels(self) -> np.ndarray:
        """(z, y, x) uint8, 0-9."""
        return np.load(self.folder / f"{self.name}_labels.npy", mmap_mode="r")

    def inside(self) -> np.ndarray | None:
        """(z, y, x) bool, the head; None in caches of older versions."""
        file = self.folder / f"{self.name}_inside.npy"
        return np.load(file, mmap_mode="r") if file.is_file() else None


def build_cache(
    subjects: Sequence[Subject],
    folder: str | Path,
    spacing_mm: float,
    *,
    phantoms: int = 0,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> list[CachedSubject]:
    """Prepare every subject that the cache does not hold as it is now; ``phantoms`` synthetic newborns are added.

    Args:
        report: is given in words what is doubtful about a scan that is prepared.

    Returns:
        These subjects, sorted by name, and not what else the cache holds.

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
        check_name(subject.name, "newborn")
        facts: dict[str, Any] = {"age_weeks": subject.age_weeks, "kind": subject.kind, "source": _source(subject)}
        if subject.merged:
            facts["merged"] = [list(group) for group in subject.merged]
        if not _holds(index, subject.name, facts):
            _add(folder, index, subject.name, facts, *_prepare_subject(subject, spacing_mm, report))
    drawn = [f"{PHANTOM_PREFIX}{number:02d}" for number in range(phantoms)]
    for number, name in enumerate(drawn):
        facts = {"kind": PHANTOM, "source": {"seed": seed + number}}
        if not _holds(index, name, facts):
            age, image, labels = prepare_phantom(seed + number, spacing_mm)
            _add(folder, index, name, {"age_weeks": age, **facts}, image, labels, None)
    wanted = {s.name for s in subjects} | set(drawn)
    return [s for s in read_cache(folder) if s.name in wanted]


def read_cache(folder: str | Path) -> list[CachedSubject]:
    """The subjects of a cache, sorted by name; NeonatalSegError where there is none or it is of another format."""
    folder = Path(folder)
    index = _read_index(folder)
    return [
        CachedSubject(
            name,
            folder,
            entry["age_weeks"],
            merged=tuple(tuple(group) for group in entry.get("merged", ())),
            digest=entry.get("sha256", ""),
            kind=entry["kind"],
        )
        for name, entry in sorted(index["subjects"].items())
    ]


def cache_spacing(folder: str | Path) -> float:
    """Edge of the voxels of a cache's arrays in mm; NeonatalSegError as :func:`read_cache`."""
    return float(_read_index(Path(folder))["spacing_mm"])


def _read_index(folder: Path) -> dict:
    try:
        index = read_object(folder / "cache.json", "index of prepared arrays")
    except NeonatalSegError as error:
        raise NeonatalSegError(f"{folder} holds no cache of prepared arrays (cache.json): build one first.") from error
    if index.get("format") != FORMAT:
        raise NeonatalSegError(
            f"{folder} is a cache of format {index.get('format')}, expected {FORMAT}: build it again."
        )
    for name, entry in index["subjects"].items():
        entry.setdefault("kind", kind_by_name(name))  # caches of older versions do not say it
    return index


def data_digest(subjects: Sequence[CachedSubject]) -> str:
    """SHA-256 of who is in the data, how old, and of all arrays: results of two different data sets never mix."""
    facts = [[s.name, s.age_weeks, s.digest] for s in sorted(subjects, key=lambda s: s.name)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _source(subject: Subject) -> dict[str, list[Any]]:
    """Name, size and time of change of the subject's files."""
    files = {"t1": subject.t1, "t2": subject.t2, "labels": subject.labels}
    return {
        key: [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for key, file in files.items()
        if file is not None and file.exists()
    }


def _holds(index: dict[str, Any], name: str, facts: dict[str, Any]) -> bool:
    """True where the index has these facts of a subject, and no merged classes that they do not have."""
    entry = index["subjects"].get(name)
    return entry is not None and {**entry, **facts} == entry and entry.get("merged") == facts.get("merged")


def _add(
    folder: Path,
    index: dict[str, Any],
    name: str,
    facts: dict[str, Any],
    image: np.ndarray,
    labels: np.ndarray,
    inside: np.ndarray | None,
) -> None:
    arrays = {"image": image.astype(np.float16), "labels": labels}
    if inside is not None:
        arrays["inside"] = inside
    digest = hashlib.sha256()
    for key, array in arrays.items():
        # Beside, then replaced: whoever has the old array mapped keeps it.
        write_file(folder / f"{name}_{key}.npy", lambda part, array=array: np.save(part, array))  # type: ignore[misc]
        digest.update(array.tobytes())
    index["subjects"][name] = {**facts, "sha256": digest.hexdigest()}
    write_text(folder / "cache.json", json.dumps(index, indent=1))


def _prepare_subject(
    subject: Subject, spacing_mm: float, report: Callable[[str], None] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from NeonatalSegLib.scans.labels import read_labels
    from NeonatalSegLib.scans.preprocessing import labels_on, prepare
    from NeonatalSegLib.scans.scan import load_scan

    if subject.labels is None:
        raise NeonatalSegError(f"{subject.name} has no label map (*_dseg): it cannot be trained on.")
    prepared = prepare(load_scan(subject.t1, subject.t2, name=subject.name), spacing_mm)
    found = read_labels(subject.labels)
    labels = prepared.target.image(found.on_grid(prepared.target, str(subject.labels), tolerance_mm=0.1))
    if report:
        for warning in (*prepared.warnings, *found.warnings):
            report(f"{subject.name}: {warning}")
    return prepared.array, labels_on(prepared.grid, labels), prepared.inside


def prepare_phantom(seed: int, spacing_mm: float) -> tuple[float, np.ndarray, np.ndarray]:
    from NeonatalSegLib.datasets.phantom import draw_newborn
    from NeonatalSegLib.scans.preprocessing import labels_on, prepare

    age = float(np.random.default_rng(seed).uniform(34, 43))
    phantom = draw_newborn(age_weeks=age, seed=seed, spacing_mm=spacing_mm)
    prepared = prepare(phantom.scan, spacing_mm)
    return age, prepared.array, labels_on(prepared.grid, phantom.labels)
