"""Nested shells of ten classes: scans of which a tiny network learns within seconds."""

from __future__ import annotations

import numpy as np
import torch

from NeonatalSegLib.augmentation.transforms import AugmentationSettings
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.tissues import UNKNOWN

TINY = NetworkSettings((4, 6, 8, 8), 2.0, (16, 16, 16), heads=1)
STILL = AugmentationSettings(
    flip=(0, 0, 0), elastic=0, affine=0, noise=0, smooth=0, intensity=0, contrast=0, bias=0, drop_modality=0
)
QUICK = FineTuningSettings(
    steps=4, rehearsal=0, augmentation=STILL, learning_rate=1e-2, ema=0.5, mixes=(1.0,), patch=(16, 16, 16)
)


def shells(seed: int = 0, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """An image (2, z, y, x) and labels 0-9: nested shells, each with an intensity of its own."""
    random = np.random.default_rng(seed)
    z, y, x = np.mgrid[:side, :side, :side] - (side - 1) / 2
    labels = np.clip(9 - (np.sqrt(z**2 + y**2 + x**2) * 20 / side), 0, 9).astype(np.uint8)
    values = np.linspace(-1.5, 1.5, 10)
    image = np.stack([values[labels], values[::-1][labels]]) + random.normal(0, 0.05, (2, side, side, side))
    return image.astype(np.float32), labels


def sliced(name: str = "a", learn: tuple[int, ...] = (6, 10, 14), evaluated: tuple[int, ...] = (12,)) -> SparseCase:
    image, labels = shells()
    sides = []
    for chosen in (learn, evaluated):
        side = np.full(labels.shape, UNKNOWN, np.uint8)
        side[list(chosen)] = labels[list(chosen)]
        sides.append(side)
    return SparseCase(name, image, *sides)


def whole(name: str, seed: int = 0) -> SparseCase:
    image, labels = shells(seed)
    return SparseCase(name, image, labels, np.full(labels.shape, UNKNOWN, np.uint8))


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
