"""Prepared arrays on disk: built once with SimpleITK, read anywhere with numpy alone.

A cache is a folder with ``cache.json`` and, for every subject, ``<name>_image.npy`` ((2, z, y, x) float16, z-scored,
T1 and T2, absent = 0), ``<name>_labels.npy`` ((z, y, x) uint8) and ``<name>_inside.npy`` ((z, y, x) bool, the head):
6 bytes a voxel. Carry it to a machine with a GPU as it is. A subject whose files or age have changed is prepared again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
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
    from NeonatalSegLib.datasets.splits import Aged

FORMAT = 1
BYTES_A_VOXEL = 6  # two float16 images, labels and the head's mask


@dataclass(frozen=True)
class CachedSubject:
    """One subject's prepared arrays, memory-mapped when asked for.

    Attributes:
        merged: as in ``bids.Subject``.
        digest: SHA-256 of the arrays; empty in caches of older versions.
        kind: one of ``datasets/kinds.py``.
        warnings: what was noticed when it was prepared, such as a T1 and a T2 that do not agree.
    """

    name: str
    folder: Path
    age_weeks: float | None
    merged: tuple[tuple[int, ...], ...] = ()
    digest: str = ""
    kind: str = NEWBORN
    warnings: tuple[str, ...] = ()

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
    processes: int = 1,
    keep_going: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[CachedSubject]:
    """Prepare every subject that the cache does not hold as it is now; ``phantoms`` synthetic newborns are added.

    Each subject is in the cache once it is prepared: an interrupted call goes on where it was.

    Args:
        processes: subjects at once, each in a process of its own.
        keep_going: a subject that cannot be prepared is left out and kept in mind (:func:`failures`) instead of
            ending the call; it is tried again when its files change.
        report: is given in words what is doubtful about a scan that is prepared.
        progress: given one line for every prepared subject, with the time left.

    Returns:
        These subjects, sorted by name, and not what else the cache holds.

    Raises:
        NeonatalSegError: the folder holds a cache of another spacing, a subject has no labels, its labels lie on
            another grid, or a label value is unknown; file and values are named.
    """
    folder, report, progress = Path(folder), report or (lambda _: None), progress or (lambda _: None)
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"format": FORMAT, "spacing_mm": spacing_mm, "subjects": {}}
    if (folder / "cache.json").exists():
        index = _read_index(folder)
        if index["spacing_mm"] != spacing_mm:
            raise NeonatalSegError(
                f"{folder} holds arrays at {index['spacing_mm']} mm, {spacing_mm} mm are wanted: choose another folder."
            )
    for subject in subjects:
        check_name(subject.name, "newborn")
    facts = {subject.name: _facts(subject) for subject in subjects}
    failed = index.setdefault("failed", {})
    todo = [s for s in subjects if not _holds(index, s.name, facts[s.name])]
    known = [s for s in todo if keep_going and {**failed.get(s.name, {}), **facts[s.name]} == failed.get(s.name)]
    for subject in known:
        progress(f"{subject.name} is left out: {failed[subject.name]['reason']}")
    todo = [s for s in todo if s not in known]
    started = time.monotonic()
    for number, (subject, found) in enumerate(_prepared(todo, folder, spacing_mm, processes), 1):
        left = (time.monotonic() - started) / number * (len(todo) - number) / 60
        if isinstance(found, str) and not keep_going:
            raise NeonatalSegError(f"{found} ({subject.name}; --exclude leaves it out, --keep-going every such scan.)")
        if isinstance(found, str):
            failed[subject.name] = {**facts[subject.name], "reason": found}
            told = f"left out: {found}"
        else:
            failed.pop(subject.name, None)
            index["subjects"][subject.name] = {**facts[subject.name], **found}
            told = " ".join(found.get("warnings", ())) or "prepared"
            for warning in found.get("warnings", ()):
                report(f"{subject.name}: {warning}")
        _write_index(folder, index)
        progress(f"{number}/{len(todo)} {subject.name}: {told}, {left:.0f} min left")
    drawn = [f"{PHANTOM_PREFIX}{number:02d}" for number in range(phantoms)]
    for number, name in enumerate(drawn):
        source = {"kind": PHANTOM, "source": {"seed": seed + number}}
        if not _holds(index, name, source):
            age, image, labels = prepare_phantom(seed + number, spacing_mm)
            index["subjects"][name] = {"age_weeks": age, **source, **_save(folder, name, image, labels, None)}
            _write_index(folder, index)
    wanted = {s.name for s in subjects} | set(drawn)
    return [s for s in read_cache(folder) if s.name in wanted and s.name not in failed]


def _prepared(
    todo: Sequence[Subject], folder: Path, spacing_mm: float, processes: int
) -> Iterator[tuple[Subject, dict[str, Any] | str]]:
    """(subject, its entry or what is wrong with it), as they get done."""
    if processes < 2 or len(todo) < 2:
        for subject in todo:
            yield subject, _prepare_and_save(subject, folder, spacing_mm)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # SimpleITK's threads do not survive a fork
    with ProcessPoolExecutor(min(processes, len(todo)), mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(_prepare_and_save, subject, folder, spacing_mm): subject for subject in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise NeonatalSegError(
                "A process that prepared a scan was ended from outside, most likely for want of memory. Take fewer "
                "--processes and give the command again: what is prepared stays."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _prepare_and_save(subject: Subject, folder: Path, spacing_mm: float) -> dict[str, Any] | str:
    try:
        image, labels, inside, warnings = _prepare_subject(subject, spacing_mm)
    except (NeonatalSegError, RuntimeError, ValueError, EOFError) as error:  # ITK and numpy: a file that is damaged
        return str(error) if isinstance(error, NeonatalSegError) else f"{subject.name} could not be prepared: {error}."
    entry = _save(folder, subject.name, image, labels, inside)
    return {**entry, "warnings": list(warnings)} if warnings else entry


def failures(folder: str | Path) -> dict[str, str]:
    """Why subjects were left out by ``build_cache(keep_going=True)``, by name."""
    return {name: entry["reason"] for name, entry in _read_index(Path(folder)).get("failed", {}).items()}


def bytes_needed(subjects: Sequence[Subject], folder: str | Path, spacing_mm: float) -> int:
    """Disk that :func:`build_cache` takes at most for those that the cache does not hold; reads headers alone.

    An upper bound: what lies outside the head is cut off before it is written.
    """
    import SimpleITK as sitk

    held: set[str] = set()
    if (Path(folder) / "cache.json").is_file():
        held = set(_read_index(Path(folder))["subjects"])
    total = 0.0
    for subject in subjects:
        if subject.name in held or (image := subject.t2 or subject.t1) is None:
            continue
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(image))
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # told, with its file, when it is prepared
            continue
        sides = zip(reader.GetSize(), reader.GetSpacing(), strict=True)
        total += float(np.prod([count * mm / spacing_mm + 4 for count, mm in sides])) * BYTES_A_VOXEL
    return int(total)


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
            warnings=tuple(entry.get("warnings", ())),
        )
        for name, entry in sorted(index["subjects"].items())
    ]


def remember_population(folder: str | Path, everybody: Sequence[Aged]) -> None:
    """Write down who is in the data and how old, prepared or not: splits are drawn from all of them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"population": sorted([s.name, s.age_weeks] for s in everybody)}, indent=1)
    write_text(folder / "population.json", text)


def population(folder: str | Path) -> list[Aged]:
    """Who was in the data that the cache was made from; whom it holds, where nobody wrote that down.

    Raises:
        NeonatalSegError: there is no cache, or the list is damaged.
    """
    from NeonatalSegLib.datasets.splits import Member
    from NeonatalSegLib.files.settings import read_object

    file = Path(folder) / "population.json"
    if not file.is_file():
        return list(read_cache(folder))
    return [Member(name, age) for name, age in read_object(file, "list of the data's scans")["population"]]


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


def _facts(subject: Subject) -> dict[str, Any]:
    """What the cache remembers of a subject to know whether it has changed."""
    facts: dict[str, Any] = {"age_weeks": subject.age_weeks, "kind": subject.kind, "source": _source(subject)}
    return {**facts, "merged": [list(group) for group in subject.merged]} if subject.merged else facts


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


def _save(folder: Path, name: str, image: np.ndarray, labels: np.ndarray, inside: np.ndarray | None) -> dict[str, str]:
    """Write a subject's arrays, each beside and then in its place: whoever has the old one mapped keeps it."""
    arrays = {"image": image.astype(np.float16), "labels": labels}
    if inside is not None:
        arrays["inside"] = inside
    digest = hashlib.sha256()
    for key, array in arrays.items():
        write_file(folder / f"{name}_{key}.npy", lambda part, array=array: np.save(part, array))  # type: ignore[misc]
        digest.update(array.tobytes())
    return {"sha256": digest.hexdigest()}


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    write_text(folder / "cache.json", json.dumps(index, indent=1))


def _prepare_subject(subject: Subject, spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    from NeonatalSegLib.scans.labels import read_labels
    from NeonatalSegLib.scans.preprocessing import labels_on, prepare
    from NeonatalSegLib.scans.scan import load_scan

    if subject.labels is None:
        raise NeonatalSegError(f"{subject.name} has no label map (*_dseg): it cannot be trained on.")
    prepared = prepare(load_scan(subject.t1, subject.t2, name=subject.name), spacing_mm)
    found = read_labels(subject.labels)
    labels = prepared.target.image(found.on_grid(prepared.target, str(subject.labels), tolerance_mm=0.1))
    doubts = (*prepared.warnings, *found.warnings)
    return prepared.array, labels_on(prepared.grid, labels), prepared.inside, doubts


def prepare_phantom(seed: int, spacing_mm: float) -> tuple[float, np.ndarray, np.ndarray]:
    from NeonatalSegLib.datasets.phantom import draw_newborn
    from NeonatalSegLib.scans.preprocessing import labels_on, prepare

    age = float(np.random.default_rng(seed).uniform(34, 43))
    phantom = draw_newborn(age_weeks=age, seed=seed, spacing_mm=spacing_mm)
    prepared = prepare(phantom.scan, spacing_mm)
    return age, prepared.array, labels_on(prepared.grid, phantom.labels)
