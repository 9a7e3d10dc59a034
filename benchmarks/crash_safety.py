"""Crash safety of annotation: the process is killed at random moments while it completes slices, then all is checked.

    python benchmarks/crash_safety.py [--kills 200] [--seed 0] [--folder FOLDER]

A real child process opens a study and completes and reopens slices as fast as it can; it prints a line before and after
each. The parent kills it (SIGKILL, or TerminateProcess on Windows), opens the study again and compares it with what the
child had said. Slices along all three axes, so that they cross. A kill does not empty the system's cache as a power cut
does: the order of writing and syncing, on which that case rests, is tested in Testing/test_annotation.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice
from NeonatalSegLib.annotation.session import AnnotationSession, StudyScan, create_study, read_annotations
from NeonatalSegLib.scans.grid import AXES, Grid, plane, position_mm, voxel_axis

ROOT = Path(__file__).resolve().parents[1]
SCAN, RATER = "sub-01", "Kim"
GRID = Grid((30, 26, 22), (1.0, 1.2, 1.5), (-12.0, 3.5, 40.0), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
EVERY = 3  # of the voxels along an axis
MOST_LINES = 24  # that the child says before it is killed, so that a slow machine kills no later in its work
LONGEST_S = 0.06  # from that line to the kill: about the time of one slice
KILLS_PER_STUDY = 25


def make_study(folder: Path) -> Plan:
    """A study of one small scan with slices along all three axes."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(5)
    image = folder / "t2.nii.gz"
    sitk.WriteImage(GRID.image(generator.random(GRID.shape, np.float32)), str(image))
    slices = tuple(
        PlannedSlice(SCAN, axis, index, position_mm(GRID, axis, index), "every third")
        for axis in AXES
        for index in range(1, GRID.size[voxel_axis(GRID, axis)], EVERY)
    )
    plan = Plan(slices, {SCAN: GRID}, BudgetSettings(len(slices), "slices", axis="mixed"))
    prefill = generator.integers(0, 10, GRID.shape, np.uint8)
    create_study(folder / "study", plan, [StudyScan(SCAN, None, image, 40.0)], {SCAN: prefill})
    return plan


def pattern(planned: PlannedSlice, number: int) -> np.ndarray:
    """The labels that the child gives a slice when it completes it as its ``number``-th work."""
    shape = np.empty(GRID.shape, bool)[plane(GRID, planned.axis, planned.index)].shape
    return np.random.default_rng([number, zlib.crc32(planned.key.encode())]).integers(0, 10, shape, np.uint8)


def work(folder: Path, first: int) -> None:
    """What the child does until it is killed."""
    print("opening", flush=True)
    project = AnnotationSession.open(folder, RATER)
    for number in itertools.count(first):
        key = project.next_key()
        if key is None:
            for item in project.items[:: 1 + number % 3]:
                print("reopen", item.slice.key, number, flush=True)
                project.reopen(item.slice.key)
                print("reopened", item.slice.key, number, flush=True)
            continue
        project.start(key)
        labels = pattern(project.item(key).slice, number)
        print("complete", key, number, flush=True)
        project.complete(key, labels, seconds=1.0)
        print("completed", key, number, flush=True)


@dataclass
class Figures:
    """What came of the kills; the last five must be 0."""

    kills: int = 0
    kills_inside_complete: int = 0
    kills_inside_reopen: int = 0
    kills_while_opening: int = 0
    reopenings: int = 0
    completed: int = 0
    refused_to_open: int = 0
    lost_slices: int = 0
    wrong_states: int = 0
    wrong_masks: int = 0
    unreadable_files: int = 0
    failures: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{f.name.replace('_', ' ')}: {getattr(self, f.name)}" for f in fields(self) if f.name != "failures"]
        return "\n".join([*lines, *self.failures])


class Campaign:
    """Kills on one study, and what the child said that it had done."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.slices = {planned.key: planned for planned in make_study(folder).slices}
        self.study = folder / "study"
        self.random = random.Random(seed)
        self.done: dict[str, int] = {}  # completed slices with the number of their pattern, in order of completion
        self.number = 0

    def kill_once(self, figures: Figures) -> None:
        """Run the child, kill it, open the study and compare."""
        said = self._run_child()
        figures.kills += 1
        if said and said[-1][0] in ("opening", "complete", "reopen"):
            name = {"opening": "kills_while_opening"}.get(said[-1][0], f"kills_inside_{said[-1][0]}")
            setattr(figures, name, getattr(figures, name) + 1)
        for word, key, number in (line for line in said if len(line) == 3):
            self.number = max(self.number, int(number))
            if word in ("completed", "reopened"):
                self._count(word, key, int(number))
                figures.completed += word == "completed"
        begun = said[-1] if said and said[-1][0] in ("complete", "reopen") else None
        try:
            with AnnotationSession.open(self.study, RATER) as project:
                figures.reopenings += 1
                self.compare(project, begun, figures)
        except Exception as error:  # a figure like any other: told, and the campaign goes on
            figures.refused_to_open += 1
            figures.failures.append(f"kill {figures.kills}: {type(error).__name__}: {error}")

    def _run_child(self) -> list[list[str]]:
        command = [sys.executable, __file__, "--work", str(self.study)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [*command, "--first", str(self.number + 1)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            said = [child.stdout.readline() for _ in range(self.random.randint(1, MOST_LINES))]
            try:
                child.wait(self.random.uniform(0, LONGEST_S))
            except subprocess.TimeoutExpired:
                child.kill()
            else:
                raise RuntimeError(f"The child ended before it was killed:\n{child.stderr.read()}")
            rest = child.stdout.read()
        # A last line without its end was being printed: the work before it had returned, but was not said to have.
        return [line.split() for line in ("".join(said) + rest).splitlines(keepends=True) if line.endswith("\n")]

    def _count(self, word: str, key: str, number: int) -> None:
        self.done.pop(key, None)
        if word == "completed":
            self.done[key] = number

    def compare(self, project: AnnotationSession, begun: list[str] | None, figures: Figures) -> None:
        """The opened study against what was said; work that was begun may have been done or not."""
        states = {item.slice.key: item.state for item in project.items}
        if begun is not None:
            word, key, number = begun
            if (states[key] == "done") == (word == "complete"):
                self._count(f"{word}d" if word == "complete" else "reopened", key, int(number))
        lost = [key for key in self.done if states[key] != "done"]
        figures.lost_slices += len(lost)
        figures.wrong_states += sum(states[key] == "done" for key in self.slices if key not in self.done)
        labels, mask = self._expected()
        inside = mask == 1
        figures.lost_slices += len(self._slices_that_differ(project.label_map(SCAN), labels))
        figures.wrong_masks += not np.array_equal(project.annotated_mask(SCAN), mask)
        figures.wrong_states += bool(lost) or (len(self.done) < len(self.slices)) != (project.next_key() is not None)
        self._compare_files(labels, mask, inside, figures)

    def _compare_files(self, labels: np.ndarray, mask: np.ndarray, inside: np.ndarray, figures: Figures) -> None:
        place = self.study / "raters" / RATER
        found: Mapping[str, np.ndarray | None] = {
            kind: self._read(place / f"{SCAN}_{kind}.nii.gz", figures) for kind in ("dseg", "desc-annotated_mask")
        }
        shown, annotated = found["dseg"], found["desc-annotated_mask"]
        if shown is not None:
            figures.lost_slices += len(self._slices_that_differ(shown, labels))
        if annotated is not None:
            figures.wrong_masks += not np.array_equal(annotated, mask)
        if self.done:
            scan = read_annotations(self.study)[0]
            figures.wrong_masks += not np.array_equal(scan.mask, mask)
            figures.lost_slices += len(self._slices_that_differ(np.where(inside, scan.labels, labels), labels))
        left = sorted(path.name for path in place.iterdir() if path.name.startswith("."))
        figures.unreadable_files += len(left)

    def _read(self, path: Path, figures: Figures) -> np.ndarray | None:
        if not path.exists():
            figures.wrong_masks += bool(self.done)
            return None
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:
            figures.unreadable_files += 1
            return None
        figures.unreadable_files += not Grid.of(image).is_like(GRID)
        return sitk.GetArrayFromImage(image)

    def _expected(self) -> tuple[np.ndarray, np.ndarray]:
        labels, mask = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
        for key, number in self.done.items():
            cut = plane(GRID, self.slices[key].axis, self.slices[key].index)
            labels[cut], mask[cut] = pattern(self.slices[key], number), 1
        return labels, mask

    def _slices_that_differ(self, found: np.ndarray, expected: np.ndarray) -> list[str]:
        cuts = {key: plane(GRID, self.slices[key].axis, self.slices[key].index) for key in self.done}
        return [key for key, cut in cuts.items() if not np.array_equal(found[cut], expected[cut])]


def run(kills: int, folder: Path, seed: int = 0) -> Figures:
    """So many kills, on a new study from time to time."""
    figures = Figures()
    for study in range(0, kills, KILLS_PER_STUDY):
        campaign = Campaign(folder / str(study), seed + study)
        for _ in range(study, min(kills, study + KILLS_PER_STUDY)):
            campaign.kill_once(figures)
        print(f"{figures.kills} of {kills} kills", file=sys.stderr, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default the system's temporary folder")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.first)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = run(arguments.kills, Path(folder), arguments.seed)
    print(figures.text())


if __name__ == "__main__":
    main()
