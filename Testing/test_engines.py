"""Which engine runs the network, what each can do, and what happens where one is missing or broken."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from annotation_cases import ordinary_user
from monai.inferers.utils import sliding_window_inference

from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.engine import Client
from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.models import exported, store
from NeonatalSegLib.models.bundle import Model, read_model, save_model
from NeonatalSegLib.models.exported import EXPORT_FILE, export_model, read_export
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks import openvino_engine, precision, torch_engine
from NeonatalSegLib.networks.choice import Facts, choose
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.openvino_engine import OpenVINOEngine
from NeonatalSegLib.networks.sliding_window import predict_windows, window_starts
from NeonatalSegLib.networks.torch_engine import TorchEngine
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.training.calibration import calibration_windows
from NeonatalSegLib.training.settings import TrainingSettings

ROOT = Path(__file__).resolve().parents[1]
TINY = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0)
TINY_AGE = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0, age_head=True)
WITHOUT_TORCH = "import sys\nfor name in ('torch', 'monai'):\n    sys.modules[name] = None\n"
WITHOUT_OPENVINO = "import sys\nsys.modules['openvino'] = None\nimport importlib.metadata as m\nreal = m.version\n"
WITHOUT_OPENVINO += "def version(name):\n    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
WITHOUT_OPENVINO += "    return real(name)\nm.version = version\n"


def random_model(folder: Path, settings: NetworkSettings = TINY, seed: int = 1) -> Model:
    torch.manual_seed(seed)
    return save_model(build_network(settings), settings, folder, description="Random weights")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model with its export, not to be written to."""
    model = random_model(tmp_path_factory.mktemp("models") / "tiny")
    export_model(model)
    return model


@pytest.fixture
def tiny(made: Model, tmp_path: Path) -> Model:
    """A copy of it, to be damaged."""
    return read_model(shutil.copytree(made.folder, tmp_path / "tiny"))


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


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("wish", "device", "facts", "expected"),
    [
        ("auto", "auto", Facts(), ("openvino", "cpu")),
        ("auto", "cpu", Facts(gpu="cuda"), ("openvino", "cpu")),
        ("auto", "auto", Facts(gpu="cuda"), ("torch", "cuda")),
        ("auto", "auto", Facts(gpu="mps"), ("torch", "mps")),
        ("auto", "cuda", Facts(gpu="cuda"), ("torch", "cuda")),
        ("openvino", "auto", Facts(gpu="cuda"), ("openvino", "cpu")),
        ("torch", "auto", Facts(), ("torch", "cpu")),
        ("auto", "gpu", Facts(), ("openvino", "gpu")),
        ("auto", "auto", Facts(torch="no torch"), ("openvino", "cpu")),
        ("auto", "auto", Facts(openvino="no openvino"), ("torch", "cpu")),
        ("auto", "auto", Facts(export="no export"), ("torch", "cpu")),
        ("auto", "auto", Facts(export="damaged", broken_export=True), ("torch", "cpu")),
    ],
)
def test_the_engine_is_chosen_from_facts(wish: str, device: str, facts: Facts, expected: tuple[str, str]) -> None:
    chosen = choose(wish, device, facts)
    assert (chosen.engine, chosen.device) == expected
    reason = facts.openvino or facts.export
    assert reason in chosen.reason
    assert bool(chosen.warning) == facts.broken_export  # what is merely not there is no matter for a warning


@pytest.mark.parametrize(
    ("wish", "device", "facts", "words"),
    [
        ("abacus", "auto", Facts(), "no engine 'abacus'"),
        ("openvino", "cuda", Facts(gpu="cuda"), "does not run on cuda"),
        ("openvino", "auto", Facts(openvino="OpenVINO is not installed"), "OpenVINO is not installed"),
        ("openvino", "auto", Facts(export="no export"), "no export"),
        ("torch", "auto", Facts(torch="torch not installed"), "torch not installed"),
        ("auto", "cuda", Facts(torch="torch not installed"), "needs PyTorch"),
        ("auto", "auto", Facts(torch="torch not installed", openvino="OpenVINO is old"), "pip install openvino"),
        ("auto", "auto", Facts(torch="torch not installed", export="no export"), "no export; torch not installed"),
        ("torch", "gpu", Facts(), "Intel GPU"),
    ],
)
def test_what_cannot_be_had_is_told(wish: str, device: str, facts: Facts, words: str) -> None:
    with pytest.raises(NeonatalSegError, match=words):
        choose(wish, device, facts)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu sse2 avx avx2 fma", "fp32"),  # a laptop of 2018
        ("flags\t\t: avx2 avx512f avx512_vnni", "fp32"),  # Ice Lake
        ("flags\t\t: avx2 avx512f avx512_vnni avx512_bf16", "bf16"),  # Zen 4
        ("flags\t\t: avx2 avx512f amx_tile amx_bf16 amx_int8", "bf16"),  # Sapphire Rapids
        ("Features\t: fp asimd asimddp bf16", "fp32"),  # ARM
        ("model name\t: nothing said", "fp32"),
    ],
)
def test_bf16_only_where_the_processor_computes_it(flags: str, expected: str) -> None:
    found = precision._of_linux(f"processor\t: 0\n{flags}\n")
    assert found <= set(precision.FEATURES)
    assert precision.torch_precision(found) == expected


@pytest.mark.parametrize(
    ("features", "machine", "version", "words"),
    [
        ({"avx2"}, "x86_64", "2026.4.1", ""),
        (set(), "x86_64", "2026.4.1", ""),  # a system that does not tell
        ({"avx"}, "AMD64", "2026.4.1", "AVX2"),
        ({"asimd"}, "arm64", "2026.4.1", ""),
        ({"avx2"}, "x86_64", "2023.3.0", "too old"),
        ({"avx2"}, "x86_64", "", "not installed"),
    ],
)
def test_openvino_is_not_imported_where_it_would_not_run(
    features: set[str], machine: str, version: str, words: str
) -> None:
    reason = openvino_engine.unsupported(features, machine, version) if version else None
    if reason is None:
        assert words == "not installed"
    else:
        assert words in reason and bool(reason) == bool(words)


# ---------------------------------------------------------------- the engines agree


def openvino(model: Model) -> OpenVINOEngine:
    export = read_export(model)
    assert export is not None
    return OpenVINOEngine(export.xml, export.weights, export.precision)


@pytest.mark.parametrize("settings", [TINY, TINY_AGE], ids=["labels", "labels and age"])
@pytest.mark.parametrize("flips", [False, True])
def test_both_engines_give_the_same(settings: NetworkSettings, flips: bool, tmp_path: Path) -> None:
    """In windows of two shapes, one export for both."""
    model = random_model(tmp_path / "model", settings)
    export_model(model)
    engines = openvino(model), TorchEngine(model.load_network(), precision="fp32")
    image = np.random.default_rng(2).normal(size=(2, 50, 41, 30)).astype(np.float32)
    for window in ((32, 32, 32), (64, 48, 32)):
        (a, age_a), (b, age_b) = (predict_windows(e, image, window, settings.stride, flips=flips) for e in engines)
        assert a.shape == b.shape == (10, 50, 41, 30) and np.allclose(a.sum(0), 1, atol=1e-4)
        assert np.abs(a - b).max() < 1e-3
        if settings.age_head:
            assert age_a is not None and age_b is not None and abs(age_a - age_b) < 0.05
        else:
            assert age_a is None and age_b is None


@pytest.mark.parametrize("bf16", [False, True])
def test_the_faster_form_for_cpus_is_the_same_network(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights have the same names; where the processor computes bf16 the network is left alone."""
    monkeypatch.setattr(torch_engine, "processor_features", lambda: {"avx2"} | ({"avx512_bf16"} if bf16 else set()))
    torch.manual_seed(3)
    plain = build_network(TINY).eval()
    fast = torch_engine.faster_on_cpu(copy.deepcopy(plain), torch.device("cpu"))
    norms = [m for m in fast.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert bool(norms) != bf16
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(fast(x), plain(x), atol=1e-4)
    assert torch_engine.best_precision(torch.device("cpu")) == ("bf16" if bf16 else "fp32")


@pytest.mark.parametrize("shape", [(50, 41, 30), (20, 33, 64), (96, 32, 33)])
def test_windows_are_those_of_monai(shape: tuple[int, int, int]) -> None:
    class Smooth:
        """Depends on where a window lies: a mean over it, and each voxel."""

        name = precision = device_text = ""

        def run(self, window: np.ndarray, tick: Any) -> tuple[np.ndarray, None]:
            return np.stack([window[0] + window.mean(), window[1] * 2]), None

    image = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    found, _ = predict_windows(Smooth(), image, (32, 32, 32), 8)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(Smooth().run(x[0].numpy(), None)[0])[None]

    window = [min(32, -(-n // 8) * 8) for n in shape]  # no larger than the stride needs
    expected = sliding_window_inference(
        torch.from_numpy(image)[None], window, 1, network,
        overlap=0.5, mode="gaussian", sigma_scale=0.2, padding_mode="replicate",
    )[0].numpy()  # fmt: skip
    assert np.abs(found - expected).max() < 1e-4


def test_windows_cover_everything() -> None:
    for size in (1, 31, 32, 33, 63, 64, 65, 150):
        starts = window_starts(size, 32, 0.5)
        covered = {n for s in starts for n in range(s, s + 32)}
        assert set(range(size)) <= covered and starts == sorted(set(starts))
        assert starts[-1] == max(0, size - 32)


@pytest.mark.slow
def test_the_shipped_export_gives_the_labels_of_the_shipped_weights(newborn_files: dict[str, Path]) -> None:
    model = find_model()
    assert read_export(model) is not None
    scan = load_scan(newborn_files["t1"], newborn_files["t2"])
    labels = []
    for engine in ("openvino", "torch"):
        segmenter = Segmenter(model, "cpu", engine)
        found = segmenter.segment(scan)
        assert found.engine["Name"] == engine and segmenter.engine.name == engine
        labels.append(sitk.GetArrayFromImage(found.label_map))
    inside = (labels[0] > 0) | (labels[1] > 0)
    assert (labels[0] == labels[1])[inside].mean() > 0.97


# ---------------------------------------------------------------- progress and cancel


@pytest.mark.slow
def test_cancel_inside_a_large_window_stops_the_computation_and_leaves_the_engine_usable() -> None:
    engine = openvino(find_model())
    window = np.random.default_rng(0).normal(size=(2, 128, 160, 128)).astype(np.float32)
    asked: list[float] = []

    def cancel(_: float) -> None:
        asked.append(time.process_time())
        if len(asked) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(window, cancel)
    # Time of the processor: others may be using it as well. The whole window takes 0.7 s and more.
    assert time.process_time() - asked[-1] < 0.3
    told: list[float] = []
    small = np.ascontiguousarray(window[:, :64, :64, :64])
    for _ in range(2):
        engine.run(small, told.append)
    assert len(told) >= 2 and all(0 <= f <= 1 for f in told)


# ---------------------------------------------------------------- without torch


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


# ---------------------------------------------------------------- faults


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
