"""Find newborns in a BIDS folder: T1w, T2w, label maps and ages, with or without sessions.

Every newborn is either found or named with the reason: one that is odd never ends a study.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from NeonatalSegLib.datasets.ages import read_ages, read_table
from NeonatalSegLib.datasets.kinds import NEWBORN
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import same_file, shown
from NeonatalSegLib.scans.read import IMAGE_SUFFIXES

KINDS = {"t1w": "T1w", "t2w": "T2w", "dseg": "dseg"}
# Folders whose images BIDS does not count as the data set's own.
NOT_DATA = ("sourcedata", "code", "rawdata")
PARTS = ("phase", "real", "imag")  # of a complex image: no scan to segment
OURS = "desc-neonatalseg"
TRUE_LABELS = "desc-drawem9"
_SESSION = re.compile(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?(?=_|$)")


@dataclass(frozen=True)
class Subject:
    """One newborn at one session, as files.

    Attributes:
        name: ``sub-X`` or ``sub-X_ses-Y``.
        t1, t2, labels: paths, or None where there is none.
        age_weeks: post-menstrual age at scan, or None where the tables do not say.
        merged: groups of classes that the labels do not tell apart; the first of a group stands for all of it.
        kind: one of ``datasets/kinds.py``.
    """

    name: str
    t1: Path | None
    t2: Path | None
    labels: Path | None
    age_weeks: float | None
    merged: tuple[tuple[int, ...], ...] = ()
    kind: str = NEWBORN

    @property
    def participant(self) -> str:
        """``sub-X``: sessions of one newborn share it, and never stand on two sides of a split."""
        return self.name.split("_")[0]


@dataclass
class BidsFolder:
    """What a BIDS folder holds.

    Attributes:
        subjects: sessions with a T1w or a T2w, sorted by name.
        left_out: why a session or newborn is not among them, by name.
        notes: in words: which of several runs was taken, which ages were left out.
    """

    subjects: list[Subject] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_subjects(root: str | Path, *, labels: bool = True) -> list[Subject]:
    """All subjects of a BIDS folder with a T1w or a T2w, sorted by name: :func:`read_bids` without the reasons."""
    return read_bids(root, labels=labels).subjects


def read_bids(root: str | Path, *, labels: bool = True, run: str = "last") -> BidsFolder:
    """What a BIDS folder holds.

    Images below ``derivatives``, ``sourcedata``, ``rawdata`` and ``code`` are none of the data set's own. Label maps
    are the ``*_dseg`` files anywhere else, derivatives included, but not those of this program. Of several runs the
    last is taken: a scan is repeated where the first was bad.

    Args:
        labels: False where label maps are not wanted: there may then be several for one subject.
        run: "last", "first" or a number, where a session has several runs.

    Raises:
        NeonatalSegError: no such folder, no scans in it, or ``run`` is none of these.
    """
    root = Path(root)
    if run not in ("last", "first") and not run.isdecimal():
        raise NeonatalSegError(f"{run!r} is not a choice of a run: expected last, first or a number.")
    if not root.is_dir():
        raise NeonatalSegError(f"There is no folder {shown(root)}: expected a BIDS data set.")
    found = BidsFolder()
    files: dict[str, dict[str, list[Path]]] = {}
    for path, kind in _files(root, labels):
        session = _SESSION.match(path.name)
        if session is None:
            who = shown(path.name).split("_")[0]
            found.left_out[who] = f"{shown(path)} is not a BIDS name (sub- and letters or digits, then _)"
            continue
        files.setdefault(session.group(), {}).setdefault(kind, []).append(path)
    ages = read_ages(root)
    found.notes += ages.warnings
    for name, kinds in sorted(files.items()):
        if not {"T1w", "T2w"} & kinds.keys():
            continue
        try:
            chosen = {kind: _choose(name, kind, paths, run, found.notes) for kind, paths in kinds.items()}
            _check_distinct(name, found.subjects)
        except NeonatalSegError as error:
            found.left_out[name] = str(error)
            continue
        images = chosen.get("T1w"), chosen.get("T2w")
        if any(images):
            found.subjects.append(Subject(name, *images, chosen.get("dseg"), ages.of(name)))
    _name_the_others(root, found)
    if not found.subjects:
        reasons = "".join(f"\n  {name}: {why}" for name, why in list(found.left_out.items())[:5])
        raise NeonatalSegError(f"No sub-*/anat/*_T1w or *_T2w image was found below {shown(root)}.{reasons}")
    return found


def _files(root: Path, labels: bool) -> Iterator[tuple[Path, str]]:
    """Every file of a kind in :data:`KINDS` and which kind it is."""
    for folder, inner, names in os.walk(root, followlinks=True):
        here = Path(folder).relative_to(root).parts
        skip = NOT_DATA if labels else (*NOT_DATA, "derivatives")
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in skip)
        if len(here) > 12:  # a link that leads round in a circle
            inner.clear()
        for name in sorted(names):
            stem, suffix = _split(name)
            kind = KINDS.get(stem.rsplit("_", 1)[-1].lower(), "") if name.startswith("sub-") and suffix else ""
            if kind in ("T1w", "T2w") and "derivatives" in here:
                continue
            if not kind or (kind == "dseg" and (not labels or OURS in name)):
                continue
            if not (suffix == ".img" and f"{stem}.hdr" in names):  # one of a pair is enough
                yield Path(folder) / name, kind


def _split(name: str) -> tuple[str, str]:
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def _entities(path: Path) -> dict[str, str]:
    """``{"sub": "01", "run": "2"}`` of a file's name, its kind left out; a part without a value stands for itself."""
    parts = _split(path.name)[0].split("_")[:-1]
    return {key: value for key, _, value in (part.partition("-") for part in parts)}


def _choose(name: str, kind: str, paths: Sequence[Path], run: str, notes: list[str]) -> Path | None:
    """The file of one kind that is meant; None where all are parts of complex images.

    Raises:
        NeonatalSegError: several are, and runs are not the reason.
    """
    paths = [path for path in paths if _entities(path).get("part") not in PARTS]
    if kind == "dseg":
        paths = [path for path in paths if TRUE_LABELS in path.name] or paths
    if len(paths) < 2:
        return paths[0] if paths else None
    by_run = {_entities(path).get("run", ""): path for path in paths}
    others = {tuple(sorted((k, v) for k, v in _entities(path).items() if k != "run")) for path in paths}
    if len(others) > 1 or len(by_run) < len(paths):
        texts = " and ".join(shown(path) for path in paths[:4])
        raise NeonatalSegError(f"Two {kind} files for one session: {texts}. Keep one of them, or name it in a --list.")
    order = sorted(by_run, key=lambda text: (int(text) if text.isdecimal() else 0, text))
    wanted = [text for text in order if text.isdecimal() and run.isdecimal() and int(text) == int(run)]
    if run.isdecimal() and not wanted:
        raise NeonatalSegError(f"{kind} has the runs {', '.join(order)}, and no run-{run}")
    chosen = wanted[0] if wanted else order[0 if run == "first" else -1]
    notes.append(f"{name}: {kind} has the runs {', '.join(order)}; run-{chosen} was taken (--run).")
    return by_run[chosen]


def _check_distinct(name: str, subjects: Sequence[Subject]) -> None:
    for other in subjects:
        if same_file(other.name) == same_file(name):
            raise NeonatalSegError(f"{other.name} and {name} are one name on some systems: rename one of them")


def _name_the_others(root: Path, found: BidsFolder) -> None:
    """Put newborns of whom no image was found among those left out."""
    known = {subject.participant for subject in found.subjects} | {name.split("_")[0] for name in found.left_out}
    for folder in sorted(root.glob("sub-*")):
        if folder.is_dir() and (name := shown(folder.name)) not in known:
            found.left_out[name] = "no T1w or T2w image in its folder"
            known.add(name)
    table = root / "participants.tsv"
    try:
        rows = read_table(table) if table.is_file() else []
    except NeonatalSegError:
        return  # read_ages has told it
    for row in rows:
        who = row.get("participant_id", "").strip()
        who = who if who.startswith("sub-") else f"sub-{who}"
        if who != "sub-" and who not in known:
            found.left_out[shown(who)] = "in participants.tsv, but no image of it"
            known.add(who)
