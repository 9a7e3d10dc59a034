"""A whole study in one call: what is finished is skipped, a failure is told and the rest goes on.

The scans go through :func:`segment_scan` one after the other, here or (``segmentation/workers.py``) on Dask workers: it
does one scan and needs nothing of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from NeonatalSegLib.errors import NeonatalSegError, is_out_of_memory
from NeonatalSegLib.files.names import shown
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.files.together import finish_left
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.scans.read import content_hash
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.dataset import bids_sources, write_dataset_files
from NeonatalSegLib.segmentation.outputs import check_writable, is_as_written, segment_to_folder
from NeonatalSegLib.segmentation.segmenter import METHOD, Segmenter, SegmentOptions
from NeonatalSegLib.segmentation.study_scans import StudyScan
from NeonatalSegLib.segmentation.study_table import PAGE, QC_TABLE, check_study_folder, write_study_files
from NeonatalSegLib.segmentation.verdict import FAIL, PASS

if TYPE_CHECKING:
    from NeonatalSegLib.segmentation.workers import StudyWorkers

UNKNOWN = "n/a"
ALL, SOME, NONE = 0, 3, 4  # exit status: how many of the scans succeeded
IMPLAUSIBLE = 5  # all did, but with --strict a result that cannot be a newborn's brain is no success


@dataclass
class StudyResult:
    """What became of each scan, by name: ``failed`` and ``left_out`` (no scan was found) give the reason,
    ``doubtful`` a verdict other than pass, ``warned`` how many warnings; ``notes`` are about the study's folder as a
    whole. ``strict``: asked for, so that a failed plausibility shows in the exit status.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    table: Path | None = None
    warned: dict[str, int] = field(default_factory=dict)
    strict: bool = False

    @property
    def exit_status(self) -> int:
        """0 where all scans have results, 3 where some have, 4 where none has; 5 if strict and all have, one absurd."""
        if not self.failed:
            return IMPLAUSIBLE if self.strict and FAIL in self.doubtful.values() else ALL
        return SOME if self.done or self.skipped else NONE

    def summary(self) -> str:
        lines = [f"{len(self.done)} segmented, {len(self.skipped)} were done before, {len(self.failed)} failed"]
        if self.left_out:
            lines[0] += f", {len(self.left_out)} left out"
        lines += [f"  failed: {name}: {reason}" for name, reason in self.failed.items()]
        lines += [f"  left out: {name}: {reason}" for name, reason in self.left_out.items()]
        lines += [f"  plausibility {verdict}: {name}" for name, verdict in sorted(self.doubtful.items())]
        if self.warned:
            lines.append(f"  {sum(self.warned.values())} warnings on {len(self.warned)} scans: {QC_TABLE} tells them")
        lines += [f"  note: {note}" for note in self.notes]
        if self.table:
            lines.append(f"Volumes of the study: {self.table}; its page: {self.table.with_name(PAGE)}")
        return "\n".join(lines)


Outcomes = Iterator[tuple[StudyScan, str]]  # scans as they end, with why they failed or ""


def run_study(
    segmenter: Segmenter | StudyWorkers,
    scans: Sequence[StudyScan],
    out: str | Path,
    options: SegmentOptions = SegmentOptions(),
    report: Callable[[str], None] = print,
    *,
    overwrite: bool = False,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> StudyResult:
    """Segment every scan that is not done yet; a failure is reported and the rest goes on.

    A scan counts as done where its side-car names the same inputs by content, model, method and options, and its files
    are there as they were written. Writes the tables and the page of every result in ``out``, whoever made it
    (``study_table.write_study_files``), and the files of a BIDS data set (``segmentation/dataset.py``).

    Args:
        segmenter: one for all scans, one after the other; or ``workers.StudyWorkers``.
        overwrite: replace also files that this program did not write (see ``ownership.check_replaceable``), and results
            of a newer version.
        left_out: newborns without a scan, with the reason, for the result.

    Raises:
        NeonatalSegError: ``out`` holds a table or description that is somebody else's, or results of a newer version.
    """
    out = Path(out)
    check_study_folder(out, overwrite=overwrite)
    dataset = next((scan.dataset for scan in scans if scan.dataset), None)
    result, started = StudyResult(left_out=dict(left_out), strict=options.strict), time.monotonic()
    states = {scan.name: state_of(segmenter.model, scan, out, options) for scan in scans}
    if not overwrite:
        _refuse_newer(out, states)
    check_writable(out)
    for name, state in states.items():
        if state == DONE:
            result.skipped.append(name)
            report(f"{name}: was done before")
        elif state:
            report(f"{name}: is segmented again, its result is of {state}")
    left = [scan for scan in scans if states[scan.name] != DONE]
    if isinstance(segmenter, Segmenter):
        outcomes: Outcomes = ((scan, attempt(segmenter, scan, out, options, overwrite=overwrite)) for scan in left)
    else:
        outcomes = segmenter.segment_all(left, out, options, report, overwrite=overwrite)
    for number, (scan, failure) in enumerate(outcomes, 1):
        if number == 1:
            write_dataset_files(out, dataset)  # what a killed run leaves is a data set as well
        if failure:
            result.failed[scan.name] = failure
        else:
            result.done.append(scan.name)
        minutes = (time.monotonic() - started) / number * (len(left) - number) / 60
        verdict = PASS if failure else _verdict(_sidecar(scan, out))
        done = "done" if verdict == PASS else f"done, plausibility {verdict}"
        if not failure and (warned := len(_warnings(_sidecar(scan, out)))):
            done += f", {warned} warning{'s' if warned > 1 else ''}"
        report(
            f"[{number}/{len(left)}] {scan.name}: {f'failed: {failure}' if failure else done}  ({minutes:.0f} min left)"
        )
    for scan in scans:
        if scan.name in result.failed:
            continue  # what lies there is of another time
        if (verdict := _verdict(facts := _sidecar(scan, out))) not in (PASS, UNKNOWN):
            result.doubtful[scan.name] = verdict
        if warned := len(_warnings(facts)):
            result.warned[scan.name] = warned
    result.table = write_study_files(out, overwrite=overwrite, without={**result.failed, **result.left_out})
    result.notes = write_dataset_files(out, dataset)
    return result


def attempt(segmenter: Segmenter, scan: StudyScan, out: Path, options: SegmentOptions, *, overwrite: bool) -> str:
    """Segment one scan; "" or why that failed."""
    try:
        segment_scan(segmenter, scan, out, options, overwrite=overwrite)
        return ""
    except NeonatalSegError as error:
        return str(error)
    except Exception as error:  # one odd scan must not end a study of a thousand
        if is_out_of_memory(error):
            return f"There is too little memory for this scan ({type(error).__name__})."
        return f"{type(error).__name__}: {error}"


def segment_scan(
    segmenter: Segmenter, scan: StudyScan, out: Path, options: SegmentOptions, *, overwrite: bool = False
) -> dict[str, Path]:
    """One scan of a study, from files to files; its folder must lie below ``out``, links followed."""
    if not (out / scan.folder).resolve().is_relative_to(out.resolve()):
        raise NeonatalSegError(f"The results of {scan.name} would lie outside {out}: there is a link in the way.")
    images = load_scan(
        scan.t1, scan.t2, name=scan.name, age_weeks=scan.age_weeks, orientation=options.assume_orientation
    )
    return segment_to_folder(
        segmenter,
        images,
        out / scan.folder,
        name=scan.stem,
        options=options,
        overwrite=overwrite,
        of_study=True,
        facts=bids_sources(scan, out),
    )


DONE = "done"
NEWER = "a newer version"


def state_of(model: Model, scan: StudyScan, out: Path, options: SegmentOptions) -> str:
    """:data:`DONE` where the scan's result is what would come out again, "" where there is none, else what differs."""
    finish_left(out / scan.folder)
    facts = _sidecar(scan, out)
    if facts is None:
        return ""
    method = facts.get("Method")
    if isinstance(method, int) and method > METHOD:
        return NEWER
    if method != METHOD:
        return "another version"
    if facts.get("Model", {}).get("SHA256") != model.hash:
        return f"another model ({facts.get('Model', {}).get('Name', UNKNOWN)})"
    # An option that an older version did not know has its default there.
    if {**vars(SegmentOptions()), **(facts.get("Options") or {})} != vars(options) or facts.get(
        "AgeWeeks"
    ) != scan.age_weeks:
        return "other options or another age"
    try:
        inputs = {key: content_hash(path) for key, path in (("t1", scan.t1), ("t2", scan.t2)) if path}
    except NeonatalSegError:
        return "images that were readable then"
    if facts.get("InputsSHA256") != inputs:
        return "other images"
    return DONE if is_as_written(out / scan.folder, facts) else "files that were changed since"


def _refuse_newer(out: Path, states: Mapping[str, str]) -> None:
    if newer := [name for name, state in states.items() if state == NEWER]:
        raise NeonatalSegError(
            f"{shown(out)} holds results of a newer version of NeonatalSeg ({', '.join(newer[:5])}): nothing was "
            "replaced. Use that version, choose another folder, or give --overwrite."
        )


def _sidecar(scan: StudyScan, out: Path) -> dict | None:
    try:
        return read_object(out / scan.folder / f"{scan.stem}_dseg.json", "side-car", nan=True)
    except NeonatalSegError:
        return None


def _warnings(facts: dict | None) -> list[str]:
    found = (facts or {}).get("Warnings")
    return found if isinstance(found, list) else []


def _verdict(facts: dict | None) -> str:
    """pass, check or fail; n/a in side-cars of versions that gave none."""
    return str((facts or {}).get("Plausibility", {}).get("Verdict", UNKNOWN))
