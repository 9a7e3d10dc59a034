"""The bundles as MONAI sees them: run by its own command, metadata verified; and those of strangers, never run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT
from store_models import SHIPPED, TINY, save_parent

from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import CONFIG_FILE, METADATA_FILE, Model, read_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.resources import bundle_config, shipped_models
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter

pytest.importorskip("torch", reason="MONAI's command needs torch")
SCHEMA = ROOT / "Testing" / "bundle_schema.json"


@pytest.fixture(scope="module")
def prepared_scans(newborn: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of a drawn brain with nothing around it, on the network's voxels: T1 and T2, and a T2 alone."""
    folder = tmp_path_factory.mktemp("prepared") / "scans"
    folder.mkdir()
    inside = sitk.GetArrayFromImage(newborn.labels) > 0
    z, y, x = (int(v) for v in np.argwhere(inside).mean(0))
    box = slice(x - 20, x + 20), slice(y - 22, y + 20), slice(z - 18, z + 19)
    for modality in ("t1", "t2"):
        image = getattr(newborn, modality)
        voxels = sitk.GetArrayFromImage(image)
        brain = sitk.GetImageFromArray(np.where(inside, voxels - voxels.min() + 1, 0).astype(np.float32))
        brain.CopyInformation(image)
        piece = sitk.ConstantPad(brain[box], [5, 5, 5], [5, 6, 7], 0.0)
        piece.SetSpacing((0.8, 0.8, 0.8))  # a smaller brain, which is drawn already
        for name in ("sub-01", "sub-02")[modality == "t1" :] if modality == "t2" else ("sub-01",):
            sitk.WriteImage(piece, str(folder / f"{name}_{modality.upper()}w.nii.gz"))
    return folder


@pytest.mark.slow
def test_monai_gives_the_labels_that_segment_gives(prepared_scans: Path, tmp_path: Path) -> None:
    model = find_model()
    command = [
        sys.executable, "-m", "monai.bundle", "run",
        "--config_file", str(model.folder / CONFIG_FILE), "--meta_file", str(model.folder / METADATA_FILE),
        "--bundle_root", str(model.folder), "--dataset_dir", str(prepared_scans), "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sub-01_dseg.nii.gz", "sub-02_dseg.nii.gz"]
    segmenter = Segmenter(model, "cpu", "torch")
    segmenter.engine.precision = "fp32"  # MONAI's; a processor with bf16 would take that
    for name, modalities in (("sub-01", ("t1", "t2")), ("sub-02", ("t2",))):
        files = {m: prepared_scans / f"{name}_{m.upper()}w.nii.gz" for m in modalities}
        ours = segmenter.segment(load_scan(**files))
        assert not ours.head_masked
        theirs = sitk.ReadImage(str(tmp_path / "out" / f"{name}_dseg.nii.gz"))
        assert np.allclose(theirs.GetOrigin(), ours.label_map.GetOrigin(), atol=1e-4)
        assert np.allclose(theirs.GetDirection(), ours.label_map.GetDirection(), atol=1e-5)
        mine, other = sitk.GetArrayFromImage(ours.label_map), sitk.GetArrayFromImage(theirs)
        assert mine.shape == other.shape
        assert len(np.unique(mine)) > 5
        # Rounding decides where two tissues are equally probable: a few voxels in a hundred thousand.
        assert np.count_nonzero(mine != other) <= 3e-4 * np.count_nonzero(mine)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", [*SHIPPED, "saved"])
def test_metadata_are_verified_by_monai(name: str, offline: None, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    from monai.bundle import verify_metadata

    folder = save_parent(tmp_path).folder if name == "saved" else shipped_models() / name
    verify_metadata(meta_file=str(folder / METADATA_FILE), filepath=str(SCHEMA))
    wrong = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    del wrong["network_data_format"]["inputs"]["image"]["num_channels"]
    (tmp_path / "wrong.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(ValueError, match="num_channels"):
        verify_metadata(meta_file=str(tmp_path / "wrong.json"), filepath=str(SCHEMA))


def test_every_bundle_can_be_run_by_monai(tmp_path: Path) -> None:
    ours = bundle_config().read_bytes()
    saved = save_parent(tmp_path)
    for folder in [*(shipped_models() / name for name in SHIPPED), saved.folder]:
        assert (folder / CONFIG_FILE).read_bytes() == ours, folder
    (saved.folder / CONFIG_FILE).unlink()  # as in a model that an earlier version saved
    file = store.export_model(saved.folder, tmp_path / "x.zip")
    with zipfile.ZipFile(file) as archive:
        assert archive.read(f"{saved.name}/{CONFIG_FILE}") == ours


def stranger(folder: Path, marker: Path, *, in_metadata: bool) -> Model:
    """A bundle that would write a file as soon as anybody evaluated one of its expressions."""
    model = save_parent(folder)
    program = f"$open({str(marker)!r}, 'w').close()"
    for name in ("inference.json", "train.json", "logging.conf"):
        text = json.dumps({"initialize": [program], "run": [program], "network_def": {"_target_": program}})
        (model.folder / "configs" / name).write_text(text, encoding="utf-8")
    if in_metadata:
        file = model.folder / METADATA_FILE
        metadata = json.loads(file.read_text(encoding="utf-8"))
        metadata |= {"description": program, "data_source": program, "extra": {"_target_": "os.system", "command": "x"}}
        metadata["neonatalseg"]["note"] = program
        file.write_text(json.dumps(metadata), encoding="utf-8")
    return read_model(model.folder)


def test_expressions_of_a_strangers_bundle_are_never_evaluated(prepared_scans: Path, tmp_path: Path) -> None:
    marker = tmp_path / "evaluated"
    model = stranger(tmp_path / "theirs", marker, in_metadata=True)
    segmenter = Segmenter(str(model.folder), "cpu", "torch")
    segmenter.segment(load_scan(t2=prepared_scans / "sub-02_T2w.nii.gz"))
    assert model.description.startswith("$open")  # a text like any other
    file = store.export_model(model.folder, tmp_path / "x.zip", names=True)
    with pytest.raises(NeonatalSegError, match=r"hold a program for MONAI"):
        store.import_model(file)
    assert not marker.exists()


def test_the_program_in_a_strangers_zip_is_not_taken_over(tmp_path: Path) -> None:
    marker = tmp_path / "evaluated"
    model = stranger(tmp_path / "theirs", marker, in_metadata=False)
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in model.folder.rglob("*"):
            if path.is_file():
                archive.write(path, f"{model.name}/{path.relative_to(model.folder).as_posix()}")
    taken = store.import_model(file)
    assert (taken.folder / CONFIG_FILE).read_bytes() == bundle_config().read_bytes()
    assert sorted(p.name for p in (taken.folder / "configs").iterdir()) == ["inference.json", "metadata.json"]
    assert taken.network == TINY
    assert not marker.exists()
