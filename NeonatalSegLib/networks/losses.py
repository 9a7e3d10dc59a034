"""The paper's loss: softmax Dice + cross entropy over deep-supervision outputs, for full and for partial labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-5  # keeps 0/0 of a class that is nowhere defined; small against one voxel


class DiceCELoss(nn.Module):
    """Equation 1: L = L_Dice + L_CE, on the voxels that carry a label.

    Dice is equation 2, with the sums over the voxels i of one sample and the mean over samples:
    ``-(2 / |K|) sum_k (sum_i u_ik v_ik) / (sum_i u_ik + sum_i v_ik)``, u the softmax output, v the one-hot truth;
    it lies in [-1, 0]. A class that no voxel of the sample shows adds 0 there, as the equation says. CE is the mean
    over labelled voxels.
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of one output.

        Args:
            logits: (n, classes, z, y, x), any float type; computed in float32.
            labels: (n, z, y, x) integers 0..classes-1; what is outside the mask is not looked at.
            mask: (n, z, y, x) bool, True where the label is known; None: everywhere.

        Returns:
            Scalar. With an empty mask it is 0 and has zero gradient.
        """
        labels = labels.long()
        known = None if mask is None else mask.flatten(1).float()
        if mask is not None:
            labels = torch.where(mask, labels, 0)
        log_u = functional.log_softmax(logits.float(), 1)
        flat = labels.flatten(1)
        log_true = log_u.gather(1, labels[:, None])[:, 0].flatten(1)  # of the labelled class, (n, voxels)
        u = log_u.exp().flatten(2)
        # Sums over the voxels of each class by index: a one-hot truth would be ten volumes of mostly zeros.
        if known is None:
            ce = -log_true.mean()
            u_sum, of_label = u.sum(2), torch.ones_like(log_true)
        else:
            ce = -(log_true * known).sum() / known.sum().clamp(min=1)
            u_sum, of_label = (u * known[:, None]).sum(2), known
        nothing = torch.zeros_like(u_sum)
        overlap = nothing.scatter_add(1, flat, log_true.exp() * of_label)
        total = u_sum + nothing.scatter_add(1, flat, of_label)
        return ce - (2 * overlap / (total + EPSILON)).mean()


class DeepSupervisionLoss(nn.Module):
    """Equation 3: the losses of all outputs, those of lower resolution with lower weights (0.5 ** i).

    Labels are shrunk to each output's resolution by the majority of the labelled voxels in each block of voxels; a
    block counts as labelled where any of its voxels is (with sparse slices the plain nearest voxel would lose most).

    Args:
        normalised: divide the weights by their sum, so that a loss means the same with any number of outputs.
    """

    def __init__(self, normalised: bool = True) -> None:
        super().__init__()
        self.loss, self.normalised = DiceCELoss(), normalised

    def forward(
        self, outputs: Sequence[torch.Tensor], labels: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Weighted mean or sum of the losses of ``outputs`` (final first); shapes as in :class:`DiceCELoss`."""
        weights = [0.5**i for i in range(len(outputs))]
        whole = sum(weights) if self.normalised else 1.0
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for weight, output in zip(weights, outputs, strict=True):
            small, known = shrink_labels(labels, mask, output.shape[2:], output.shape[1])
            total = total + weight / whole * self.loss(output, small, known)
        return total


def distillation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy against the probabilities of another network, the mean over voxels (Hinton 2015).

    Args:
        logits, target: (n, classes, z, y, x), of the network that learns and of the one that is to be remembered.

    Returns:
        Scalar, least where both give the same probabilities.
    """
    wanted = torch.softmax(target.float(), 1)
    return -(wanted * functional.log_softmax(logits.float(), 1)).sum(1).mean()


def age_loss(age_weeks: torch.Tensor, truth_weeks: torch.Tensor) -> torch.Tensor:
    """Mean squared error in weeks squared over the samples with a known age (AgeU-Net; its weight is 0.01).

    Args:
        age_weeks: (n,), as the network tells them.
        truth_weeks: (n,), NaN where the age is not known.

    Returns:
        Scalar; 0 with zero gradient where no age is known (not without gradient: DDP waits for every weight's).
    """
    known = torch.isfinite(truth_weeks)
    error = torch.where(known, age_weeks.float() - truth_weeks.nan_to_num(), 0.0)
    return error.square().sum() / known.sum().clamp(min=1)


def shrink_labels(
    labels: torch.Tensor, mask: torch.Tensor | None, size: Sequence[int], classes: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels (n, z, y, x) and mask at a lower resolution: the majority label of each block's labelled voxels."""
    if tuple(labels.shape[1:]) == tuple(size):
        return labels, mask
    factor = [a // b for a, b in zip(labels.shape[1:], size, strict=True)]
    known = None if mask is None else mask.float()
    votes = []
    for c in range(classes):
        of_class = (labels == c).float()
        votes.append(functional.avg_pool3d(of_class if known is None else of_class * known, factor))
    small = torch.stack(votes, 1)
    return small.argmax(1), None if mask is None else small.sum(1) > 0


def merged_loss(
    loss: nn.Module,
    outputs: Sequence[torch.Tensor],
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    groups: Sequence[Sequence[Sequence[int]]],
) -> torch.Tensor:
    """``loss`` of a batch in which the labels of sample i do not tell the classes of each of ``groups[i]`` apart.

    Such a sample is evaluated by the sum of these classes; the others as usual. Mean over the samples.
    """
    if not any(groups):
        return loss(outputs, labels, mask)
    losses = []
    for i, merged in enumerate(groups):
        sample = slice(i, i + 1)
        parts = [merge_classes(out[sample], merged) for out in outputs]
        losses.append(loss(parts, labels[sample], None if mask is None else mask[sample]))
    return torch.stack(losses).mean()


def merge_classes(logits: torch.Tensor, groups: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits (n, classes, ...) in which each group's first class has the probability of the whole group.

    For labels that do not tell some tissues apart: the network is then not told which of them a voxel is.
    """
    if not groups:
        return logits
    parts = list(logits.float().unbind(1))
    nothing = parts[0].new_full(parts[0].shape, -1e4)
    for first, *others in groups:
        parts[first] = torch.logsumexp(torch.stack([parts[first], *(parts[c] for c in others)]), 0)
        for c in others:
            parts[c] = nothing
    return torch.stack(parts, 1)
