"""Reader of the dHCP third data release: the anatomical pipeline's T1, T2, tissue labels and ages at scan.

One session lies in ``[derivatives/dhcp_anat_pipeline/]sub-CC00050XX01/ses-7201/anat/``, images, label maps and surfaces
together. Ages stand in ``sub-CC00050XX01/sub-CC00050XX01_sessions.tsv`` (``session_id`` without "ses-", ``scan_age`` in
weeks), newborns in ``participants.tsv`` (``participant_id`` without "sub-"; ``sex``, ``birth_age``).

The names are those of the release notes (BioMedIA/dHCP-release-notes, ``structure.md``, commit 1ef406a), where T1 and
labels of the third release carry no ``space-T2w`` although they lie on the T2's grid; names with ``space-T2w`` are the
second release's (an earlier state of the same page) and are read as well. The order of the tissues was checked against
``label_names/ALBERT/tissue_labels.csv`` of MIRTK/DrawEM. No file of the release itself was at hand: the tests draw the
tree with synthetic newborns.

Whether a folder is such a release or any other BIDS folder is decided here alone: :func:`find_complete` finds what can
be trained on, :func:`find_scans` what can be segmented or annotated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from NeonatalSegLib.datasets.ages import WEEKS, age_of_text, prefixed, read_table
from NeonatalSegLib.datasets.bids import BidsFolder, Subject, read_bids
from NeonatalSegLib.errors import NeonatalSegError

# What is taken where several match: the first that exists. Bias-corrected ("restore") images first, the uncorrected
# ones as fallback; T1 on the T2's grid before any other. SimpleITK reads both suffixes.
T2_NAMES = ("desc-restore_T2w", "T2w")
T1_NAMES = ("desc-restore_T1w", "desc-restore_space-T2w_T1w", "space-T2w_T1w", "T1w")
LABEL_NAMES = ("desc-drawem9_dseg", "desc-drawem9_space-T2w_dseg")
SUFFIXES = (".nii.gz", ".nii")

NO_AGE = re.compile(r"^no scan_age|^scan_age '(n/a)?' in", re.IGNORECASE)  # nobody said one: that is no mistake


@dataclass(frozen=True)
class Incomplete:
    """A session that cannot be used, and why: "no T1", "no age (...)" and so on."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class FoundData:
    """What a data folder holds: the sessions that can be used, the others with their reasons, and notes in words."""

    root: Path
    subjects: tuple[Subject, ...]
    incomplete: tuple[Incomplete, ...]
    notes: tuple[str, ...] = ()

    def summary(self, limit: int | None = None) -> str:
        """One line of numbers, then one for each of the first ``limit`` (default: all) incomplete sessions."""
        newborns = len({s.participant for s in self.subjects})
        lines = [f"{len(self.subjects)} usable scans of {newborns} newborns in {self.root}"]
        if self.incomplete:
            kinds = Counter(reason.split(" (")[0] for one in self.incomplete for reason in one.reasons)
            counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
            lines[0] += f"; {len(self.incomplete)} incomplete ({counts})"
        lines += [f"  {one.name}: {', '.join(one.reasons)}" for one in self.incomplete[:limit]]
        if limit is not None and len(self.incomplete) > limit:
            lines.append(f"  and {len(self.incomplete) - limit} more")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def find_complete(root: str | Path) -> FoundData:
    """Subjects to train and test on, in a dHCP release (:func:`read_release`) or any other BIDS folder.

    Raises:
        NeonatalSegError: as :func:`read_release` and ``bids.find_subjects``, or nothing usable.
    """
    root = Path(root)
    if is_release(root):
        return read_release(root)
    return _of_bids(root, read_bids(root), complete=True)


def find_labelled(root: str | Path) -> FoundData:
    """Subjects to train on, in a dHCP release or any other BIDS folder: a T1 or a T2 with labels, whatever the age.

    Raises:
        NeonatalSegError: as :func:`read_release` and ``bids.find_subjects``, or nothing usable.
    """
    root = Path(root)
    found = _everyone(root, labels=True)
    usable = tuple(s for s in found.subjects if s.labels is not None)
    others = [*found.incomplete, *(Incomplete(s.name, ("no labels",)) for s in found.subjects if s.labels is None)]
    if not usable:
        raise NeonatalSegError(f"No scan below {root} has a label map (*_dseg): there is nothing to train on.")
    return replace(found, subjects=usable, incomplete=tuple(sorted(others, key=lambda one: one.name)))


def find_scans(root: str | Path, *, run: str = "last") -> FoundData:
    """Subjects with a T1 or a T2, to segment or annotate, in a dHCP release or any other BIDS folder.

    Labels, ages and tables need not be there. A release may be part of a larger data set: what it does not hold is
    looked for in the rest, so that every newborn is found or named with the reason.

    Args:
        run: as in ``bids.read_bids``.

    Raises:
        NeonatalSegError: no such folder, or no image at all.
    """
    return _everyone(Path(root), labels=False, run=run)


def _everyone(root: Path, *, labels: bool, run: str = "last") -> FoundData:
    """Subjects with an image, of the release and of the rest of the folder."""
    if not is_release(root):
        return _of_bids(root, read_bids(root, labels=labels, run=run), complete=False)
    try:
        rest = read_bids(root, labels=labels, run=run)
    except NeonatalSegError:
        rest = BidsFolder()  # all is in the release
    release = read_release(root, complete=False)
    known = {s.name for s in release.subjects}
    if known <= {s.name for s in rest.subjects}:  # a data set of its own, with such a derivative for some
        return _of_bids(root, rest, complete=False)
    more = [s for s in rest.subjects if s.name not in known]
    subjects = tuple(sorted([*release.subjects, *more], key=lambda s: s.name))
    used = {s.name for s in subjects} | {s.participant for s in subjects}
    others = {name: Incomplete(name, (why,)) for name, why in rest.left_out.items()}
    others |= {one.name: one for one in release.incomplete}
    incomplete = tuple(one for name, one in sorted(others.items()) if name not in used)
    return FoundData(release.root, subjects, incomplete, (*rest.notes, *release.notes))


def _of_bids(root: Path, found: BidsFolder, *, complete: bool) -> FoundData:
    others = [Incomplete(name, (why,)) for name, why in found.left_out.items()]
    return replace(_sorted_out(root, found.subjects, others, complete=complete), notes=tuple(found.notes))


def is_release(root: str | Path) -> bool:
    """True where images and Draw-EM labels of a session lie in one ``anat`` folder, as in the dHCP release."""
    return any(
        _first(anat, T2_NAMES[:1]) or (_first(anat, LABEL_NAMES) and _first(anat, T1_NAMES + T2_NAMES))
        for anat in Path(root).glob("**/sub-*/ses-*/anat")
    )


def read_release(root: str | Path, *, complete: bool = True) -> FoundData:
    """Every session of a release: usable ones as subjects named ``sub-X_ses-Y``, sorted, and incomplete ones.

    A session is usable with T1, T2, ``drawem9`` labels and an age. Sessions that stand in a table only and newborns
    without any session are listed as incomplete. Files are looked for, not opened: a label map on another grid is told
    when the arrays are prepared (``cache.build_cache``).

    Args:
        root: the folder with ``participants.tsv``, or one above it. Where it has ``derivatives/dhcp_anat_pipeline``,
            only that is read; ``rawdata`` and ``sourcedata`` never are.
        complete: False where a T1 or a T2 is enough to be usable, and the tables may be missing.

    Raises:
        NeonatalSegError: no such folder, no participants.tsv or no sessions table, a session twice (in two folders or
            two rows), or no usable session.
    """
    root = Path(root)
    if not root.is_dir():
        raise NeonatalSegError(f"There is no folder {root}: expected the dHCP release.")
    pipeline = root / "derivatives" / "dhcp_anat_pipeline"
    folder = pipeline if pipeline.is_dir() else root
    participants = _participants(folder, root, needed=complete)
    anats = _session_folders(folder, once=complete)
    ages = _ages(folder, needed=complete)
    subjects = []
    for name in sorted(anats.keys() | ages.keys()):
        anat = anats.get(name)
        t1, t2, labels = (_first(anat, names) for names in (T1_NAMES, T2_NAMES, LABEL_NAMES))
        age, _ = ages.get(name, (None, ""))
        subjects.append(Subject(name, t1, t2, labels, age))
    why_no_age = {name: why for name, (_, why) in ages.items()}
    without = sorted(participants - {s.participant for s in subjects})
    others = [Incomplete(name, ("no session",)) for name in without]
    found = _sorted_out(folder, subjects, others, why_no_age, complete=complete)
    if complete:
        return found  # a session without an age is not among them, with the reason
    given = {name: why for name, why in why_no_age.items() if why and not NO_AGE.search(why)}
    reasons = [(s.name, given[s.name]) for s in found.subjects if s.name in given]
    return replace(found, notes=tuple(f"{name}: {why}; the age was left out." for name, why in reasons))


def _sorted_out(
    root: Path,
    subjects: list[Subject],
    others: Sequence[Incomplete] = (),
    why_no_age: Mapping[str, str] = MappingProxyType({}),
    *,
    complete: bool = True,
) -> FoundData:
    usable, others = [], list(others)
    for subject in subjects:
        reasons = []
        if complete or (subject.t1 is None and subject.t2 is None):
            reasons += [text for text, path in (("no T1", subject.t1), ("no T2", subject.t2)) if path is None]
        if complete and subject.labels is None:
            reasons.append("no labels (drawem9)")
        if complete and subject.age_weeks is None:
            reasons.append(f"no age ({why_no_age.get(subject.name, 'in no table')})")
        if reasons:
            others.append(Incomplete(subject.name, tuple(reasons)))
        else:
            usable.append(subject)
    found = FoundData(root, tuple(usable), tuple(sorted(others, key=lambda one: one.name)))
    if not usable:
        wanted = "T1, T2, labels and age" if complete else "a T1 or a T2"
        raise NeonatalSegError(f"No session with {wanted} was found: {found.summary(5)}\nIs the download complete?")
    return found


def _participants(folder: Path, root: Path, *, needed: bool) -> set[str]:
    for place in (folder, root):
        table = place / "participants.tsv"
        if table.is_file():
            try:
                return _named_in(table)
            except NeonatalSegError:
                if needed:
                    raise
                return set()
    tables = sorted(folder.glob("*/participants.tsv"))
    if len(tables) == 1:
        return _participants(tables[0].parent, tables[0].parent, needed=needed)
    if not needed:
        return set()
    raise NeonatalSegError(
        f"There is no participants.tsv in {folder}: expected the dHCP release's anatomical pipeline "
        "(the folder with participants.tsv and sub-*). Download that table as well."
    )


def _named_in(table: Path) -> set[str]:
    rows = read_table(table)
    if not any("participant_id" in row for row in rows):
        raise NeonatalSegError(f"{table} names no newborn: expected a column participant_id.")
    return {prefixed("sub", row["participant_id"]) for row in rows if "participant_id" in row}


def _session_folders(folder: Path, *, once: bool) -> dict[str, Path]:
    """``anat`` folders by ``sub-X_ses-Y``; of two for one session the one with more of the release's files.

    Args:
        once: refuse two instead.
    """
    found: dict[str, Path] = {}
    for anat in sorted(folder.glob("**/sub-*/ses-*/anat")):
        if not _is_anatomical(anat.relative_to(folder)) or not _first(anat, T1_NAMES + T2_NAMES + LABEL_NAMES):
            continue  # a folder of results, say
        name = f"{anat.parent.parent.name}_{anat.parent.name}"
        if name in found and not once:
            found[name] = max(found[name], anat, key=_richness)
            continue
        if name in found:
            raise NeonatalSegError(f"The session {name} is there twice: {found[name]} and {anat}. Keep one of them.")
        found[name] = anat
    return found


def _richness(anat: Path) -> int:
    """How much of what a session of the release has lies in a folder."""
    return sum(_first(anat, names) is not None for names in (T1_NAMES, T2_NAMES, T2_NAMES[:1], LABEL_NAMES))


def _is_anatomical(path: Path) -> bool:
    """False for raw data and for the diffusion and functional pipelines, which repeat the sessions and their tables."""
    return not any(p in ("rawdata", "sourcedata") or ("_pipeline" in p and "anat" not in p) for p in path.parts)


def _first(anat: Path | None, names: tuple[str, ...]) -> Path | None:
    """The first of ``names`` that the session has; only files that carry the session's own name count."""
    if anat is None:
        return None
    session = f"{anat.parent.parent.name}_{anat.parent.name}"
    paths = (anat / f"{session}_{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _ages(folder: Path, *, needed: bool) -> dict[str, tuple[float | None, str]]:
    """(age in weeks, why there is none) by ``sub-X_ses-Y``, for every row of every sessions table."""
    tables = [t for t in sorted(folder.glob("**/sub-*_sessions.tsv")) if _is_anatomical(t.relative_to(folder))]
    if not tables and needed:
        raise NeonatalSegError(
            f"No sub-*/sub-*_sessions.tsv was found below {folder}: download these tables as well (ages)."
        )
    ages: dict[str, tuple[float | None, str]] = {}
    source: dict[str, Path] = {}
    for table in tables:
        try:
            rows = read_table(table)
        except NeonatalSegError:
            if needed:
                raise
            continue  # read_bids tells it
        for row in rows:
            if "session_id" not in row:
                continue
            name = f"{table.name.removesuffix('_sessions.tsv')}_{prefixed('ses', row['session_id'])}"
            if name in ages and not needed:
                ages[name] = None, f"two rows in {table.name}"
                continue
            if name in ages:
                raise NeonatalSegError(
                    f"The session {name} has two rows, in {source[name]} and {table}: keep one of them."
                )
            ages[name], source[name] = _age(row.get("scan_age"), table.name), table
    return ages


def _age(text: str | None, table: str) -> tuple[float | None, str]:
    if text is None:
        return None, f"no scan_age in {table}"
    weeks, problem = age_of_text(text, "scan_age")
    if weeks is not None:
        return weeks, ""
    if not problem or "not a number" in problem:
        return None, f"scan_age {text!r} in {table}"
    return None, f"scan_age {text} in {table}: expected {WEEKS[0]:g} to {WEEKS[1]:g} weeks"
