"""What a network says of the slices that nobody annotated, to learn from beside those that somebody did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from NeonatalSegLib.finetuning.sparse_labels import SparseCase
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.tissues import UNKNOWN

TAUGHT = 32  # added to a label that a network gave, so that it is told from an annotated one
TEACHER_OVERLAP = 0.1  # of its windows: two passes over each annotated scan are paid for by every user


def label_the_rest(
    case: SparseCase,
    teacher: nn.Module,
    shape: NetworkSettings,
    certain: float,
    merged: Sequence[Sequence[int]],
    device: torch.device,
) -> None:
    """Write the teacher's labels into ``case.labels`` where nobody annotated and it is certain.

    Annotated voxels stay. What an earlier call has written is replaced.

    Args:
        certain: least probability of the most probable class.
        merged: groups of classes that the annotation does not tell apart: certain is that it is one of them, and the
            first is written for all, as in the annotation.
    """
    image = torch.from_numpy(np.asarray(case.image, np.float32)).to(device)
    probabilities = predict_windows(teacher, image, shape, overlap=TEACHER_OVERLAP)
    for first, *others in merged:
        probabilities[first] += probabilities[others].sum(0)
        probabilities[others] = 0
    probability, label = probabilities.max(0)
    found = np.where(probability.cpu().numpy() >= certain, label.cpu().numpy() + TAUGHT, UNKNOWN)
    free = case.labels >= TAUGHT
    case.labels[free] = found[free].astype(np.uint8)
