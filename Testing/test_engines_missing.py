"""Segmenting where PyTorch or OpenVINO is not there, does not load or fails; and that nothing is sent anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tiny_models import exported_model, random_model

from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.engine import Client
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter

WITHOUT_TORCH = "import sys\nfor name in ('torch', 'monai'):\n    sys.modules[name] = None\n"
WITHOUT_OPENVINO = "import sys\nsys.modules['openvino'] = None\nimport importlib.metadata as m\nreal = m.version\n"
WITHOUT_OPENVINO += "def version(name):\n    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
WITHOUT_OPENVINO += "    return real(name)\nm.version = version\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model with its export, not to be written to."""
    return exported_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_newborn(tmp_path_factory.mktemp("newborn"), spacing_mm=3.0)


def environment(folder: Path, code: str) -> dict[str, str]:
    """Of a Python that runs ``code`` before anything else."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def segment(
    model: Model, scan: dict[str, Path], folder: Path, code: str = "", *more: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``neonatalseg segment`` as a process."""
    command = [sys.executable, "-m", "NeonatalSegLib.cli", "segment", "--t1", scan["t1"], "--t2", scan["t2"]]
    command += ["--model", model.folder, "--out", folder / "out", *more]
    given = {**environment(folder / "site", code), **variables}
    return subprocess.run([str(c) for c in command], env=given, capture_output=True, text=True, timeout=300)


def sidecar(folder: Path) -> dict[str, Any]:
    return json.loads(next((folder / "out").glob("*_dseg.json")).read_text(encoding="utf-8"))


def test_segment_needs_no_torch(made: Model, coarse: dict[str, Path], tmp_path: Path) -> None:
    done = segment(made, coarse, tmp_path, WITHOUT_TORCH, "--uncertainty", "--probabilities")
    assert done.returncode == 0, done.stderr
    facts = sidecar(tmp_path)
    assert facts["Engine"]["Name"] == "openvino" and facts["Engine"]["Precision"] == "fp32"
    assert facts["Engine"]["ProcessorFeatures"] and facts["Versions"]["openvino"]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


def test_batch_and_the_compute_process_need_no_torch(made: Model, coarse: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "scans.tsv"
    table.write_text(f"name\tt1\tt2\na\t\t{coarse['t2']}\nb\t{coarse['t1']}\t\n", encoding="utf-8")
    command = [sys.executable, "-m", "NeonatalSegLib.cli", "batch", "--list", table, "--out", tmp_path / "study"]
    given = environment(tmp_path / "site", WITHOUT_TORCH)
    run = [str(c) for c in [*command, "--model", made.folder]]
    done = subprocess.run(run, env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with Client(environment=given) as client:
        said = client.request("hello").result(120)
        assert said["devices"] == [d for d in said["devices"] if d["name"] == "cpu"]
        assert said["devices"][0]["engine"] == "openvino"
        found = client.segment(t2=coarse["t2"], model=str(made.folder)).result(120)
        assert found["engine"]["Name"] == "openvino" and Path(found["label_map"]).is_file()


def test_segment_opens_no_socket(made: Model, coarse: dict[str, Path], tmp_path: Path) -> None:
    """OpenVINO's own package starts a sender of usage statistics when it is imported: it must not even load."""
    code = textwrap.dedent(
        """
        import atexit, os, sys
        def watch(event, arguments):
            if event.startswith("socket.") and event not in ("socket.gethostname",):
                with open(os.environ["WATCHED"], "a") as stream:
                    stream.write(f"{event} {arguments}\\n")
        sys.addaudithook(watch)
        @atexit.register
        def tell():
            loaded = [n for n, m in sys.modules.items() if m is not None and n.startswith("openvino_telemetry")]
            with open(os.environ["WATCHED"] + ".loaded", "w") as stream:
                stream.write(" ".join(loaded) + ("openvino" if "openvino" in sys.modules else ""))
        """
    )
    home, watched = tmp_path / "home", tmp_path / "watched"
    home.mkdir()
    done = segment(
        made, coarse, tmp_path, code, "--engine", "openvino",
        WATCHED=str(watched), HOME=str(home), USERPROFILE=str(home), CI="", MPLCONFIGDIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not watched.exists(), watched.read_text(encoding="utf-8")
    assert (tmp_path / "watched.loaded").read_text(
        encoding="utf-8"
    ) == "openvino"  # OpenVINO was there, its sender was not
    assert not (home / "intel").exists()  # where the sender keeps its number for this person


def test_without_openvino_pytorch_takes_over_and_the_side_car_says_why(
    made: Model, coarse: dict[str, Path], tmp_path: Path
) -> None:
    done = segment(made, coarse, tmp_path, WITHOUT_OPENVINO)
    assert done.returncode == 0, done.stderr
    engine = sidecar(tmp_path)["Engine"]
    assert engine["Name"] == "torch" and "OpenVINO is not installed" in engine["Reason"]


def test_openvino_that_does_not_load(made: Model, coarse: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "site" / "openvino"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libopenvino.so: cannot open')", encoding="utf-8")
    done = segment(made, coarse, tmp_path)
    assert done.returncode == 0, done.stderr
    engine = sidecar(tmp_path)["Engine"]
    assert engine["Name"] == "torch" and "libopenvino.so: cannot open" in engine["Reason"]
    assert any("PyTorch ran in place of OpenVINO" in w for w in sidecar(tmp_path)["Warnings"])


def test_with_neither_one_sentence_says_what_to_install(made: Model, coarse: dict[str, Path], tmp_path: Path) -> None:
    done = segment(made, coarse, tmp_path, WITHOUT_TORCH + WITHOUT_OPENVINO)
    assert done.returncode == 2 and "pip install openvino" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list((tmp_path / "out").glob("*dseg*"))


def test_a_network_that_fails_while_it_runs_is_left_to_pytorch(made: Model, coarse: dict[str, Path]) -> None:
    segmenter = Segmenter(made, "cpu")

    def fail(*_: Any) -> Any:
        raise RuntimeError("Exception from src/plugin.cpp:1:\nno such kernel")

    segmenter.engine.run = fail  # type: ignore[method-assign]
    found = segmenter.segment(load_scan(None, coarse["t2"]))
    assert found.engine["Name"] == "torch" and any("no such kernel" in warning for warning in found.warnings)


def test_a_bundle_without_an_export_works(tmp_path: Path, coarse: dict[str, Path]) -> None:
    found = Segmenter(random_model(tmp_path / "plain"), "cpu").segment(load_scan(None, coarse["t2"]))
    assert found.engine["Name"] == "torch" and "has no export" in found.engine["Reason"]
    assert not any("export" in warning for warning in found.warnings)
