"""A model's network, ready to run: looks at what is there, asks :func:`choice.choose`, and opens that engine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.exported import Export, read_export
from NeonatalSegLib.networks import openvino_engine
from NeonatalSegLib.networks.choice import Choice, Facts, choose
from NeonatalSegLib.networks.precision import features_text, processor_features, processor_name
from NeonatalSegLib.networks.sliding_window import Engine
from NeonatalSegLib.segmentation.device import DEVICES, choose_device, gpu_may_be_there

TORCH_PACKAGES = ("torch", "monai")


@dataclass(frozen=True)
class OpenEngine:
    """An engine and how it came to be chosen.

    Attributes:
        engine: runs the network.
        choice: which engine, on which device, and why.
        notices: in words, for the user.
    """

    engine: Engine
    choice: Choice
    notices: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """For the side-car."""
        return {
            "Name": self.engine.name,
            "Precision": self.engine.precision,
            "Reason": self.choice.reason,
            "Processor": processor_name(),
            "ProcessorFeatures": features_text(processor_features()),
        }


def open_engine(
    model: Model, device: str = "auto", wish: str = "auto", *, threads: int | None = None, without: str = ""
) -> OpenEngine:
    """The engine for a model on this computer.

    Args:
        device: one of ``DEVICES``.
        wish: one of ``choice.ENGINES``.
        threads: most threads on a CPU; None leaves it to the engine.
        without: a reason in words not to use OpenVINO, where it has just failed.

    Raises:
        NeonatalSegError: as :func:`choose`; the model's files are damaged; a GPU asked for does not work.
    """
    if device not in DEVICES:
        raise NeonatalSegError(f"There is no device {device!r}: choose {', '.join(DEVICES)}.")
    gpu, notices = _gpu(device) if wish != "openvino" else ("", [])
    no_torch = _no_torch()
    no_openvino = without or openvino_engine.unsupported()
    export, no_export, broken = (None, "", False) if no_openvino or wish == "torch" else _export(model)
    chosen = choose(wish, device, Facts(gpu, no_torch, no_openvino, no_export, broken))
    if chosen.engine == "torch":
        return OpenEngine(_torch_engine(model, chosen.device, threads), chosen, (*notices, *_told(chosen)))
    assert export is not None
    try:
        engine = openvino_engine.OpenVINOEngine(export.xml, export.weights, export.precision, chosen.device, threads)
    except NeonatalSegError as error:
        if wish == "openvino" or device == "gpu" or no_torch:
            raise
        opened = open_engine(model, device, wish, threads=threads, without=str(error).rstrip("."))
        return OpenEngine(opened.engine, opened.choice, (*opened.notices, f"{opened.choice.reason}."))
    return OpenEngine(engine, chosen, tuple(notices))


def _told(chosen: Choice) -> list[str]:
    return [chosen.warning] if chosen.warning else []


def _gpu(device: str) -> tuple[str, list[str]]:
    """The GPU that PyTorch can use, "" where there is none, and notices; without torch where no driver shows one."""
    if device in ("cpu", "gpu") or (device == "auto" and not gpu_may_be_there()):
        return "", []
    if _no_torch():  # then choose() says so
        return "", []
    found, notices = choose_device(device)
    return ("" if found.type == "cpu" else found.type), notices


def _no_torch() -> str:
    missing = [name for name in TORCH_PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def _export(model: Model) -> tuple[Export | None, str, bool]:
    """The bundle's export, or why there is none to use, and whether one is there that is broken."""
    try:
        export = read_export(model)
    except NeonatalSegError as error:
        return None, str(error).rstrip("."), True
    return export, "" if export else f"the model {model.name} has no export (neonatalseg models openvino)", False


def _torch_engine(model: Model, device: str, threads: int | None) -> Engine:
    import torch

    from NeonatalSegLib.networks.cpu_form import faster_on_cpu
    from NeonatalSegLib.networks.torch_engine import TorchEngine

    if threads is not None:
        torch.set_num_threads(threads)
    where = torch.device(device)
    return TorchEngine(faster_on_cpu(model.load_network(), where), where)
