"""BIDS folders and the cache of prepared arrays."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.datasets.cache import build_cache, bytes_needed, data_digest, failures, read_cache
from NeonatalSegLib.datasets.dhcp import find_labelled
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.preprocessing import labels_on, prepare


def bids(root: Path, newborn: Phantom, subjects: tuple[str, ...] = ("sub-A", "sub-B")) -> Path:
    """A small BIDS data set made of one synthetic newborn under several names."""
    (root / "participants.tsv").write_text(
        "participant_id\tscan_age\n" + "".join(f"{s}\t{40 + i}\n" for i, s in enumerate(subjects)), encoding="utf-8"
    )
    for subject in subjects:
        anat = root / subject / "anat"
        derived = root / "derivatives" / "drawem" / subject / "anat"
        anat.mkdir(parents=True)
        derived.mkdir(parents=True)
        sitk.WriteImage(newborn.t1, str(anat / f"{subject}_T1w.nii.gz"))
        sitk.WriteImage(newborn.t2, str(anat / f"{subject}_T2w.nii.gz"))
        sitk.WriteImage(newborn.labels, str(derived / f"{subject}_desc-drawem9_dseg.nii.gz"))
    return root


def test_subjects_with_their_files_and_ages(tmp_path: Path, newborn: Phantom) -> None:
    bids(tmp_path, newborn)
    (tmp_path / "sub-B" / "anat" / "sub-B_T1w.nii.gz").unlink()
    a, b = find_subjects(tmp_path)
    assert (a.name, a.age_weeks, b.age_weeks) == ("sub-A", 40, 41)
    assert a.labels is not None and a.labels.name == "sub-A_desc-drawem9_dseg.nii.gz"
    assert b.t1 is None and b.t2 is not None


def test_sessions_are_separate_and_have_their_own_age(tmp_path: Path) -> None:
    for session in ("1", "2"):
        anat = tmp_path / "sub-A" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-A_ses-{session}_T2w.nii.gz").touch()
    (tmp_path / "sub-A" / "sub-A_sessions.tsv").write_text("session_id\tscan_age\nses-1\t31.5\nses-2\t40.2\n")
    first, second = find_subjects(tmp_path)
    assert (first.name, first.age_weeks, second.age_weeks) == ("sub-A_ses-1", 31.5, 40.2)
    assert first.participant == second.participant == "sub-A"


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="was found below"):
        find_subjects(tmp_path)
    with pytest.raises(NeonatalSegError, match="no folder"):
        find_subjects(tmp_path / "missing")


def test_cache_holds_what_preparation_gives(tmp_path: Path, newborn: Phantom) -> None:
    subjects = build_cache(find_subjects(bids(tmp_path, newborn)), tmp_path / "cache", 1.2)
    assert [s.name for s in subjects] == ["sub-A", "sub-B"]
    image, labels = subjects[0].image(), subjects[0].labels()
    assert image.dtype == np.float16 and labels.dtype == np.uint8
    assert image.shape == (2, *labels.shape)
    assert set(np.unique(labels)) == set(range(10))
    expected = prepare(newborn.scan, 1.2)
    assert np.allclose(image, expected.array, atol=0.02)  # 16 bits, and what a file's header rounds off
    assert (labels == labels_on(expected.grid, newborn.labels)).mean() > 0.999
    assert read_cache(tmp_path / "cache") == subjects


def test_cache_is_built_once_and_not_mixed(tmp_path: Path, newborn: Phantom) -> None:
    found = find_subjects(bids(tmp_path, newborn))
    build_cache(found[:1], tmp_path / "cache", 1.2)
    stamp = (tmp_path / "cache" / "sub-A_image.npy").stat().st_mtime_ns
    assert len(build_cache(found, tmp_path / "cache", 1.2)) == 2
    assert (tmp_path / "cache" / "sub-A_image.npy").stat().st_mtime_ns == stamp
    with pytest.raises(NeonatalSegError, match="choose another folder"):
        build_cache(found, tmp_path / "cache", 0.8)


def test_what_changed_is_prepared_again_and_the_rest_is_left(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn)
    found = find_subjects(root)
    before = {s.name: s for s in build_cache(found, tmp_path / "cache", 1.5)}
    old_labels = np.array(before["sub-A"].labels())
    array = sitk.GetArrayFromImage(newborn.labels)
    corrected = sitk.GetImageFromArray(np.where(array == 9, 3, array))
    corrected.CopyInformation(newborn.labels)
    sitk.WriteImage(corrected, str(next(root.rglob("sub-A*dseg.nii.gz"))))
    older = dataclasses.replace(find_subjects(root)[1], age_weeks=33.0)
    after = {s.name: s for s in build_cache([find_subjects(root)[0], older], tmp_path / "cache", 1.5)}
    assert 9 in old_labels and 9 not in after["sub-A"].labels()
    assert after["sub-B"].age_weeks == 33.0
    assert data_digest([before["sub-B"]]) != data_digest([after["sub-B"]])  # another age
    assert before["sub-A"].digest != after["sub-A"].digest
    assert before["sub-B"].digest == after["sub-B"].digest


def test_only_who_is_asked_for_is_given(tmp_path: Path, newborn: Phantom) -> None:
    found = find_subjects(bids(tmp_path, newborn))
    build_cache(found, tmp_path / "cache", 1.5, phantoms=1)
    assert [s.name for s in build_cache(found[1:], tmp_path / "cache", 1.5)] == ["sub-B"]
    inside = read_cache(tmp_path / "cache")[1].inside()
    assert inside is not None and inside.dtype == bool and 0.3 < inside.mean() < 1


def test_a_bad_scan_is_named_or_left_out_and_the_rest_is_prepared(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn, ("sub-A", "sub-B", "sub-C"))
    file = next(root.rglob("sub-B_T1w.nii.gz"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    found = find_subjects(root)
    with pytest.raises(NeonatalSegError, match=r"sub-B.*--exclude leaves it out"):
        build_cache(found, tmp_path / "cache", 3.0)
    told: list[str] = []
    prepared = build_cache(found, tmp_path / "cache", 3.0, processes=2, keep_going=True, progress=told.append)
    assert [s.name for s in prepared] == ["sub-A", "sub-C"] and list(failures(tmp_path / "cache")) == ["sub-B"]
    assert any("sub-B: left out" in line for line in told) and all("min left" in line for line in told)
    told.clear()  # what was prepared, or could not be, is not tried again until its files change
    build_cache(found, tmp_path / "cache", 3.0, keep_going=True, progress=told.append)
    assert len(told) == 1 and told[0].startswith("sub-B is left out")
    file.write_bytes(whole)
    assert len(build_cache(find_subjects(root), tmp_path / "cache", 3.0, keep_going=True)) == 3
    assert failures(tmp_path / "cache") == {}


def test_scans_prepared_side_by_side_are_those_prepared_one_by_one(tmp_path: Path, newborn: Phantom) -> None:
    found = find_subjects(bids(tmp_path, newborn))
    one = build_cache(found, tmp_path / "one", 3.0)
    two = build_cache(found, tmp_path / "two", 3.0, processes=2)
    assert [s.digest for s in one] == [s.digest for s in two] and one[0].digest
    needed = bytes_needed(found, tmp_path / "new", 3.0)
    written = sum(f.stat().st_size for f in (tmp_path / "one").glob("*.npy"))
    assert written < needed < 4 * written and bytes_needed(found, tmp_path / "one", 3.0) == 0


def test_a_t1_of_another_newborn_is_told(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn, ("sub-A",))
    other = draw_newborn(44, 9, spacing_mm=newborn.t1.GetSpacing(), orientation="LPS")
    file = next(root.rglob("sub-A_T1w.nii.gz"))
    array = sitk.GetArrayFromImage(sitk.Resample(other.t1, newborn.t1))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array[:, ::-1]))
    image.CopyInformation(newborn.t1)
    sitk.WriteImage(image, str(file))
    told: list[str] = []
    (subject,) = build_cache(find_subjects(root), tmp_path / "cache", 3.0, report=told.append)
    assert "agree poorly" in " ".join(subject.warnings) and "agree poorly" in told[0]


def test_scans_without_labels_are_listed_and_not_trained_on(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn)
    next(root.rglob("sub-A*dseg.nii.gz")).unlink()
    found = find_labelled(root)
    assert [s.name for s in found.subjects] == ["sub-B"]
    assert "sub-A: no labels" in found.summary()
    next(root.rglob("sub-B*dseg.nii.gz")).unlink()
    with pytest.raises(NeonatalSegError, match="nothing to train on"):
        find_labelled(root)


def test_cache_is_read_without_simpleitk(tmp_path: Path, newborn: Phantom) -> None:
    """It is carried to a machine with a GPU that does not have it."""
    build_cache(find_subjects(bids(tmp_path, newborn, ("sub-A",))), tmp_path / "cache", 1.5)
    program = (
        "import sys; sys.modules['SimpleITK'] = None\n"
        "from NeonatalSegLib.training.run import PatchDataset, TrainingSettings\n"
        "from NeonatalSegLib.datasets.cache import read_cache\n"
        f"item = PatchDataset(read_cache({str(tmp_path / 'cache')!r}), TrainingSettings())[0]\n"
        "print(tuple(item['image'].shape))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 96, 96, 96)", done.stderr


def test_unknown_label_values_are_named_with_their_file(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn, ("sub-A",))
    file = next(root.rglob("*dseg.nii.gz"))
    sitk.WriteImage(newborn.labels + 5, str(file))
    with pytest.raises(NeonatalSegError, match=r"dseg\.nii\.gz holds values that are not labels: 10, 11"):
        build_cache(find_subjects(root), tmp_path / "cache", 1.2)


def test_labels_on_another_grid_are_refused(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn, ("sub-A",))
    file = next(root.rglob("*dseg.nii.gz"))
    sitk.WriteImage(sitk.Crop(newborn.labels, [1, 0, 0], [0, 0, 0]), str(file))
    with pytest.raises(NeonatalSegError, match="does not lie on the grid"):
        build_cache(find_subjects(root), tmp_path / "cache", 1.2)


def test_a_subject_without_labels_cannot_be_trained_on(tmp_path: Path, newborn: Phantom) -> None:
    root = bids(tmp_path, newborn, ("sub-A",))
    next(root.rglob("*dseg.nii.gz")).unlink()
    with pytest.raises(NeonatalSegError, match="has no label map"):
        build_cache(find_subjects(root), tmp_path / "cache", 1.2)
