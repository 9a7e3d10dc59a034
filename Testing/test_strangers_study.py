"""Studies that came from elsewhere, and studies that two programs make at once."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from annotation_cases import AXIAL, labels_for, ledger, make_study, prefill_of
from faults import at_once, every_kill, files_in, posix

from NeonatalSegLib.annotation.session import AnnotationSession, create_study, read_annotations
from NeonatalSegLib.annotation.study import Study, read_study
from NeonatalSegLib.annotation.trust import LeavesStudyError, outside_of, trust
from NeonatalSegLib.errors import NeonatalSegError


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "made")


@pytest.fixture
def known(study: Path) -> Study:
    return read_study(study)


def make_again(folder: Path, known: Study) -> None:
    create_study(folder, known.plan, known.scans, {"sub-01": prefill_of("sub-01"), "sub-02": prefill_of("sub-02")})


def is_whole(folder: Path) -> bool:
    """A study with both pre-fills as they were given."""
    found = read_study(folder)
    return all((found.prefill(name) == prefill_of(name)).all() for name in ("sub-01", "sub-02"))


# ---------------------------------------------------------------- two that make one study


@posix
def test_two_processes_that_make_one_study(known: Study, tmp_path: Path) -> None:
    for number in range(6):
        new = tmp_path / f"new{number}"
        ends = at_once(*[lambda new=new: make_again(new, known)] * 3)  # type: ignore[misc]
        assert sorted(ends) == [0, 3, 3] and is_whole(new)
        assert {path.name for path in new.iterdir()} == {"prefill", "plan.json", "study.json"}


@posix
def test_a_maker_that_is_killed_leaves_a_study_or_none(known: Study, tmp_path: Path) -> None:
    new = tmp_path / "new"
    ended = {True: 0, False: 0}
    for _ in every_kill(lambda: make_again(new, known), stride=3):
        there = (new / "study.json").exists()
        ended[there] += 1
        if there:
            assert is_whole(new)
        else:
            make_again(new, known)  # over what is left, without a word
            assert is_whole(new) and not [p for p in new.iterdir() if p.name.startswith(".building")]
        shutil.rmtree(new)
    assert ended[False] > 3


def test_another_files_folder_is_not_touched_by_a_maker(known: Study, tmp_path: Path) -> None:
    for name in ("prefill/thesis.txt", "plan.json", "notes.txt"):
        new = tmp_path / name.replace("/", "-")
        (new / name).parent.mkdir(parents=True)
        (new / name).write_text("mine")
        with pytest.raises(NeonatalSegError, match="is not empty"):
            make_again(new, known)
        assert files_in(new) == {name: b"mine"}


def test_a_missing_prefill_is_told(study: Path) -> None:
    (study / "prefill" / "sub-01_dseg.nii.gz").unlink()
    with AnnotationSession.open(study, "Anna") as session, pytest.raises(NeonatalSegError, match="pre-fill of sub-01"):
        session.prefill(AXIAL, "model")
    text = json.loads((study / "study.json").read_text(encoding="utf-8"))
    del text["prefilled"]  # a study of an older version does not say which there are
    (study / "study.json").write_text(json.dumps(text))
    with AnnotationSession.open(study, "Anna") as session:
        assert not session.prefill(AXIAL, "model").any()


# ---------------------------------------------------------------- links in a received study


@posix
@pytest.mark.parametrize("name", ["raters", "raters/Anna", "raters/Anna/lock", "raters/Anna/ledger.jsonl", "prefill"])
def test_no_link_in_a_received_study_leads_to_the_users_files(study: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all my work")
    for file in ("lock", "ledger.jsonl", "sub-01_dseg.nii.gz", "notes.txt"):
        (mine / file).write_text("all my work")
    link = study / name
    if link.exists():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(mine / "thesis.txt" if "." in name or name.endswith("lock") else mine)
    before = files_in(mine)
    with pytest.raises(NeonatalSegError, match="is a link"):
        session = AnnotationSession.open(study, "Anna")
        session.start(AXIAL)
        session.complete(AXIAL, labels_for(AXIAL, 3), 1.0)
    assert files_in(mine) == before


@posix
@pytest.mark.parametrize("opened", [False, True], ids=["received", "made while it is open"])
def test_label_maps_that_are_links_are_replaced_not_followed(study: Path, tmp_path: Path, opened: bool) -> None:
    """Opening takes those away that are there; one that comes later is in the way of the writing itself."""
    victim = tmp_path / "atlas_dseg.nii.gz"
    victim.write_bytes(b"mine")
    place = study / "raters" / "Anna"

    def plant() -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name in ("sub-01_dseg.nii.gz", "sub-01_desc-annotated_mask.nii.gz", ".part-sub-01_dseg.nii.gz"):
            (place / name).symlink_to(victim)

    if not opened:
        plant()
    with AnnotationSession.open(study, "Anna") as session:
        if opened:
            plant()
        session.complete(AXIAL, labels_for(AXIAL, 3), 1.0)
    assert victim.read_bytes() == b"mine" and not (place / "sub-01_dseg.nii.gz").is_symlink()


# ---------------------------------------------------------------- images outside the study


def naming(study: Path, t2: str) -> Path:
    text = json.loads((study / "study.json").read_text(encoding="utf-8"))
    text["scans"][0]["t2"] = t2
    (study / "study.json").write_text(json.dumps(text))
    return study


@posix
@pytest.mark.parametrize(
    "how", ["/{0}/pipe.nii.gz", "../../pipe.nii.gz", "scans/../../../pipe.nii.gz", "scans/a.nii.gz"]
)
def test_an_image_outside_is_asked_for_before_it_is_touched(study: Path, tmp_path: Path, how: str) -> None:
    """The image is a pipe: whoever opens it waits for ever. ``scans`` leads out by a link."""
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (study / "scans").mkdir()
    (study / "scans" / "a.nii.gz").symlink_to(tmp_path / "pipe.nii.gz")
    naming(study, how.format(str(tmp_path).strip("/")))
    for read in (lambda: AnnotationSession.open(study, "Anna"), lambda: read_annotations(study)):
        with pytest.raises(LeavesStudyError, match="outside its own folder") as caught:
            read()
        assert len(caught.value.paths) == 1
    assert not (study / "raters").exists()


def test_agreed_once_is_agreed(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AnnotationSession.open(study, "Anna").close()  # made here: not asked
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "another user"))
    with pytest.raises(LeavesStudyError) as caught:
        AnnotationSession.open(study, "Anna")
    trust(caught.value.paths)
    AnnotationSession.open(study, "Anna").close()
    with pytest.raises(LeavesStudyError):  # the agreement is to these images, not to whatever the study says later
        AnnotationSession.open(naming(study, "../other.nii.gz"), "Anna")


def test_agreed_where_it_cannot_be_noted(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(LeavesStudyError) as caught:
        AnnotationSession.open(study, "Anna")
    trust(caught.value.paths)
    AnnotationSession.open(study, "Anna").close()


def test_images_inside_are_not_asked_for(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "another user"))
    found = read_study(study)
    for scan in found.scans:
        shutil.copy(scan.reference, study)
    text = json.loads((study / "study.json").read_text(encoding="utf-8"))
    for entry in text["scans"]:
        entry["t2"] = f"./{Path(entry['t2']).name}"
    (study / "study.json").write_text(json.dumps(text))
    assert outside_of(study, read_study(study).scans) == []
    AnnotationSession.open(study, "Anna").close()


# ---------------------------------------------------------------- small files that want much memory


def bomb(line: dict[str, object]) -> None:
    line["labels"] = base64.b64encode(zlib.compress(bytes(100_000_000), 9)).decode()


def wide(line: dict[str, object]) -> None:
    line["shape"] = [1 << 30, 1 << 30]


@pytest.mark.parametrize("change", [bomb, wide])
def test_a_small_ledger_takes_little_memory(study: Path, change: Callable[[dict[str, object]], None]) -> None:
    with AnnotationSession.open(study, "Anna") as session:
        session.complete(AXIAL, labels_for(AXIAL, 3), 1.0)
    line = json.loads(ledger(study).read_text(encoding="utf-8"))
    change(line)
    ledger(study).write_text(json.dumps(line) + "\n")
    tracemalloc.start()
    try:
        with pytest.raises(NeonatalSegError, match="does not fit the slice"):
            AnnotationSession.open(study, "Anna")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_plan_for_a_giant_is_refused(study: Path) -> None:
    text = json.loads((study / "plan.json").read_text(encoding="utf-8"))
    text["grids"]["sub-01"]["size"] = [4000, 4000, 4000]
    (study / "plan.json").write_text(json.dumps(text))
    with pytest.raises(NeonatalSegError, match="no newborn's scan"):
        AnnotationSession.open(study, "Anna")


def test_labels_reach_the_disk_under_two_sessions(study: Path) -> None:
    """Two programs in one study under one name, because somebody deleted the lock: one of them is told, none loses."""
    first = AnnotationSession.open(study, "Anna")
    first.complete(AXIAL, labels_for(AXIAL, 1), 1.0)
    (study / "raters" / "Anna" / "lock").unlink()
    second = AnnotationSession.open(study, "Anna")
    second.complete("sub-01/axial/11", labels_for("sub-01/axial/11", 2), 1.0)
    with pytest.raises(NeonatalSegError, match=r"took this study over.*Nothing that was saved before is lost\."):
        first.complete("sub-01/coronal/12", labels_for("sub-01/coronal/12", 3), 1.0)
    first.close()
    second.complete("sub-01/coronal/12", labels_for("sub-01/coronal/12", 4), 1.0)
    second.close()
    with AnnotationSession.open(study, "Anna") as session:
        assert [item.state for item in session.items].count("done") == 3
        assert np.unique(session.label_plane("sub-01/coronal/12")).tolist()[-1] == 4
