"""Which engine runs the network, that all give the same, and that their computation can be stopped."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.inferers.utils import sliding_window_inference
from tiny_models import TINY, openvino, random_model

from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.models.exported import export_model, read_export
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks import cpu_form, openvino_engine, precision, torch_engine
from NeonatalSegLib.networks.choice import Facts, choose
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.sliding_window import predict_windows, window_starts
from NeonatalSegLib.networks.torch_engine import TorchEngine
from NeonatalSegLib.scans.scan import load_scan, make_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter

TINY_AGE = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0, age_head=True)

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
    reason = openvino_engine.unsupported(features, machine, version)
    assert words in reason and bool(reason) == bool(words)


# ---------------------------------------------------------------- the engines agree


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
    fast = cpu_form.faster_on_cpu(copy.deepcopy(plain), torch.device("cpu"))
    norms = [m for m in fast.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert bool(norms) != bf16
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(fast(x), plain(x), atol=1e-4)
    assert torch_engine.best_precision(torch.device("cpu")) == ("bf16" if bf16 else "fp32")


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (torch.nn.Conv3d(8, 6, 3, padding=1), [(12, 10, 14), (7, 10, 14), (60, 60, 5)]),
        (torch.nn.Conv3d(8, 6, 3, stride=2, padding=1), [(12, 10, 14), (9, 10, 14), (6, 4, 4)]),
        (torch.nn.ConvTranspose3d(8, 6, 2, stride=2), [(6, 5, 7), (3, 5, 7)]),
    ],
)
def test_a_convolution_in_two_halves_is_the_same(
    layer: torch.nn.Module, sizes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, for even and odd numbers of planes, and for patches too large to need it."""
    monkeypatch.setattr(torch_engine, "processor_features", lambda: {"avx2"})
    plain = torch.nn.Sequential(layer)
    fast = cpu_form.faster_on_cpu(copy.deepcopy(plain), torch.device("cpu"))
    assert isinstance(fast[0], (cpu_form.HalvedConv, cpu_form.HalvedConvTranspose))
    for size in sizes:
        gradients = []
        x = torch.randn(1, 8, *size, requires_grad=True)
        weight = torch.randn(plain(x).shape)
        for network in (plain, fast):
            network.zero_grad()
            x.grad = None
            (network(x) * weight).sum().backward()
            assert x.grad is not None
            gradients.append([x.grad.clone(), *(p.grad for p in network.parameters())])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(plain(x), fast(x), rtol=1e-4, atol=1e-4)


def test_the_faster_form_is_exported_for_windows_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fine-tuned network may be exported as it was trained: in no size do its halves show."""
    from NeonatalSegLib.networks.openvino_engine import OpenVINOEngine
    from NeonatalSegLib.networks.openvino_export import exported

    monkeypatch.setattr(torch_engine, "processor_features", lambda: {"avx2"})
    torch.manual_seed(4)
    plain = build_network(TINY).eval()
    fast = cpu_form.faster_on_cpu(copy.deepcopy(plain), torch.device("cpu"))
    engine = OpenVINOEngine(*exported(fast, TINY), "fp32", threads=1)
    for size in ((32, 32, 32), (48, 40, 64)):
        window = np.random.default_rng(5).normal(size=(2, *size)).astype(np.float32)
        expected, _ = TorchEngine(plain, precision="fp32").run(window, lambda _: None)
        found, _ = engine.run(window, lambda _: None)
        assert np.abs(found - expected).max() < 5e-3  # weights are exported in fp16


@pytest.mark.parametrize("shape", [(48, 64, 30), (20, 32, 64), (96, 25, 80)])
def test_windows_are_those_of_monai(shape: tuple[int, int, int]) -> None:
    """Where its windows are evenly spaced."""

    class Smooth:
        """Depends on where a window lies: a mean over it, and each voxel."""

        name = precision = device_text = ""

        def run(self, window: np.ndarray, tick: Any) -> tuple[np.ndarray, None]:
            return np.stack([window[0] + window.mean(), window[1] * 2]), None

    image = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    found, _ = predict_windows(Smooth(), image, (32, 32, 32), 8, overlap=0.5)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(Smooth().run(x[0].numpy(), None)[0])[None]

    window = [min(32, -(-n // 8) * 8) for n in shape]  # no larger than the stride needs
    expected = sliding_window_inference(
        torch.from_numpy(image)[None], window, 1, network,
        overlap=0.5, mode="gaussian", sigma_scale=0.2, padding_mode="replicate",
    )[0].numpy()  # fmt: skip
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_cover_everything_evenly_and_are_few(overlap: float) -> None:
    for size in (1, 31, 32, 33, 56, 57, 63, 64, 65, 150):
        starts = window_starts(size, 32, overlap)
        assert starts[0] == 0 and starts[-1] == max(0, size - 32)
        steps = np.diff(starts)
        assert (steps <= 32 * (1 - overlap) + 0.5).all()  # half a voxel of rounding
        assert np.ptp(steps) <= 1 if len(steps) else size <= 32
        assert (len(starts) - 2) * 32 * (1 - overlap) < max(size - 32, 1)  # with one less they would be too far apart


@pytest.mark.slow
def test_the_shipped_export_gives_the_labels_of_the_shipped_weights(newborn_files: dict[str, Path]) -> None:
    model = find_model()
    assert read_export(model) is not None
    whole = load_scan(newborn_files["t1"], newborn_files["t2"])
    middle = [slice(size // 2 - 36, size // 2 + 36) for size in whole.reference.GetSize()]  # what one window holds
    scan = make_scan(*(sitk.Image(image)[middle] for image in (whole.t1, whole.t2) if image is not None))
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
    asked = [time.process_time()]  # time of the processor: others may be using it as well
    engine.run(window, lambda _: None)
    whole_s = time.process_time() - asked.pop()

    def cancel(_: float) -> None:
        asked.append(time.process_time())
        if len(asked) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(window, cancel)
    assert time.process_time() - asked[-1] < 0.5 * whole_s
    told: list[float] = []
    small = np.ascontiguousarray(window[:, :64, :64, :64])
    for _ in range(2):
        engine.run(small, told.append)
    assert len(told) >= 2 and all(0 <= f <= 1 for f in told)
