"""What must hold before nnU-Net is compared: who trains it, what it is given, and when it stops."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import compare_nnunet, nnunet_peer
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.scan import make_scan
from NeonatalSegLib.tissues import TISSUES

ROLES = {
    "training_subjects": ["age-36", "phantom00", "sub-01"],
    "validation_subjects": ["sub-02"],
    "test_subjects": ["sub-03"],
}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return draw_newborn(40.0, seed=5, spacing_mm=3.0)


def marked(image: sitk.Image, number: int) -> sitk.Image:
    """``image`` as that of the newborn of this number: its first voxel says so."""
    image = sitk.Image(image)  # a copy, once it is written to
    image[0, 0, 0] = number
    return image


@pytest.fixture(scope="module")
def data(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three newborns, told apart by the first voxel of each of their files."""
    root = tmp_path_factory.mktemp("bids")
    for number in (1, 2, 3):
        folder = root / f"sub-{number:02d}" / "anat"
        folder.mkdir(parents=True)
        for image, ending in ((phantom.t1, "T1w"), (phantom.t2, "T2w"), (phantom.labels, "dseg")):
            sitk.WriteImage(marked(image, number), str(folder / f"sub-{number:02d}_{ending}.nii.gz"))
    return root


def model_of(folder: Path, **roles: list[str]) -> Model:
    settings = NetworkSettings((2, 4, 4), 3.0, (16, 16, 16), heads=1)
    return save_model(build_network(settings), settings, folder / "tiny", description="tiny", facts=ROLES | roles)


def test_the_peer_gets_the_training_and_validation_newborns_and_no_other(data: Path, tmp_path: Path) -> None:
    model = model_of(tmp_path)
    work = tmp_path / "work"
    compare_nnunet.main(["prepare", "--data", str(data), "--model", str(model.folder), "--work", str(work)])
    folder = work / "raw" / nnunet_peer.DATASET
    cases = {path.name.split(".")[0].rsplit("_", 1)[0] for path in (folder / "imagesTr").iterdir()}
    assert cases == {path.name.split(".")[0] for path in (folder / "labelsTr").iterdir()} == {"sub-01", "sub-02"}
    assert not [path for path in work.rglob("*") if any(n in path.name for n in ("sub-03", "phantom", "age-"))]
    split = json.loads((work / "preprocessed" / nnunet_peer.DATASET / "splits_final.json").read_text(encoding="utf-8"))
    assert split == [{"train": ["sub-01"], "val": ["sub-02"]}]
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert described["numTraining"] == 2 and described["channel_names"] == {"0": "T1", "1": "T2"}
    assert sorted(described["labels"].values()) == [t.index for t in TISSUES] and described["labels"]["background"] == 0


def test_the_channels_are_t1_then_t2_with_the_labels_of_the_file(data: Path, tmp_path: Path, phantom: Phantom) -> None:
    training, validation = compare_nnunet.split_subjects(model_of(tmp_path), data)
    folder = compare_nnunet.write_dataset(training, validation, tmp_path / "work")
    files = {"imagesTr/{}_0000": phantom.t1, "imagesTr/{}_0001": phantom.t2, "labelsTr/{}": phantom.labels}
    for number in (1, 2):
        for name, image in files.items():
            written = sitk.ReadImage(str(folder / f"{name.format(f'sub-{number:02d}')}.nii.gz"))
            assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(marked(image, number)))
            assert np.allclose(written.GetOrigin(), phantom.t2.GetOrigin(), atol=1e-3)
    with pytest.raises(NeonatalSegError, match="there already"):
        compare_nnunet.write_dataset(training, validation, tmp_path / "work")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"training_subjects": ["sub-01", "sub-03"]}, "sub-03 is among the training subjects"),
        ({"training_subjects": ["sub-01"], "test_subjects": ["sub-01_ses-2"]}, "sub-01 is among the training subjects"),
        ({"validation_subjects": ["sub-03"]}, "sub-03 is among the validation subjects"),
        ({"training_subjects": ["sub-01", "sub-02"]}, "is a training and a validation subject"),
        ({"training_subjects": ["sub-09"]}, "sub-09 of the training subjects"),
        ({"training_subjects": ["phantom00"]}, "states no training subjects"),
    ],
)
def test_a_kept_out_newborn_never_trains_the_peer(
    roles: dict[str, list[str]], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(NeonatalSegError, match=message):
        compare_nnunet.split_subjects(model_of(tmp_path, **roles), data)


def test_a_peer_trained_for_another_model_is_not_scored_on_what_it_knows(data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    compare_nnunet.write_dataset(*compare_nnunet.split_subjects(model_of(tmp_path), data), work)
    compare_nnunet.refuse_known(["sub-03", "sub-04_ses-1"], work)
    for known in ("sub-01", "sub-02_ses-7"):
        with pytest.raises(NeonatalSegError, match="trained with it"):
            compare_nnunet.refuse_known([known], work)
    with pytest.raises(NeonatalSegError, match="give prepare first"):
        compare_nnunet.refuse_known(["sub-03"], tmp_path)


def test_a_missing_contrast_is_zeros_and_another_grid_becomes_that_of_the_t2(phantom: Phantom, tmp_path: Path) -> None:
    t1 = sitk.DICOMOrient(phantom.t1, "RAS")
    scan = make_scan(t1=t1, t2=phantom.t2, name="sub-01")
    for contrast in ("T1+T2", "T2", "T1"):
        compare_nnunet.write_channels(compare_nnunet.shown(scan, contrast), tmp_path, contrast.replace("+", ""))
    both, t2_alone, t1_alone = (
        [sitk.ReadImage(str(tmp_path / f"{name}_000{n}.nii.gz")) for n in (0, 1)] for name in ("T1T2", "T2", "T1")
    )
    arrays = [[sitk.GetArrayFromImage(image) for image in pair] for pair in (both, t2_alone, t1_alone)]
    assert both[0].GetSize() == both[1].GetSize() and both[0].GetDirection() == both[1].GetDirection()
    like = sitk.GetArrayFromImage(phantom.t1)[arrays[0][1] > 0]
    assert np.corrcoef(arrays[0][0][arrays[0][1] > 0], like)[0, 1] > 0.9
    assert not arrays[1][0].any() and arrays[1][1].any()
    assert arrays[2][0].any() and not arrays[2][1].any()


def test_dsc_is_taken_on_the_grid_of_the_truth(phantom: Phantom) -> None:
    turned = sitk.DICOMOrient(phantom.labels, "RAS")
    dsc = compare_nnunet.dsc_onto_truth(turned, phantom.labels)
    assert np.nanmin(dsc) == 1.0
    shifted = sitk.Image(turned)
    shifted.SetOrigin([o + 9.0 for o in turned.GetOrigin()])
    assert np.nanmean(compare_nnunet.dsc_onto_truth(shifted, phantom.labels)[1:]) < 0.7


def test_the_training_ends_before_an_epoch_that_would_not_fit() -> None:
    now = 100.0
    budget = nnunet_peer.Budget(60.0, lambda: now)
    now = 500.0  # loading the data
    budget.start()
    assert budget.share == 0.0
    ended = []
    for seconds in (20.0, 10.0, 15.0):
        now += seconds
        ended.append(budget.epoch_ended())
    assert ended == [False, False, True]  # 30 s gone leave room for one of 20 s, 45 s do not
    assert budget.share == 0.75
    now += 1000.0
    assert budget.share < 1.0  # nothing left would stop the learning, and a negative base has no real power
    for minutes in (0.0, -1.0):
        with pytest.raises(NeonatalSegError, match="no time to train"):
            nnunet_peer.Budget(minutes * 60)


def test_the_limit_and_the_device_reach_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = nnunet_peer.train_command(12.5, "cpu", 3, 2)
    assert command[0] == sys.executable and Path(command[1]).is_file()
    given = nnunet_peer.make_parser().parse_args(command[2:])
    assert (given.minutes, given.device, given.iterations, given.validation_iterations) == (12.5, "cpu", 3, 2)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    said = tmp_path / "said"
    code = f"import os; open({str(said)!r}, 'w').write(os.environ['nnUNet_raw'])"
    nnunet_peer.run([sys.executable, "-c", code], tmp_path)
    assert Path(said.read_text(encoding="utf-8")) == (tmp_path / "raw").resolve()
    with pytest.raises(NeonatalSegError, match="ended with status 3"):
        nnunet_peer.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed (a benchmark's)")
def test_nnunet_has_the_commands_that_are_called() -> None:
    for command in (
        nnunet_peer.plan_command(1), nnunet_peer.predict_command(Path("images"), Path("out"), "cpu", 1),
    ):  # fmt: skip
        assert Path(command[0]).is_file()
