"""What a fine-tuning costs on scans of the model's own kind, told without having one of them.

Drawn newborns with their drawn truth do not tell: a network that rehearses drawings scores better on them while it gets
worse on people. What moves together with the loss on newborns kept out (docs/label-budget.md) is how far the new model
still agrees with the old one on the user's own anatomy, painted with a newborn's brightness in T1 and T2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from NeonatalSegLib.augmentation.synthesis import blur
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.finetuning.mixing import score_of
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, central_part
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, UNKNOWN

WINDOW = (64, 64, 64)  # voxels (z, y, x) in which the two models are compared
NOISE, BLUR = 0.3, 0.6  # of the painting: standard deviation in units of the z-scored image, and voxels
# Mean DSC lost = FACTOR * (1 - agreement) ** POWER: the power as fitted to mixes whose loss was measured, the factor a
# third above the fit, since newborns lose unlike much (docs/label-budget.md).
FACTOR, POWER = 6.5, 2.4


def painted_guard(
    old: nn.Module, shape: NetworkSettings, case: SparseCase, newborn: SparseCase, device: torch.device
) -> SparseCase | None:
    """The middle of an annotated scan, painted as a newborn, with what the old model says of that.

    None where it sees no tissue there: then nothing can be told.

    Args:
        old: the model before, in evaluation mode.
        case: its image and where it is annotated; whatever it holds, the old model's labels of it are painted.
        newborn: fully labelled: how bright each class is.
    """
    middle = central_part(case, shape.patch)
    labels = labels_of(old, middle.image, shape, device)
    painted = paint(labels, newborn)
    part = central_part(SparseCase(case.name, painted, labels, labels), WINDOW)
    wanted = labels_of(old, part.image, shape, device)
    if not np.isin(wanted, [t.index for t in PHYSIOLOGICAL]).any():
        return None
    return SparseCase("painted", part.image, np.full(wanted.shape, UNKNOWN, np.uint8), wanted)


def agreement(network: nn.Module, guard: SparseCase, shape: NetworkSettings, device: torch.device) -> float:
    """Mean DSC (0-1) over the tissues between a network and what the old model said of the painting."""
    found = dice_per_class(labels_of(network, guard.image, shape, device), guard.held_out)
    return score_of(found)


def kept(agreement: float) -> float:
    """What is left of the old model's mean DSC, 1 for all, by its agreement (mean DSC, 0-1) with the new one.

    Example:
        >>> round(kept(0.928), 2)
        0.99
    """
    return max(0.0, 1 - FACTOR * (1 - agreement) ** POWER)


def paint(labels: np.ndarray, newborn: SparseCase) -> np.ndarray:
    """T1 and T2 (2, z, y, x) float32 of a label map (z, y, x), each class as bright as in ``newborn``."""
    channels, generator = [], torch.Generator().manual_seed(0)
    for channel in newborn.image:
        of_class = [channel[newborn.labels == c] for c in range(NUMBER_OF_CLASSES)]
        means = np.array([values.mean() if values.size else 0.0 for values in of_class], np.float32)
        noise = NOISE * torch.randn(labels.shape, generator=generator)
        channels.append(blur((torch.from_numpy(means[labels]) + noise)[None], BLUR)[0].numpy())
    return np.stack(channels).astype(np.float32)


def labels_of(network: nn.Module, image: np.ndarray, shape: NetworkSettings, device: torch.device) -> np.ndarray:
    """Labels (z, y, x) uint8 of an image (2, z, y, x) in one window."""
    tensor = torch.from_numpy(np.asarray(image, np.float32)).to(device)
    found = predict_windows(network, tensor, shape, window=image.shape[1:])
    return found.argmax(0).cpu().numpy().astype(np.uint8)
