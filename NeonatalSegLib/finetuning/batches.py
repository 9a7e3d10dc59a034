"""What each step of a fine-tuning learns from, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import nn

from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, SparsePatches
from NeonatalSegLib.finetuning.teacher import TAUGHT
from NeonatalSegLib.networks.losses import distillation_loss, merged_loss
from NeonatalSegLib.networks.torch_engine import autocast_training
from NeonatalSegLib.tissues import UNKNOWN


class Batch(NamedTuple):
    """On the device.

    Attributes:
        images: (n, 2, z, y, x) float32.
        labels: (n, z, y, x) int64: 0-9 annotated, ``TAUGHT`` + 0-9 labelled by the teacher, ``UNKNOWN``.
        groups: for each sample the classes that its labels do not tell apart; those of rehearsal tell all.
        rehearsed: for each sample whether it is of the model's own domain.
    """

    images: torch.Tensor
    labels: torch.Tensor
    groups: list[tuple[tuple[int, ...], ...]]
    rehearsed: list[bool]


class Batches:
    """One batch after the other; the next is drawn while the network works on the last. A context manager."""

    def __init__(
        self,
        cases: Sequence[SparseCase],
        rehearsal: Sequence[SparseCase],
        settings: FineTuningSettings,
        device: torch.device,
    ) -> None:
        s = settings
        assert s.patch is not None
        self._source = SparsePatches(cases, rehearsal, s.rehearsal, s.patch, s.augmentation, s.seed)
        self._settings, self._device, self._number = settings, device, 0
        self._drawer = ThreadPoolExecutor(1)
        self._waiting: Future[tuple[torch.Tensor, torch.Tensor]] = self._drawer.submit(self._draw, 0)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self._drawer.shutdown(cancel_futures=True)

    def take(self) -> Batch:
        """The next one."""
        s, images_labels = self._settings, self._waiting.result()
        numbers = range(self._number * s.batch_size, (self._number + 1) * s.batch_size)
        self._number += 1
        self._waiting = self._drawer.submit(self._draw, self._number)
        rehearsed = [self._source.from_rehearsal(n) for n in numbers]
        groups = [() if own else s.merged for own in rehearsed]
        images, labels = (part.to(self._device) for part in images_labels)
        return Batch(images, labels.long(), groups, rehearsed)

    def settle(self) -> None:
        """Wait until nothing is being drawn, so that labels may be written: the same run gives the same patches."""
        self._waiting.result()

    def _draw(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self._settings.batch_size
        drawn = [self._source.draw(number * size + i) for i in range(size)]
        return torch.stack([image for image, _ in drawn]), torch.stack([labels for _, labels in drawn])


def loss_of_batch(
    network: nn.Module, old: nn.Module, loss: nn.Module, batch: Batch, settings: FineTuningSettings
) -> torch.Tensor:
    """Of what was annotated, of what the teacher is certain of, and of what the old model makes of its own domain.

    Args:
        network: that learns.
        old: as it was before.
        loss: of outputs, labels and mask, as ``losses.DeepSupervisionLoss``.
    """
    device = batch.images.device
    with autocast_training(device):
        outputs = network(batch.images)
    heads = outputs if isinstance(outputs, list) else [outputs]  # a network without deep supervision
    labels, taught = batch.labels, (batch.labels >= TAUGHT) & (batch.labels != UNKNOWN)
    remembered = torch.tensor(batch.rehearsed, device=device) & settings.distil
    annotated = (labels < TAUGHT) & ~remembered[:, None, None, None]
    total = merged_loss(loss, heads, labels, annotated, batch.groups)
    if bool(taught.any()):
        total = total + settings.teacher * merged_loss(loss, heads, labels - TAUGHT, taught, batch.groups)
    if bool(remembered.any()):
        with torch.no_grad(), autocast_training(device):
            target = old(batch.images[remembered])
        total = total + distillation_loss(heads[0][remembered], target) * remembered.float().mean()
    return total
