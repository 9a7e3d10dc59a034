"""The OpenVINO engine: runs an exported network on a CPU (or an Intel GPU), without torch.

``import openvino`` alone starts the sender of usage statistics that is installed with it (openvino-telemetry, on
unless a person has turned it off). A scan's processing sends nothing: :func:`import_openvino` is the only place where
NeonatalSeg imports it, and shuts the sender out first.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import re
import sys
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.sliding_window import Tick

SENDER = "openvino_telemetry"
OLDEST = (2025, 0)  # reads what the exporter writes
WHEELS = (("linux", "x86_64"), ("win32", "amd64"), ("darwin", "arm64"))
POLL_MS = 50
GPU_AGREEMENT = 0.05  # largest difference of a probability between GPU and CPU in the first real run


class OpenVINOEngine:
    """A network that OpenVINO has compiled; an :class:`~NeonatalSegLib.networks.sliding_window.Engine`.

    One compiled network serves windows of every size: a shape fixed beforehand was not faster (benchmarks/engines.py).

    Args:
        xml, weights: the network in OpenVINO's format; the caller has checked both.
        precision: what they hold, "int8" or "fp32"; for the side-car.
        device: "cpu" or "gpu" (Intel's, after a first run that agreed with the CPU's).
        threads: most threads to compute with; None leaves it to OpenVINO.

    Raises:
        NeonatalSegError: OpenVINO is missing, cannot load, or cannot run this network here; or no such GPU works.
    """

    name = "openvino"

    def __init__(
        self, xml: bytes, weights: bytes, precision: str, device: str = "cpu", threads: int | None = None
    ) -> None:
        openvino = import_openvino()
        self.precision, self.device = precision, device
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "cpu":
            options["INFERENCE_PRECISION_HINT"] = "f32"  # of what is not int8: bf16 gains 3 % and is another result
            options["ENABLE_CPU_PINNING"] = False  # or processes of one thread each all sit on the first core
            if threads is not None:
                options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            if device == "gpu" and not any(name.startswith("GPU") for name in core.available_devices):
                raise NeonatalSegError(
                    "There is no device 'gpu' here: OpenVINO finds no Intel GPU. Choose --device auto or cpu."
                )
            network = core.read_model(xml, weights)
            compiled = core.compile_model(network, device.upper(), options)
            self._compiled, self._request = compiled, compiled.create_infer_request()
            self._device_text = _device_text(core, compiled, device)
        except (RuntimeError, ValueError) as error:
            raise NeonatalSegError(f"OpenVINO could not load the network ({_first_line(error)})") from error
        self._outputs = len(network.outputs)
        self._seconds_a_voxel: float | None = None
        if device == "gpu":
            self._compare_with_cpu(core, network)

    def run(self, window: np.ndarray, tick: Tick) -> tuple[np.ndarray, float | None]:
        """See :class:`~NeonatalSegLib.networks.sliding_window.Engine`.

        Asks ``tick`` twenty times a second, and stops between two layers.
        """
        tensor = import_openvino().Tensor(window[None], shared_memory=True)
        self._request.set_input_tensor(0, tensor)
        started = time.perf_counter()
        tick(0.0)
        self._request.start_async()
        try:
            while not self._request.wait_for(POLL_MS):
                if self._seconds_a_voxel is not None:  # from the last window
                    passed = time.perf_counter() - started
                    tick(min(0.99, passed / (self._seconds_a_voxel * window.size)))
                else:
                    tick(0.0)
        except BaseException:
            self._request.cancel()
            with contextlib.suppress(RuntimeError):  # says that it was cancelled
                self._request.wait()
            raise
        self._request.wait()  # an error of the computation comes out here
        self._seconds_a_voxel = (time.perf_counter() - started) / window.size
        probabilities = self._request.get_output_tensor(0).data[0]
        weeks = float(self._request.get_output_tensor(1).data[0]) if self._outputs > 1 else None
        return probabilities, weeks

    @property
    def device_text(self) -> str:
        """The device in words."""
        return self._device_text

    @property
    def free_bytes(self) -> int | None:
        """See :class:`~NeonatalSegLib.networks.sliding_window.Engine`."""
        return None

    def free_memory(self) -> None:
        """See :class:`~NeonatalSegLib.networks.sliding_window.Engine`."""
        self._compiled.release_memory()
        self._request = self._compiled.create_infer_request()

    def _compare_with_cpu(self, core: Any, network: Any) -> None:
        """A GPU may be listed and compute wrongly, or not at all: let it segment noise before promising it."""
        noise = np.random.default_rng(0).normal(size=(1, 2, 64, 64, 64)).astype(np.float32)
        try:
            found = self._request.infer([noise])[0]
            expected = core.compile_model(network, "CPU").create_infer_request().infer([noise])[0]
        except RuntimeError as error:
            raise NeonatalSegError(f"The Intel GPU cannot be used ({_first_line(error)}): choose the CPU.") from error
        if not np.abs(found - expected).max() <= GPU_AGREEMENT:
            raise NeonatalSegError("The Intel GPU computes other results than the CPU: choose the CPU.")


def import_openvino() -> Any:
    """The module ``openvino``, with its sender of usage statistics shut out; 0.2 s the first time.

    Raises:
        NeonatalSegError: it is missing, too old, or does not load here; the sentence says which.
    """
    if loaded := sys.modules.get("openvino"):
        return loaded
    if reason := unsupported():
        raise NeonatalSegError(reason)
    # None makes "import openvino_telemetry" an ImportError, for which OpenVINO has a stand-in that does nothing.
    if sys.modules.get(SENDER) is None:
        sys.modules[SENDER] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise NeonatalSegError(f"OpenVINO does not load ({error}): install it again.") from error
        raise NeonatalSegError("OpenVINO is not installed") from error
    except Exception as error:  # a damaged installation fails in many ways: ImportError of a library, OSError, ...
        raise NeonatalSegError(f"OpenVINO does not load ({_first_line(error)}): install it again.") from error


def unsupported(features: Collection[str] | None = None, machine: str | None = None, found: str | None = None) -> str:
    """Why OpenVINO cannot run here, before it is imported; "" where nothing speaks against it. Arguments: for tests.

    Its binaries need AVX2 on Intel and AMD processors: without it the process would end at once, with no error to
    catch.
    """
    from NeonatalSegLib.networks.precision import processor_features

    features = processor_features() if features is None else features
    machine = (machine or platform.machine()).lower()
    if machine in ("x86_64", "amd64", "i386", "i686") and features and "avx2" not in features:
        return "OpenVINO needs a processor with AVX2"
    found = version() if found is None else found
    if not found:
        return "OpenVINO is not installed"
    numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:2])
    if numbers < OLDEST:
        return f"OpenVINO {found} is too old: at least {OLDEST[0]}.{OLDEST[1]} is needed (pip install -U openvino)"
    return ""


def has_wheels() -> bool:
    """Whether there are packages of OpenVINO for this kind of computer (none for Linux on ARM and Intel Macs)."""
    return (sys.platform, platform.machine().lower()) in WHEELS


def version() -> str:
    """The installed version, "" where there is none; nothing is imported to find out."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("openvino")
    except PackageNotFoundError:
        return ""


def _device_text(core: Any, compiled: Any, device: str) -> str:
    if device == "cpu":
        return f"CPU ({compiled.get_property('INFERENCE_NUM_THREADS')} threads)"
    return f"GPU: {core.get_property(device.upper(), 'FULL_DEVICE_NAME')}"


def _first_line(error: Exception) -> str:
    """The last line of OpenVINO's messages says what happened; those before it, where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
