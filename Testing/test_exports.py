"""A model's export for CPUs: made, damaged, passed on, calibrated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from annotation_cases import ordinary_user
from conftest import ROOT
from tiny_models import TINY, exported_model, openvino, random_model

from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import exported, store
from NeonatalSegLib.models.bundle import Model, read_model, save_model
from NeonatalSegLib.models.exported import EXPORT_FILE, export_model, read_export
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.networks.sliding_window import predict_windows
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.training.calibration import calibration_windows
from NeonatalSegLib.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model with its export, not to be written to."""
    return exported_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny(made: Model, tmp_path: Path) -> Model:
    """A copy of it, to be damaged."""
    return read_model(shutil.copytree(made.folder, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_newborn(tmp_path_factory.mktemp("newborn"), spacing_mm=3.0)


def test_a_damaged_export_is_refused(tiny: Model) -> None:
    file = tiny.folder / EXPORT_FILE
    content = bytearray(file.read_bytes())
    for position in (len(content) // 2, 40):  # the weights; the facts at the front
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        with pytest.raises(NeonatalSegError, match="models openvino tiny"):
            read_export(tiny)
    file.write_bytes(content[: len(content) // 2])
    opened = Segmenter(tiny, "cpu")
    assert opened.engine.name == "torch"
    with pytest.raises(NeonatalSegError, match="is damaged"):
        Segmenter(tiny, "cpu", "openvino")


def test_an_export_of_other_weights_is_refused_with_a_warning(tiny: Model, coarse: dict[str, Path]) -> None:
    other = random_model(tiny.folder, seed=2)  # as a model that is replaced under its name
    found = Segmenter(other, "cpu").segment(load_scan(None, coarse["t2"]))
    assert found.engine["Name"] == "torch"
    assert any("made from other weights" in warning for warning in found.warnings)
    export_model(other)
    again = Segmenter(other, "cpu").segment(load_scan(None, coarse["t2"]))
    assert again.engine["Name"] == "openvino" and not any("weights" in warning for warning in again.warnings)


def test_two_processes_that_export_at_once_leave_one_whole_export(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model")
    command = [sys.executable, "-m", "NeonatalSegLib.cli", "models", "openvino", str(model.folder)]
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    assert read_export(model) is not None
    assert sorted(p.name for p in (model.folder / "models").iterdir()) == ["model.pt", "openvino.zip"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, coarse: dict[str, Path]) -> None:
    """It stops the export, in words, and nothing else."""
    model = random_model(tmp_path / "model")
    (model.folder / EXPORT_FILE / "in the way").mkdir(parents=True)  # also root cannot write over it
    with pytest.raises(NeonatalSegError, match=r"could not be written.*copy the model's folder"):
        export_model(model)
    assert exported.export_where_possible(model)
    assert sorted(p.name for p in (model.folder / "models").iterdir()) == ["model.pt", "openvino.zip"]
    assert Segmenter(model, "cpu").segment(load_scan(None, coarse["t2"])).engine["Name"] == "torch"


@pytest.mark.skipif(os.name != "posix", reason="permissions of folders as on POSIX")
def test_a_read_only_model_folder(made: Model) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        model = read_model(shutil.copytree(made.folder, Path(place) / "model"))
        paths = list(model.folder.rglob("*"))
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with ordinary_user():
                with pytest.raises(NeonatalSegError, match="could not be written"):
                    export_model(model)
                assert openvino(model).precision == "fp32"
        finally:
            for path in paths:
                path.chmod(0o755)


def test_the_export_goes_with_a_model_to_another_computer(
    made: Model, models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.folder, models_folder / "tiny")
    zipped = store.export_model("tiny", tmp_path / "tiny.zip")
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "elsewhere"))
    there = store.import_model(zipped)
    export = read_export(there)
    assert export is not None and export.precision == "fp32"


def test_calibration_sees_the_model_s_own_subjects_with_each_modality_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names, index = ("sub-A", "age-36", "sub-Z"), {}
    for name in names:
        np.save(tmp_path / f"{name}_image.npy", random.normal(1, 1, (2, 40, 20, 36)).astype(np.float16))
        np.save(tmp_path / f"{name}_labels.npy", random.integers(0, 10, (40, 20, 36)).astype(np.uint8))
        index[name] = {"age_weeks": 40.0}
    (tmp_path / "cache.json").write_text(json.dumps({"format": 1, "spacing_mm": 3.0, "subjects": index}))
    facts = {"training": TrainingSettings(network=TINY).to_json(), "training_subjects": ["sub-A", "age-36"]}
    model = save_model(build_network(TINY), TINY, tmp_path / "model", description="x", facts=facts)
    windows, subjects = calibration_windows(model, tmp_path, number=12)
    assert subjects == ["age-36", "sub-A"]  # sub-Z is not one of its own
    assert len(windows) == 12 and all(w.shape == (2, *TINY.patch) and w.dtype == np.float32 for w in windows)
    seen = [tuple(bool(channel.any()) for channel in w) for w in windows[6:]]
    assert set(seen) == {(True, True), (True, False), (False, True)}
    stranger = save_model(build_network(TINY), TINY, tmp_path / "other", description="x")
    with pytest.raises(NeonatalSegError, match="none of the subjects"):
        calibration_windows(stranger, tmp_path)


@pytest.mark.slow
def test_int8_is_another_network_with_the_same_answers(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    model = random_model(tmp_path / "model")
    random = np.random.default_rng(0)
    windows = [random.normal(size=(2, 32, 32, 32)).astype(np.float32) for _ in range(4)]
    export_model(model)
    fp32 = openvino(model)
    export_model(model, windows, {"subjects": ["noise"]})
    export = read_export(model)
    assert export is not None and export.precision == "int8" and export.facts["calibration"] == {"subjects": ["noise"]}
    image = random.normal(size=(2, 40, 40, 40)).astype(np.float32)
    (a, _), (b, _) = (predict_windows(e, image, (32, 32, 32), TINY.stride) for e in (fp32, openvino(model)))
    assert 0 < np.abs(a - b).max() < 0.3 and (a.argmax(0) == b.argmax(0)).mean() > 0.9
