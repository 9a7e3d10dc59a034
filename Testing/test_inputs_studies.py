"""Doubts about a scan on their way to whoever reads the result; whose file is replaced; several jobs in one folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.preprocessing import foreground, prepare
from NeonatalSegLib.scans.scan import load_scan, make_scan
from NeonatalSegLib.segmentation.batch import StudyResult, run_study
from NeonatalSegLib.segmentation.outputs import segment_to_folder
from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions
from NeonatalSegLib.segmentation.study_scans import scans_of_bids, scans_of_list


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return draw_newborn(40.0, seed=7, spacing_mm=3.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    settings = NetworkSettings((2, 4, 4), 3.0, (32, 32, 32), heads=0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return Segmenter(save_model(build_network(settings), settings, folder, description="random"), "cpu")


@pytest.fixture
def t2(coarse: Phantom, tmp_path: Path) -> Path:
    path = tmp_path / "scan" / "one_T2w.nii.gz"
    path.parent.mkdir()
    sitk.WriteImage(coarse.t2, str(path))
    return path


def two_forms(path: Path) -> Path:
    """The file with a qform that lies 20 mm away from its sform."""
    nib = pytest.importorskip("nibabel")
    image = nib.load(path)
    shifted = image.affine.copy()
    shifted[0, 3] += 20
    data = np.asarray(image.dataobj)
    image = nib.Nifti1Image(data, image.affine, image.header)
    image.set_qform(shifted, 1)
    nib.save(image, path)
    return path


def quiet_study(tiny: Segmenter, table: Path, out: Path, **more: object) -> StudyResult:
    return run_study(tiny, scans_of_list(table), out, report=lambda _: None, **more)  # type: ignore[arg-type]


def listed(folder: Path, **scans: Path) -> Path:
    table = folder / f"{'-'.join(scans)}.tsv"
    table.write_text("name\tt2\n" + "".join(f"{name}\t{path}\n" for name, path in scans.items()))
    return table


# --- a doubt reaches whoever reads the result ----------------------------------------------------------------------


def test_a_doubt_reaches_every_reader(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    two_forms(t2)
    out = tmp_path / "out"
    result = quiet_study(tiny, listed(tmp_path, one=t2), out)
    assert result.done == ["one"] and result.table is not None
    facts = json.loads((out / "one" / "one_dseg.json").read_text(encoding="utf-8"))
    assert any("disagree by up to 20 mm" in text for text in facts["Warnings"])
    assert str(tmp_path) not in json.dumps(facts)  # what is sent on names no folder
    assert "disagree by up to 20 mm" in (out / "one" / "one_report.html").read_text(encoding="utf-8")
    head, row = (line.split("\t") for line in (out / "qc.tsv").read_text(encoding="utf-8").splitlines())
    cells = dict(zip(head, row, strict=True))
    assert int(cells["warnings"]) == len(facts["Warnings"]) and "20 mm" in cells["warning_texts"]
    assert "disagree by up to 20 mm" in (out / "report.html").read_text(encoding="utf-8")
    strict = run_study(tiny, scans_of_list(listed(tmp_path, two=t2)), out, SegmentOptions(strict=True))
    assert "--strict" in strict.failed["two"] and strict.exit_status == 4


def test_the_label_map_lies_on_the_scan_in_every_reader(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    scan = load_scan(t2=two_forms(t2))
    written = segment_to_folder(tiny, scan, tmp_path, options=SegmentOptions(probabilities=True), picture=False)
    for kind in ("dseg", "probabilities"):
        ours, theirs = nib.load(written[kind]), nib.load(t2)
        assert np.allclose(ours.get_qform(), theirs.get_qform(), atol=1e-3)
        assert np.allclose(ours.get_sform(), theirs.get_sform(), atol=1e-3)


def test_the_command_tells_and_refuses_with_status_2(
    tiny: Segmenter, t2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", "--t2", str(two_forms(t2)), "--out", str(tmp_path / "out"), "--model", str(tiny.model.folder)]
    assert run(command) == 0
    assert "Warning: one_T2w.nii.gz: qform and sform disagree" in capsys.readouterr().err
    assert run([*command, "--strict"]) == 2
    assert "refused because of --strict" in capsys.readouterr().err
    assert run([*command, "--name", "a/b"]) == 2
    assert run([*command, "--assume-orientation", "up"]) == 2


def test_t1_and_t2_exchanged(newborn_files: dict[str, Path]) -> None:
    assert load_scan(newborn_files["t1"], newborn_files["t2"]).warnings == ()
    assert "look exchanged" in load_scan(newborn_files["t2"], newborn_files["t1"]).warnings[0]
    assert "The T2 looks like a T1" in load_scan(t2=newborn_files["t1"]).warnings[0]
    assert "The T1 looks like a T2" in load_scan(t1=newborn_files["t2"]).warnings[0]


def test_a_t1_of_half_the_head_is_told_as_what_it_is(newborn: Phantom) -> None:
    size = newborn.t1.GetSize()
    half = newborn.t1[:, :, : size[2] // 2]
    empty = sitk.GetArrayFromImage(newborn.t1)
    empty[: size[2] // 2 + 5] = 0
    masked = sitk.GetImageFromArray(empty)
    masked.CopyInformation(newborn.t1)
    for t1 in (half, masked):
        warnings = prepare(make_scan(t1, newborn.t2), 2.0, trust_headers=True).warnings
        assert any("of the head that T2 shows" in text for text in warnings)
        assert not any("different newborns" in text for text in warnings)


def test_one_hot_voxel_in_noisy_air_changes_nothing(newborn: Phantom) -> None:
    generator = np.random.default_rng(3)
    noisy = sitk.GetArrayFromImage(newborn.t2) + np.abs(generator.normal(0, 8, newborn.t2.GetSize()[::-1]))
    plain = sitk.GetImageFromArray(noisy.astype(np.float32))
    noisy[4, 4, 4] = 1e6
    hot = sitk.GetImageFromArray(noisy.astype(np.float32))
    for image in (plain, hot):
        image.CopyInformation(newborn.t2)
    found = make_scan(t2=hot)
    assert [text for text in found.warnings if "1 voxels lie far outside" in text]
    assert make_scan(t2=plain).warnings == ()
    one, other = (sitk.GetArrayFromImage(foreground(make_scan(t2=i).reference)) > 0 for i in (plain, hot))
    assert 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)) > 0.99


def test_a_head_of_impossible_size_is_told(coarse: Phantom) -> None:
    large = sitk.Image(coarse.t2)
    large.SetSpacing([s * 3 for s in coarse.t2.GetSpacing()])
    assert any("larger than any head" in text for text in prepare(make_scan(t2=large), 6.0).warnings)
    small = sitk.Image(coarse.t2)
    small.SetSpacing([s / 3 for s in coarse.t2.GetSpacing()])
    assert any("smaller than a newborn's brain" in text for text in prepare(make_scan(t2=small), 2.0).warnings)


# --- whose file is it ----------------------------------------------------------------------------------------------


def corrected(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image[3, 3, 3] = 9
    sitk.WriteImage(image, str(path))


def a_file_of_ours(path: Path) -> None:
    path.with_name(path.name.replace("_dseg.nii.gz", "_dseg.json")).unlink()


@pytest.mark.parametrize("change", [corrected, a_file_of_ours])
def test_what_was_changed_since_is_not_replaced(
    tiny: Segmenter, t2: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    table, out = listed(tmp_path, one=t2), tmp_path / "out"
    assert quiet_study(tiny, table, out).done == ["one"]
    assert quiet_study(tiny, table, out).skipped == ["one"]
    change(out / "one" / "one_dseg.nii.gz")
    before = {path.name: path.read_bytes() for path in (out / "one").iterdir()}
    refused = quiet_study(tiny, table, out)
    assert "one_dseg.nii.gz" in refused.failed["one"] and "--overwrite" in refused.failed["one"]
    assert {path.name: path.read_bytes() for path in (out / "one").iterdir()} == before
    assert quiet_study(tiny, table, out, overwrite=True).done == ["one"]
    assert quiet_study(tiny, table, out).skipped == ["one"]


def test_somebody_s_file_where_results_go_is_not_replaced(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    mine = tmp_path / "one_dseg.nii.gz"
    mine.write_bytes(b"a week of corrections")
    with pytest.raises(NeonatalSegError, match=r"one_dseg\.nii\.gz, which was not written by this program"):
        segment_to_folder(tiny, load_scan(t2=t2), tmp_path)
    assert mine.read_bytes() == b"a week of corrections"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one_dseg.nii.gz", "scan"]


def test_the_data_set_itself_is_no_place_for_results(tiny: Segmenter, coarse: Phantom, tmp_path: Path) -> None:
    anat = tmp_path / "sub-A" / "anat"
    anat.mkdir(parents=True)
    sitk.WriteImage(coarse.t2, str(anat / "sub-A_T2w.nii.gz"))
    (tmp_path / "dataset_description.json").write_text('{"Name": "Mine", "BIDSVersion": "1.8.0", "Authors": ["me"]}')
    (tmp_path / "volumes.tsv").write_text("my\tvolumes\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = ["batch", "--bids", str(tmp_path), "--out", str(tmp_path), "--model", str(tiny.model.folder)]
    assert run(command) == 2
    (tmp_path / "dataset_description.json").rename(tmp_path / "kept.json")
    assert run(command) == 2  # the table alone is enough
    (tmp_path / "kept.json").rename(tmp_path / "dataset_description.json")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    out = tmp_path / "derivatives" / "neonatalseg"
    assert run_study(tiny, scans_of_bids(tmp_path), out, report=lambda _: None).done == ["sub-A"]
    assert [scan.name for scan in scans_of_bids(tmp_path)] == ["sub-A"]  # results are no newborns


def test_what_people_add_to_the_description_stays(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    table, out = listed(tmp_path, one=t2), tmp_path / "out"
    quiet_study(tiny, table, out)
    facts = json.loads((out / "dataset_description.json").read_text(encoding="utf-8")) | {"Authors": ["me"]}
    (out / "dataset_description.json").write_text(json.dumps(facts))
    quiet_study(tiny, table, out)
    assert json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))["Authors"] == ["me"]
    (out / "volumes.tsv").write_text("edited\n")
    with pytest.raises(NeonatalSegError, match=r"volumes\.tsv"):
        quiet_study(tiny, table, out)


def test_a_scan_exported_again_under_its_name_is_done_again(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    table, out = listed(tmp_path, one=t2), tmp_path / "out"
    quiet_study(tiny, table, out)
    stamp = t2.stat()
    image = sitk.ReadImage(str(t2))
    image[5, 5, 5] = image[5, 5, 5] + 1
    sitk.WriteImage(image, str(t2))
    os.utime(t2, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a copy that keeps the date
    assert quiet_study(tiny, table, out).done == ["one"]
    moved = t2.rename(t2.with_name("elsewhere.nii.gz"))
    assert quiet_study(tiny, listed(tmp_path, one=moved), out).skipped == ["one"]  # the same content


# --- several jobs; odd scans ---------------------------------------------------------------------------------------


def test_two_jobs_with_their_own_lists_share_a_table(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("one", "two"):
        quiet_study(tiny, listed(tmp_path, **{name: t2}), out)
    rows = [line.split("\t")[0] for line in (out / "volumes.tsv").read_text(encoding="utf-8").splitlines()]
    assert rows == ["name", "one", "two"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_results_stay_below_the_folder(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "one").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "would lie outside" in quiet_study(tiny, listed(tmp_path, one=t2), tmp_path / "out").failed["one"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_name_that_is_not_utf8_does_not_end_the_study(tiny: Segmenter, t2: Path, tmp_path: Path) -> None:
    root = tmp_path / "bids"
    for folder, name in (("sub-A", "sub-A"), (os.fsdecode(b"sub-B\xe9"), "sub-B"), ("sub-C", "sub-C")):
        anat = root / folder / "anat"
        anat.mkdir(parents=True)
        (anat / f"{name}_T2w.nii.gz").write_bytes(t2.read_bytes())
    result = run_study(tiny, scans_of_bids(root), tmp_path / "out", report=lambda _: None)
    assert result.done == ["sub-A", "sub-C"] and "not UTF-8" in result.failed["sub-B"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["sub-A", "sub-C"]
    with pytest.raises(NeonatalSegError, match="not UTF-8"):
        segment_to_folder(tiny, load_scan(t2=t2), os.fsdecode(bytes(tmp_path) + b"/r\xe9sultats"))


def test_who_was_left_out_is_named_at_the_end(
    tiny: Segmenter, t2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "bids"
    for name in ("sub-A_T2w", "sub-B_acq-x_T2w", "sub-B_acq-y_T2w"):
        anat = root / name.split("_")[0] / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        (anat / f"{name}.nii.gz").write_bytes(t2.read_bytes())
    command = ["batch", "--bids", str(root), "--out", str(tmp_path / "out"), "--model", str(tiny.model.folder)]
    assert run(command) == 0
    told = capsys.readouterr().out
    assert "1 segmented" in told and "1 left out" in told and "left out: sub-B: Two T2w files" in told
