"""Which engine runs the network: decided from facts alone, so that every case is one line of a table of tests."""

from __future__ import annotations

from dataclasses import dataclass

from NeonatalSegLib.errors import NeonatalSegError

ENGINES = ("auto", "openvino", "torch")
INSTALL = (
    "Install OpenVINO (pip install openvino; about 60 to 90 MB, for CPUs) or PyTorch (pip install torch monai; for "
    "NVIDIA and Apple GPUs, and CPUs without OpenVINO)."
)


@dataclass(frozen=True)
class Facts:
    """What there is. Each reason says why something cannot be used, in words; "" where it can.

    Attributes:
        gpu: a GPU on which PyTorch has run a kernel ("cuda", "mps"), else "".
        torch, openvino: why this engine cannot run here at all.
        export: why the bundle's export cannot be used.
        broken_export: it is there, but damaged or of other weights: worth a warning.
    """

    gpu: str = ""
    torch: str = ""
    openvino: str = ""
    export: str = ""
    broken_export: bool = False


@dataclass(frozen=True)
class Choice:
    """What it comes to.

    Attributes:
        engine: "openvino" or "torch".
        device: "cpu", "gpu" (Intel's), "cuda" or "mps".
        reason: why this engine, for the side-car.
        warning: the same where a user should know of it, else "".
    """

    engine: str
    device: str
    reason: str
    warning: str = ""


def choose(wish: str, device: str, facts: Facts) -> Choice:
    """The engine and where it runs.

    Args:
        wish: "auto", "openvino" or "torch".
        device: "auto", "cpu", "cuda", "mps", or "gpu" for Intel's.

    Raises:
        NeonatalSegError: what was asked for cannot be had, or neither engine can run; it says what to install.

    Example:
        >>> choose("auto", "auto", Facts()).engine
        'openvino'
        >>> choose("auto", "auto", Facts(gpu="cuda")).engine
        'torch'
    """
    if wish not in ENGINES:
        raise NeonatalSegError(f"There is no engine {wish!r}: choose {', '.join(ENGINES)}.")
    no_openvino = facts.openvino or facts.export
    if device in ("cuda", "mps") or (device == "auto" and facts.gpu and wish != "openvino"):
        if wish == "openvino":
            raise NeonatalSegError(f"OpenVINO does not run on {device}: choose the device cpu, or the engine torch.")
        if facts.torch:
            raise NeonatalSegError(f"The device {device} needs PyTorch: {facts.torch}. Choose --device cpu or auto.")
        return Choice("torch", facts.gpu or device, "a GPU for PyTorch is there")
    if device == "gpu" and (wish == "torch" or no_openvino):
        why = "that engine is PyTorch" if wish == "torch" else no_openvino
        raise NeonatalSegError(f"The device gpu is an Intel GPU through OpenVINO: {why}.")
    if wish == "torch":
        if facts.torch:
            raise NeonatalSegError(f"The engine torch was asked for: {facts.torch}. Choose --engine auto.")
        return Choice("torch", "cpu", "asked for")
    if not no_openvino:
        return Choice("openvino", "gpu" if device == "gpu" else "cpu", "fastest on CPUs")
    if wish == "openvino":
        raise NeonatalSegError(f"The engine openvino was asked for: {no_openvino}. Choose --engine auto.")
    if facts.torch:
        raise NeonatalSegError(f"Nothing here can run the network: {no_openvino}; {facts.torch}. {INSTALL}")
    reason = f"PyTorch ran in place of OpenVINO: {no_openvino}"
    return Choice("torch", "cpu", reason, f"{reason}." if facts.broken_export and not facts.openvino else "")
