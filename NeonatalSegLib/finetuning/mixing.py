"""Old and new weights mixed, and what a network is worth on held-out slices, which chooses the mix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from NeonatalSegLib.finetuning.sparse_labels import Box, SparseCase
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, UNKNOWN

CONTEXT = 20  # voxels around a held-out slice that are segmented with it
HELD_OUT_OVERLAP = 0.1  # of the windows that judge held-out slices: many judgements, each cheap


class Tried(NamedTuple):
    """One mix of old and new weights and what it is worth.

    Attributes:
        safe: it loses no more than the tolerance on the case that guards the old domain.
        score: mean DSC on the held-out slices.
        mix: share of the new weights.
        per_class: DSC [10] on the held-out slices.
        guard: mean DSC on the case that guards the old domain, or None.
    """

    safe: bool
    score: float
    mix: float
    per_class: np.ndarray
    guard: float | None
    network: nn.Module


def best_mix(tried: Sequence[Tried]) -> Tried:
    """One of the mixes that were tried.

    The best on the held-out slices among those that do not forget; where all do, the one that forgets least.
    """
    safe = [entry for entry in tried if entry.safe]
    if safe:
        return max(safe, key=lambda entry: (entry.score, entry.mix))
    return max(tried, key=lambda entry: entry.guard or 0.0)


def evaluate(
    network: nn.Module,
    shape: NetworkSettings,
    cases: Sequence[SparseCase],
    merged: Sequence[Sequence[int]] = (),
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """DSC [10] over the held-out voxels of all cases counted together; NaN for a class that neither side holds."""
    both = np.zeros(NUMBER_OF_CLASSES)
    total = np.zeros(NUMBER_OF_CLASSES)
    names = np.arange(256)
    for first, *others in merged:
        names[others] = first
    for case in cases:
        known = case.held_out != UNKNOWN
        if not known.any():
            continue
        predicted = np.full(known.shape, UNKNOWN, np.uint8)
        for box in boxes_to_segment(case):
            outer = with_context(box, known.shape)
            image = torch.from_numpy(np.asarray(case.image[(slice(None),) + outer], np.float32)).to(device)
            labels = predict_windows(network, image, shape, window=_window(image, shape), overlap=HELD_OUT_OVERLAP)
            inner = tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True))
            predicted[box] = labels.argmax(0).cpu().numpy()[inner]
        found, truth = names[predicted[known]], names[np.asarray(case.held_out)[known]]
        total += np.bincount(found, minlength=NUMBER_OF_CLASSES) + np.bincount(truth, minlength=NUMBER_OF_CLASSES)
        both += np.bincount(truth[found == truth], minlength=NUMBER_OF_CLASSES)
    return np.divide(2 * both, total, out=np.full(NUMBER_OF_CLASSES, np.nan), where=total > 0)


def boxes_to_segment(case: SparseCase) -> list[Box]:
    """The boxes that hold what is held out of a case: few slices do not need the whole scan.

    Boxes are joined where one window is no larger than theirs, and all of it is one where they cost no less.
    """
    size = case.held_out.shape
    boxes = list(case.boxes) or [_bounds(case.held_out != UNKNOWN)]
    while True:
        pairs = [(i, j) for i in range(len(boxes)) for j in range(i)]
        joined = [(i, j, _joined(boxes[i], boxes[j])) for i, j in pairs]
        cheaper = [(cost(box, size) - cost(boxes[i], size) - cost(boxes[j], size), i, j, box) for i, j, box in joined]
        if not cheaper or min(c for c, *_ in cheaper) > 0:
            break
        _, i, j, box = min(cheaper, key=lambda entry: entry[0])
        boxes = [b for n, b in enumerate(boxes) if n not in (i, j)] + [box]
    return boxes


def with_context(box: Box, size: Sequence[int]) -> Box:
    """A box with what a network needs to see around it, within an array of ``size``."""
    z, y, x = (slice(max(0, b.start - CONTEXT), min(n, b.stop + CONTEXT)) for b, n in zip(box, size, strict=True))
    return z, y, x


def cost(box: Box, size: Sequence[int]) -> int:
    """Voxels that the network goes through for a box."""
    return int(np.prod([b.stop - b.start for b in with_context(box, size)]))


def _joined(a: Box, b: Box) -> Box:
    z, y, x = (slice(min(m.start, n.start), max(m.stop, n.stop)) for m, n in zip(a, b, strict=True))
    return z, y, x


def _bounds(mask: np.ndarray) -> Box:
    places = np.argwhere(mask)
    z, y, x = (slice(int(a), int(b) + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    return z, y, x


def _window(image: torch.Tensor, shape: NetworkSettings) -> tuple[int, ...]:
    """The whole of a thin box, where that is no more than two of the windows that the network was made for."""
    size = tuple(image.shape[1:])
    return size if np.prod(size) <= 2 * np.prod(shape.patch) else shape.patch


def mixed(old: nn.Module, new: nn.Module, share: float) -> nn.Module:
    """A network with weights (1 - share) old + share new (weight interpolation, DRIFTS)."""
    out = copy.deepcopy(new)
    theirs = old.state_dict()
    with torch.no_grad():
        seen: set[int] = set()  # DynUNet lists most weights under two names
        for name, value in out.state_dict().items():
            if value.is_floating_point() and value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                value.lerp_(theirs[name].to(value), 1.0 - share)
    return out.eval()


def middle(shares: Sequence[float]) -> float:
    """The middle one by size; of an even number the upper of the two.

    Example:
        >>> middle((1.0, 0.4, 0.7))
        0.7
    """
    return sorted(shares)[len(shares) // 2]


def mean_tissue_dsc(per_class: np.ndarray) -> float | None:
    """Mean over those of the eight tissues that were measured, or None."""
    values = per_class[[t.index for t in PHYSIOLOGICAL]]
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def score_of(per_class: np.ndarray) -> float:
    """:func:`mean_tissue_dsc`, 0 where nothing was measured: to compare by."""
    return mean_tissue_dsc(per_class) or 0.0
