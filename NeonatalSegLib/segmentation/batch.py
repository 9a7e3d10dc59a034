"""A whole study in one call: a warm model, one scan after the other or several at once, what is finished skipped.

The seam for clusters is :func:`run_scan`: it does one scan and needs nothing of the others.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from NeonatalSegLib.datasets.ages import age_of_text, read_columns
from NeonatalSegLib.datasets.dhcp import find_scans
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_distinct, check_name
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.files.together import finish_left
from NeonatalSegLib.scans.read import content_hash
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.outputs import is_as_written, segment_to_folder
from NeonatalSegLib.segmentation.segmenter import METHOD, Segmenter, SegmentOptions
from NeonatalSegLib.segmentation.study_table import PAGE, check_study_folder, write_study_files
from NeonatalSegLib.segmentation.verdict import PASS

UNKNOWN = "n/a"
_segmenter: Segmenter  # of a process that works for _side_by_side
ALL, SOME, NONE = 0, 3, 4  # exit status: how many of the scans succeeded


@dataclass(frozen=True)
class StudyScan:
    """One scan of a study: where it is and where its results go.

    Attributes:
        name: unique in the study.
        folder: of the results, below the study's output folder.
        stem: of the result files' names.
    """

    name: str
    t1: Path | None
    t2: Path | None
    age_weeks: float | None
    folder: Path
    stem: str


@dataclass
class StudyResult:
    """What became of each scan, by name: ``failed`` and ``left_out`` (no scan was found) give the reason,
    ``doubtful`` a verdict other than pass.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    table: Path | None = None

    @property
    def exit_status(self) -> int:
        """0 where all scans have results, 3 where some have, 4 where none has."""
        if not self.failed:
            return ALL
        return SOME if self.done or self.skipped else NONE

    def summary(self) -> str:
        lines = [f"{len(self.done)} segmented, {len(self.skipped)} were done before, {len(self.failed)} failed"]
        if self.left_out:
            lines[0] += f", {len(self.left_out)} left out"
        lines += [f"  failed: {name}: {reason}" for name, reason in self.failed.items()]
        lines += [f"  left out: {name}: {reason}" for name, reason in self.left_out.items()]
        lines += [f"  plausibility {verdict}: {name}" for name, verdict in sorted(self.doubtful.items())]
        if self.table:
            lines.append(f"Volumes of the study: {self.table}; its page: {self.table.with_name(PAGE)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FoundStudy:
    """The scans of a study, why others are not among them, by name, and notes in words."""

    scans: list[StudyScan]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def study_of_bids(root: str | Path, *, run: str = "last") -> FoundStudy:
    """Every session of a dHCP release or BIDS folder with a T1w or a T2w; BIDS-derivative names for the results.

    Args:
        run: which of several runs: "last", "first" or a number.

    Raises:
        NeonatalSegError: no such folder, or no image at all.
    """
    found, scans = find_scans(root, run=run), []
    for subject in found.subjects:
        parts = subject.name.split("_")
        space = "T2w" if subject.t2 else "T1w"
        stem = f"{subject.name}_space-{space}_desc-neonatalseg"
        scans.append(StudyScan(subject.name, subject.t1, subject.t2, subject.age_weeks, Path(*parts, "anat"), stem))
    return FoundStudy(scans, {one.name: ", ".join(one.reasons) for one in found.incomplete}, found.notes)


def scans_of_bids(root: str | Path, report: Callable[[str], None] | None = None) -> list[StudyScan]:
    """The scans of :func:`study_of_bids`; ``report`` is given in words which newborns are not among them."""
    found = study_of_bids(root)
    if report:
        for text in [*(f"{name}: left out: {why}" for name, why in found.left_out.items()), *found.notes]:
            report(text)
    return found.scans


def scans_of_list(table: str | Path) -> list[StudyScan]:
    """Scans from a TSV with the columns name, t1, t2 and age_weeks; paths are relative to the table.

    Raises:
        NeonatalSegError: unreadable, no such columns, a name twice or none for a file, or an age that is not a number.
    """
    table = Path(table)
    columns, rows = read_columns(table)
    if "name" not in columns or not {"t1", "t2"} & set(columns):
        raise NeonatalSegError(
            f"{table} must have tab-separated columns name and t1 or t2, found: {', '.join(columns)}."
        )
    scans: dict[str, StudyScan] = {}
    for number, row in enumerate(rows, 2):
        name = (row.get("name") or "").strip()
        try:
            check_name(name, "scan")
            check_distinct([*scans, name], "scan")
        except NeonatalSegError as error:
            raise NeonatalSegError(f"Line {number} of {table}: {error}") from error
        t1, t2 = ((table.parent / value) if (value := (row.get(key) or "").strip()) else None for key in ("t1", "t2"))
        scans[name] = StudyScan(name, t1, t2, _age(row.get("age_weeks"), number, table), Path(name), name)
    if not scans:
        raise NeonatalSegError(f"{table} lists no scans.")
    return list(scans.values())


def _age(text: str | None, number: int, table: Path) -> float | None:
    weeks, problem = age_of_text(text or "", "age_weeks")
    if problem:
        raise NeonatalSegError(f"Line {number} of {table}: {problem}. Correct it, or leave it empty.")
    return weeks


def run_study(
    segmenter: Segmenter,
    scans: Sequence[StudyScan],
    out: str | Path,
    options: SegmentOptions = SegmentOptions(),
    report: Callable[[str], None] = print,
    *,
    at_once: int = 1,
    overwrite: bool = False,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> StudyResult:
    """Segment every scan that is not done yet; a failure is reported and the rest goes on.

    With ``at_once`` above 1 as many scans are segmented side by side, each in a process with its share of the cores.

    A scan counts as done where its side-car names the same inputs by content, model, method and options, and its files
    are there as they were written. Writes the tables and the page of every result in ``out``, whoever made it
    (``study_table.write_study_files``).

    Args:
        overwrite: replace also files that this program did not write (see ``ownership.check_replaceable``).
        left_out: newborns without a scan, with the reason, for the result.

    Raises:
        NeonatalSegError: ``out`` holds a table or description that is somebody else's.
    """
    out = Path(out)
    check_study_folder(out, overwrite=overwrite)
    result, started = StudyResult(left_out=dict(left_out)), time.monotonic()
    left = [scan for scan in scans if not is_done(segmenter, scan, out, options)]
    result.skipped = [scan.name for scan in scans if scan not in left]
    for name in result.skipped:
        report(f"{name}: was done before")
    outcomes = _side_by_side if at_once > 1 else _one_by_one
    for number, (scan, failure) in enumerate(outcomes(segmenter, left, out, options, at_once, overwrite), 1):
        if failure:
            result.failed[scan.name] = failure
        else:
            result.done.append(scan.name)
        minutes = (time.monotonic() - started) / number * (len(left) - number) / 60
        verdict = PASS if failure else _verdict(_sidecar(scan, out))
        done = "done" if verdict == PASS else f"done, plausibility {verdict}"
        report(
            f"[{number}/{len(left)}] {scan.name}: {f'failed: {failure}' if failure else done}  ({minutes:.0f} min left)"
        )
    for scan in scans:
        if (verdict := _verdict(_sidecar(scan, out))) not in (PASS, UNKNOWN):
            result.doubtful[scan.name] = verdict
    result.table = write_study_files(out, overwrite=overwrite, without={**result.failed, **result.left_out})
    return result


Outcomes = Iterator[tuple[StudyScan, str]]  # scans as they end, with why they failed or ""


def _one_by_one(
    segmenter: Segmenter, scans: Sequence[StudyScan], out: Path, options: SegmentOptions, _: int, overwrite: bool
) -> Outcomes:
    for scan in scans:
        yield scan, _attempt(segmenter, scan, out, options, overwrite)


def _side_by_side(
    segmenter: Segmenter, scans: Sequence[StudyScan], out: Path, options: SegmentOptions, at_once: int, overwrite: bool
) -> Outcomes:
    """Several processes, each with its share of the cores and the model loaded once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = (segmenter.model.folder, *segmenter.wishes, max(1, cores // at_once))
    pool = ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), _start, given)
    try:
        running = {pool.submit(_attempt_here, scan, out, options, overwrite): scan for scan in scans}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool as error:
        raise NeonatalSegError(
            "A process that segments ended unexpectedly, perhaps for lack of memory: start again with a smaller "
            "--at-once. What is finished is kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(model: Path, device: str, engine: str, threads: int) -> None:
    """In a process of its own: the segmenter that its scans share."""
    global _segmenter
    _segmenter = Segmenter(model, device, engine, threads=threads)


def _attempt_here(scan: StudyScan, out: Path, options: SegmentOptions, overwrite: bool) -> str:
    return _attempt(_segmenter, scan, out, options, overwrite)


def _attempt(segmenter: Segmenter, scan: StudyScan, out: Path, options: SegmentOptions, overwrite: bool) -> str:
    """Segment one scan; "" or why that failed."""
    try:
        run_scan(segmenter, scan, out, options, overwrite=overwrite)
        return ""
    except NeonatalSegError as error:
        return str(error)
    except Exception as error:  # one odd scan must not end a study of a thousand
        return f"{type(error).__name__}: {error}"


def run_scan(
    segmenter: Segmenter, scan: StudyScan, out: Path, options: SegmentOptions, *, overwrite: bool = False
) -> dict[str, Path]:
    """One scan of a study, from files to files; its folder must lie below ``out``, links followed."""
    if not (out / scan.folder).resolve().is_relative_to(out.resolve()):
        raise NeonatalSegError(f"The results of {scan.name} would lie outside {out}: there is a link in the way.")
    images = load_scan(
        scan.t1, scan.t2, name=scan.name, age_weeks=scan.age_weeks, orientation=options.assume_orientation
    )
    return segment_to_folder(segmenter, images, out / scan.folder, name=scan.stem, options=options, overwrite=overwrite)


def is_done(segmenter: Segmenter, scan: StudyScan, out: Path, options: SegmentOptions) -> bool:
    """True where results of the same inputs (by content), model, method and options are there."""
    finish_left(out / scan.folder)
    facts = _sidecar(scan, out)
    if facts is None:
        return False
    try:
        inputs = {key: content_hash(path) for key, path in (("t1", scan.t1), ("t2", scan.t2)) if path}
    except NeonatalSegError:
        return False
    return (
        is_as_written(out / scan.folder, facts)
        and facts.get("Model", {}).get("SHA256") == segmenter.model.hash
        # An option that an older version did not know has its default there.
        and {**vars(SegmentOptions()), **(facts.get("Options") or {})} == vars(options)
        and facts.get("Method") == METHOD
        and facts.get("AgeWeeks") == scan.age_weeks
        and facts.get("InputsSHA256") == inputs
    )


def _sidecar(scan: StudyScan, out: Path) -> dict | None:
    try:
        return read_object(out / scan.folder / f"{scan.stem}_dseg.json", "side-car", nan=True)
    except NeonatalSegError:
        return None


def _verdict(facts: dict | None) -> str:
    """pass, check or fail; n/a in side-cars of versions that gave none."""
    return str((facts or {}).get("Plausibility", {}).get("Verdict", UNKNOWN))
