"""Windows on which int8 is calibrated: they must span what a model will meet, or it fails where they did not reach.

Half are patches as the model's own training drew them: changed contrasts, one modality, tight masks, coarse slices,
noise, motion. Half are windows of the same subjects as a segmentation sees them, with T1 and T2, T2 alone, T1 alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.networks.sliding_window import OVERLAP, window_starts
from NeonatalSegLib.training.settings import TrainingSettings

WINDOWS = 20
TEMPLATE_SHARE = 0.25  # of the drawn patches: the youngest are among them
SEED = 2026


def calibration_windows(model: Model, cache: str | Path, number: int = WINDOWS) -> tuple[list[np.ndarray], list[str]]:
    """(2, z, y, x) float32 windows of the model's own training subjects, and these subjects' names.

    Args:
        cache: prepared arrays of a training run (``neonatalseg train --cache``), at the model's spacing.

    Raises:
        NeonatalSegError: no cache, none of the model's training subjects in it, or a model that does not say how it
            was trained.
    """
    subjects = [s for s in read_cache(cache) if s.name in model.facts.training_subjects]
    if not subjects:
        raise NeonatalSegError(f"{cache} holds none of the subjects that {model.name} was trained on.")
    drawn = _drawn(subjects, _settings(model), number - number // 2)
    return [*drawn, *_seen(subjects, model.network.patch, number // 2)], [s.name for s in subjects]


def _settings(model: Model) -> TrainingSettings:
    stated: Any = model.metadata["neonatalseg"].get("training")
    if not stated:
        raise NeonatalSegError(f"The model {model.name} does not say how it was trained: export it without --cache.")
    settings = TrainingSettings.from_json(stated)
    return replace(settings, template_share=TEMPLATE_SHARE, phantom_share=0.0, seed=SEED, whole_brain=(0.0, 0.0))


def _drawn(subjects: Sequence[CachedSubject], settings: TrainingSettings, number: int) -> list[np.ndarray]:
    from NeonatalSegLib.training.patches import PatchDataset

    patches = PatchDataset(subjects, settings)
    return [_cut(np.asarray(patches[i]["image"], np.float32), settings.network.patch) for i in range(number)]


def _cut(patch: np.ndarray, most: Sequence[int]) -> np.ndarray:
    """The middle of a patch that is larger than ``most`` on an axis, as those over the whole brain are."""
    starts = [max(0, (n - m) // 2) for n, m in zip(patch.shape[1:], most, strict=True)]
    return patch[(slice(None),) + tuple(slice(a, a + m) for a, m in zip(starts, most, strict=True))]


def _seen(subjects: Sequence[CachedSubject], window: Sequence[int], number: int) -> list[np.ndarray]:
    """Windows at the places where a segmentation has them, subject after subject, modality after modality."""
    random = np.random.default_rng(SEED)
    absent = itertools.cycle((None, 0, 1))  # the channel left out
    out = []
    for subject in itertools.islice(itertools.cycle(subjects), number):
        image = np.array(subject.image(), np.float32)
        if (channel := next(absent)) is not None:
            image[channel] = 0
        starts = [
            int(random.choice(window_starts(n, w, OVERLAP))) for n, w in zip(image.shape[1:], window, strict=True)
        ]
        part = image[(slice(None),) + tuple(slice(s, s + w) for s, w in zip(starts, window, strict=True))]
        room = [w - n for n, w in zip(part.shape[1:], window, strict=True)]
        out.append(np.pad(part, [(0, 0)] + [(n // 2, n - n // 2) for n in room], mode="edge"))
    return out
