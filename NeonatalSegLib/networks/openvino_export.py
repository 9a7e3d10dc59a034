"""A PyTorch network as an OpenVINO one: converted once, run anywhere without torch, in int8 where it was calibrated.

Needs torch, monai and openvino; int8 also nncf (``pip install 'neonatalseg[export]'``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.openvino_engine import import_openvino

if TYPE_CHECKING:
    from torch import nn

# What is left in floating point: instance norms and sums. Before a norm, channels of one tensor differ by orders of
# magnitude, and one scale for all of them drowned the faint ones: on a changed contrast 11 % of the voxels of a window
# changed their label, 1 % without these and the first convolutions.
KEPT_TYPES = ("MVN", "Add")


def exported(
    network: nn.Module, settings: NetworkSettings, windows: Iterable[np.ndarray] | None = None
) -> tuple[bytes, bytes]:
    """The network with its softmax, for windows of any size: the bytes of the .xml and of the .bin.

    Args:
        network: as ``build_network`` makes it; it is left as it was.
        windows: (2, z, y, x) float32 each, to measure the ranges of activations on: given them, convolutions compute
            in int8. They must span what the network will meet. None keeps fp32 (weights stored in fp16, as in
            model.pt, so that nothing is lost).

    Raises:
        NeonatalSegError: OpenVINO or NNCF is missing or does not load.
    """
    openvino = import_openvino()
    model = _converted(openvino, network, settings)
    if windows is not None:
        model = _in_int8(model, windows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.xml"
        openvino.save_model(model, file, compress_to_fp16=True)
        return file.read_bytes(), file.with_suffix(".bin").read_bytes()


def _converted(openvino: Any, network: nn.Module, settings: NetworkSettings) -> Any:
    import torch

    class Probabilities(torch.nn.Module):
        """What the engines give: probabilities, and the age where there is a head for it."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> Any:
            if settings.age_head:
                logits, weeks = self.network.forward_with_age(image)  # type: ignore[operator]
                return torch.softmax(logits, 1), weeks
            return torch.softmax(self.network(image), 1)

    example = torch.zeros(1, settings.in_channels, *(2 * settings.stride,) * 3)
    was_training = network.training
    try:
        shape = openvino.PartialShape([1, settings.in_channels, -1, -1, -1])
        return openvino.convert_model(Probabilities().eval(), example_input=example, input=shape)
    finally:
        network.train(was_training)


def _in_int8(model: Any, windows: Iterable[np.ndarray]) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise NeonatalSegError(
            f"int8 needs NNCF, which could not be imported ({error}): pip install 'neonatalseg[export]'."
        ) from error
    samples = [np.ascontiguousarray(window[None], np.float32) for window in windows]
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.MIXED,  # activations behind a leaky ReLU lie on one side of zero
        ignored_scope=nncf.IgnoredScope(types=list(KEPT_TYPES), names=_first_convolutions(model)),
    )


def _first_convolutions(model: Any) -> list[str]:
    """Those that read the image: its contrasts are what 256 steps over the range of all scans would blur."""
    image = model.inputs[0]
    readers = (reader.get_node() for reader in image.get_target_inputs())
    return [node.get_friendly_name() for node in readers if node.get_type_name() == "Convolution"]
