"""Old and new weights mixed, and what a network is worth on held-out slices, which chooses the mix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from NeonatalSegLib.finetuning.sparse_labels import SparseCase
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, UNKNOWN

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
        image = torch.from_numpy(np.asarray(case.image, np.float32)).to(device)
        predicted = predict_windows(network, image, shape, overlap=HELD_OUT_OVERLAP).argmax(0).cpu().numpy()
        found, truth = names[predicted[known]], names[np.asarray(case.held_out)[known]]
        total += np.bincount(found, minlength=NUMBER_OF_CLASSES) + np.bincount(truth, minlength=NUMBER_OF_CLASSES)
        both += np.bincount(truth[found == truth], minlength=NUMBER_OF_CLASSES)
    return np.divide(2 * both, total, out=np.full(NUMBER_OF_CLASSES, np.nan), where=total > 0)


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


def mean_tissue_dsc(per_class: np.ndarray) -> float | None:
    """Mean over those of the eight tissues that were measured, or None."""
    values = per_class[[t.index for t in PHYSIOLOGICAL]]
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def score_of(per_class: np.ndarray) -> float:
    """:func:`mean_tissue_dsc`, 0 where nothing was measured: to compare by."""
    return mean_tissue_dsc(per_class) or 0.0
