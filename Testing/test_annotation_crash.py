"""A study after its process was killed: at random moments, and just before each call that changes the disk.

``benchmarks/crash_safety.py`` runs the first kind two hundred times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import crash_safety
from benchmarks.crash_safety import GRID, RATER, ROOT, SCAN, make_study, pattern
from NeonatalSegLib.annotation.session import AnnotationSession, create_study, read_annotations
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import plane

FIRST, CROSSING = f"{SCAN}/axial/7", f"{SCAN}/coronal/10"
DEAD = 9

# The process dies just before its n-th call to one of these, as if killed: nothing is closed or cleaned up.
DIE = f"""
    import os, sys
    from pathlib import Path
    from NeonatalSegLib.annotation.session import AnnotationSession, create_study
    from benchmarks.crash_safety import pattern

    def arm(number):
        made = 0
        def dying(call):
            def call_or_die(*arguments):
                nonlocal made
                made += 1
                if made == number:
                    os._exit({DEAD})
                return call(*arguments)
            return call_or_die
        os.fsync, os.replace = dying(os.fsync), dying(os.replace)
"""
WORK = f"""
    project = AnnotationSession.open(sys.argv[1], {RATER!r})
    key = sys.argv[2]
    arm(int(sys.argv[3]))
    if project.item(key).state == "done":
        project.reopen(key)
    else:
        project.complete(key, pattern(project.item(key).slice, 2), 1.0)
"""
CREATE = f"""
    study = AnnotationSession.open(sys.argv[1], {RATER!r}).study
    arm(int(sys.argv[3]))
    create_study(sys.argv[2], study.plan, study.scans, {{{SCAN!r}: study.prefill({SCAN!r})}})
"""


def die(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", textwrap.dedent(DIE) + textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == DEAD, done.stderr


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with one slice completed."""
    make_study(tmp_path / "made")
    with AnnotationSession.open(tmp_path / "made" / "study", RATER) as project:
        project.complete(FIRST, pattern(project.item(FIRST).slice, 1), 1.0)
    return tmp_path / "made" / "study"


def check(study: Path, expected: dict[str, int]) -> None:
    """The study holds exactly these completed slices (key: number of the pattern), in this order of completion."""
    with AnnotationSession.open(study, RATER) as project:
        assert not project.warnings
        assert {item.slice.key for item in project.items if item.state == "done"} == set(expected)
        labels, mask = project.study.prefill(SCAN), np.zeros(GRID.shape, np.uint8)
        for key, number in expected.items():
            planned = project.item(key).slice
            cut = plane(GRID, planned.axis, planned.index)
            labels[cut], mask[cut] = pattern(planned, number), 1
        inside = mask == 1
        place = study / "raters" / RATER
        found = [
            (project.label_map(SCAN), project.annotated_mask(SCAN)),
            (_array(place / f"{SCAN}_dseg.nii.gz"), _array(place / f"{SCAN}_desc-annotated_mask.nii.gz")),
            (read_annotations(study)[0].labels, read_annotations(study)[0].mask),
        ]
    for its_labels, its_mask in found:
        assert np.array_equal(its_mask, mask) and np.array_equal(its_labels[inside], labels[inside])
    assert not list(place.glob(".*"))


def _array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_random_kills(tmp_path: Path) -> None:
    figures = crash_safety.run(12, tmp_path, seed=3)
    assert figures.kills == figures.reopenings == 12 and not figures.failures, figures.text()
    assert figures.kills_inside_complete > 0 and figures.completed > 0, "the kills tell nothing"
    bad = figures.lost_slices, figures.wrong_states, figures.wrong_masks, figures.unreadable_files
    assert bad == (0, 0, 0, 0), figures.text()


def test_the_comparison_finds_losses(tmp_path: Path) -> None:
    """A slice said to be done that the study does not hold, and one held that nobody spoke of."""
    campaign = crash_safety.Campaign(tmp_path / "made", seed=0)
    with AnnotationSession.open(campaign.study, RATER) as project:
        project.complete(FIRST, pattern(project.item(FIRST).slice, 5), 1.0)
        for said, lost, states in (({FIRST: 5}, 0, 0), ({FIRST: 4}, 3, 0), ({CROSSING: 1}, 1, 2), ({}, 0, 1)):
            campaign.done, figures = dict(said), crash_safety.Figures()
            campaign.compare(project, None, figures)
            assert figures.lost_slices >= lost and figures.wrong_states == states, (said, figures.text())
            assert bool(figures.wrong_masks) == (said.keys() != {FIRST})
            assert (said == {FIRST: 5}) == (figures.lost_slices + figures.wrong_states == 0)


@pytest.mark.parametrize("number", range(1, 7))
def test_death_while_completing_a_crossing_slice(study: Path, number: int) -> None:
    """Calls: sync label map, sync mask, sync ledger, move label map, move mask, sync folder."""
    die(WORK, study, CROSSING, number)
    # The third comes when the line is written: a kill does not take it back (a power cut might, as a whole).
    check(study, {FIRST: 1} if number < 3 else {FIRST: 1, CROSSING: 2})
    with AnnotationSession.open(study, RATER) as project:
        project.complete(CROSSING, pattern(project.item(CROSSING).slice, 3), 1.0)
    check(study, {FIRST: 1, CROSSING: 3})


@pytest.mark.parametrize("number", [1, 3, 4, 5])
def test_death_while_reopening(study: Path, number: int) -> None:
    with AnnotationSession.open(study, RATER) as project:
        project.complete(CROSSING, pattern(project.item(CROSSING).slice, 2), 1.0)
    die(WORK, study, CROSSING, number)
    check(study, {FIRST: 1, CROSSING: 2} if number < 3 else {FIRST: 1})


@pytest.mark.parametrize("number", [2, 11, 15])
def test_death_while_a_study_is_made(study: Path, tmp_path: Path, number: int) -> None:
    """Until study.json is moved to its place, with the fifteenth call, there is no study, and it can be made again."""
    new = tmp_path / "new"
    die(CREATE, study, new, number)
    with AnnotationSession.open(study, RATER) as project:
        made = project.study
    with pytest.raises(NeonatalSegError, match="holds no study"):
        AnnotationSession.open(new, RATER)
    create_study(new, made.plan, made.scans, {SCAN: made.prefill(SCAN)})
    with AnnotationSession.open(new, RATER) as project:
        assert np.array_equal(project.label_map(SCAN), made.prefill(SCAN))
    assert {path.name for path in new.iterdir()} == {"study.json", "plan.json", "prefill", "raters"}


def test_death_once_a_study_is_made(study: Path, tmp_path: Path) -> None:
    """Just before the sixteenth call study.json is in its place: the study is there, whole."""
    new = tmp_path / "new"
    die(CREATE, study, new, 16)
    with AnnotationSession.open(study, RATER) as project:
        made = project.study
    with AnnotationSession.open(new, RATER) as project:
        assert not project.warnings and project.study.plan == made.plan
        assert np.array_equal(project.label_map(SCAN), made.prefill(SCAN))
