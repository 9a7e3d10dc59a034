"""Models with random weights, for tests to which it does not matter what a network has learned."""

from __future__ import annotations

from pathlib import Path

import torch

from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.models.exported import export_model, read_export
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.openvino_engine import OpenVINOEngine

TINY = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0)


def random_model(folder: Path, settings: NetworkSettings = TINY, seed: int = 1) -> Model:
    torch.manual_seed(seed)
    return save_model(build_network(settings), settings, folder, description="Random weights")


def exported_model(folder: Path, settings: NetworkSettings = TINY) -> Model:
    """With its export, so that no other process needs torch and MONAI, which take seconds to import."""
    model = random_model(folder, settings)
    export_model(model)
    return model


def openvino(model: Model) -> OpenVINOEngine:
    export = read_export(model)
    assert export is not None
    return OpenVINOEngine(export.xml, export.weights, export.precision)
