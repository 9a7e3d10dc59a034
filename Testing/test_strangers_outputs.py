"""What a segmentation leaves on disk when the disk is full, the process killed, or a name odd."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from annotation_cases import largest_file
from faults import every_kill, files_in, posix

from NeonatalSegLib.datasets import cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.text import cell, shown
from NeonatalSegLib.files.together import finish_left
from NeonatalSegLib.scans.scan import Scan, make_scan
from NeonatalSegLib.scans.write import replace_image
from NeonatalSegLib.segmentation.outputs import is_as_written, write_outputs
from NeonatalSegLib.segmentation.segmenter import Segmentation
from NeonatalSegLib.tissues import TISSUES

SIZE = (30, 28, 26)


def image(array: np.ndarray) -> sitk.Image:
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((1.0, 1.0, 1.0))
    return made


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan(None, image(np.random.default_rng(1).random(SIZE[::-1], np.float32)), name="sub-01")


def result(label: int) -> Segmentation:
    """Noise, so that it takes room, in which a volume tells which result it is."""
    labels = np.random.default_rng(label).integers(0, 10, SIZE[::-1], np.uint8)
    return Segmentation(image(labels), {t.key: float(label) for t in TISSUES}, model_hash=str(label))


def state(folder: Path) -> str:
    """Which result lies in a folder; "mixed" where label map, volumes and side-car are not of one."""
    if not list(folder.glob("sub-01*")):
        return "none"
    facts = json.loads((folder / "sub-01_dseg.json").read_text(encoding="utf-8"))
    which = int(facts["Model"]["SHA256"])
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "sub-01_dseg.nii.gz")))
    volumes = (folder / "sub-01_volumes.tsv").read_text(encoding="utf-8")
    same = (labels == sitk.GetArrayFromImage(result(which).label_map)).all() and f"\t{which}.000" in volumes
    return str(which) if same and is_as_written(folder, facts) else "mixed"


@posix
def test_a_kill_leaves_one_result_whole(scan: Scan, tmp_path: Path) -> None:
    write_outputs(result(1), scan, tmp_path / "first", picture=False)
    seen = set()
    for before in ("none", "1"):
        out = tmp_path / "out"

        def as_before(out: Path = out, before: str = before) -> None:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(tmp_path / "first", out) if before == "1" else out.mkdir()

        as_before()
        for _ in every_kill(lambda: write_outputs(result(2), scan, tmp_path / "out", picture=False), stride=2):
            finish_left(out)  # what the next run does first
            assert state(out) in (before, "2") and not [p for p in out.iterdir() if p.name.startswith(".neonatalseg")]
            seen.add(state(out))
            as_before()
    assert seen == {"none", "1", "2"}


def test_what_the_last_result_had_besides_does_not_stay_beside_the_new_one(scan: Scan, tmp_path: Path) -> None:
    both = result(1)
    both.uncertainty = both.probabilities = scan.reference
    written = write_outputs(both, scan, tmp_path)
    written["probabilities"].write_bytes(b"mine now")
    (tmp_path / "sub-01_dseg.dcm").write_bytes(b"from elsewhere")
    write_outputs(result(2), scan, tmp_path, picture=False)
    assert not written["uncertainty"].exists()
    assert not written["picture"].exists()
    assert written["probabilities"].read_bytes() == b"mine now"  # whose it is not, is not removed
    assert (tmp_path / "sub-01_dseg.dcm").exists()
    assert state(tmp_path) == "2"


@posix
def test_a_full_disk_leaves_the_old_result(scan: Scan, tmp_path: Path) -> None:
    write_outputs(result(1), scan, tmp_path, picture=False)
    before = files_in(tmp_path)
    for size in (10, 500, 2000, 6000):
        with largest_file(size), pytest.raises(NeonatalSegError, match="could not be written"):
            write_outputs(result(2), scan, tmp_path, picture=False)
        assert files_in(tmp_path) == before


@posix
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_an_image_is_replaced_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    replace_image(result(1).label_map, path)
    before = path.read_bytes()
    for size in (100, len(before) - 100):
        with largest_file(size), pytest.raises(OSError, match=r".+"):
            replace_image(result(2).label_map, path)
        assert files_in(tmp_path) == {name: before}


def test_a_file_that_is_not_the_side_cars_does_not_count_as_done(scan: Scan, tmp_path: Path) -> None:
    written = write_outputs(result(1), scan, tmp_path, picture=False)
    facts = json.loads(written["sidecar"].read_text(encoding="utf-8"))
    assert is_as_written(tmp_path, facts)
    for kind in ("dseg", "volumes"):
        content = written[kind].read_bytes()
        written[kind].write_bytes(b"")
        assert not is_as_written(tmp_path, facts)
        written[kind].unlink()
        assert not is_as_written(tmp_path, facts)
        written[kind].write_bytes(content)
    assert is_as_written(tmp_path, facts)


def test_the_report_names_no_folder(tmp_path: Path) -> None:
    grey = image(np.random.default_rng(1).random(SIZE[::-1], np.float32))
    scan = make_scan(None, grey, name="sub-01", sources={"t2": "/home/eve/patients/sub-01_T2w.nii.gz"})
    page = write_outputs(result(1), scan, tmp_path, picture=False)["report"].read_text(encoding="utf-8")
    assert "sub-01_T2w.nii.gz" in page and "patients" not in page


def test_names_do_not_hinder_the_picture_nor_leave_the_folder(scan: Scan, tmp_path: Path) -> None:
    from NeonatalSegLib.segmentation.overlay import draw_overlay, upright

    draw_overlay(upright(scan.reference, result(1).label_map), tmp_path / "a.png", title="cost $5_ of \\frac{")
    assert (tmp_path / "a.png").stat().st_size > 1000
    for name in ("../out", "a\nb", "=1+1", "a\tb", "\x1b[2J", ".."):
        with pytest.raises(NeonatalSegError, match="cannot be the name"):
            write_outputs(result(1), scan, tmp_path / "out", name=name, picture=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "in_cell", "on_screen"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)", "=HYPERLINK(1)"),
        ("-ft001", "'-ft001", "-ft001"),
        ("a\nb\tc", "a b c", "a\nb\tc"),
        ("a\x1b[2Jb", "a\\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb", "a\\u202eb", "a\\u202eb"),
        ("Zoë 2", "Zoë 2", "Zoë 2"),
    ],
)
def test_text_from_elsewhere(text: str, in_cell: str, on_screen: str) -> None:
    assert (cell(text), shown(text)) == (in_cell, on_screen)


@posix
def test_arrays_that_are_mapped_stay_as_they_were(tmp_path: Path) -> None:
    """A reader of the cache while it is built anew: before, a truncated file under its map ended it by SIGBUS."""
    grown = np.full((2, 40, 40, 40), 1, np.float16)
    subject = cache.CachedSubject("sub-01", tmp_path, 40.0)
    cache._save(tmp_path, "sub-01", grown, np.ones((40, 40, 40), np.uint8), None)
    mapped = subject.image()
    cache._save(tmp_path, "sub-01", grown[:, :4] * 2, np.ones((4, 40, 40), np.uint8), None)
    assert (np.asarray(mapped) == 1).all() and mapped.shape == (2, 40, 40, 40)
    assert (subject.image() == 2).all()
