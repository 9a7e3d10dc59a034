"""Patches to train on: drawn from cached subjects, whole or sparsely labelled, by their number in the run alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.data import set_track_meta
from torch.utils.data import Dataset, Sampler

from NeonatalSegLib.augmentation.randomisation import Randomisation, Volume
from NeonatalSegLib.augmentation.transforms import build_augmentation
from NeonatalSegLib.datasets.cache import CachedSubject
from NeonatalSegLib.datasets.kinds import NEWBORN, PHANTOM, TEMPLATE
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.tissues import UNKNOWN

if TYPE_CHECKING:
    from NeonatalSegLib.training.settings import TrainingSettings

PATCH_TRIES = 10  # draws of a patch from a sparsely labelled subject until it holds a label


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Random augmented patches; item ``i`` is the same whenever and wherever it is drawn.

    ``known`` holds (z, y, x) bool masks of the labelled voxels, by subject; who is not in it is fully labelled.
    Elsewhere the patches' labels are ``UNKNOWN``, which nearest-neighbour interpolation carries along.

    With ``settings.randomisation`` the patches are those of :class:`Randomisation`; with ``on_device`` an item then
    only says of which of ``volumes()`` and with which seed a patch is to be drawn.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        settings: TrainingSettings,
        known: Mapping[str, np.ndarray] | None = None,
        *,
        on_device: bool = False,
    ) -> None:
        set_track_meta(False)  # the arrays lie on one known grid already; tracking it costs time and memory
        self.real = [s for s in subjects if s.kind == NEWBORN]
        self.phantoms = [s for s in subjects if s.kind == PHANTOM]
        self.templates = [s for s in subjects if s.kind == TEMPLATE]
        self.everyone = self.real + self.phantoms + self.templates
        self.settings = settings
        self.known = known or {}
        self.transform = build_augmentation(settings.augmentation, settings.network.patch)
        self._opened: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        network, random = settings.network, settings.randomisation
        if random is not None and self.known:
            raise NeonatalSegError(
                "Random contrasts are drawn from whole label maps; these subjects have a few slices."
            )
        self.randomise = Randomisation(random, network.spacing_mm, network.patch) if random else None
        self.on_device = on_device and random is not None
        self._volumes: dict[str, Volume] = {}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng([self.settings.seed, number])
        subject = self._draw_subject(random)
        place = self.everyone.index(subject)
        age = torch.tensor(float("nan") if subject.age_weeks is None else subject.age_weeks, dtype=torch.float32)
        facts = {"subject": torch.tensor(place), "age": age}
        if self.randomise is not None:
            seed = int(random.integers(2**31))
            if self.on_device:
                return {**facts, "seed": torch.tensor(seed)}
            patch, truth = self.randomise(self._volume(subject), seed)
            return {**facts, "image": patch, "label": truth}
        image, labels = self._arrays(subject)
        for _ in range(PATCH_TRIES if subject.name in self.known else 1):
            self.transform.set_random_state(seed=int(random.integers(2**31)))
            # The network's image is float16 on disk; a copy, since transforms may write into it.
            out = self.transform(
                {"image": torch.from_numpy(image.astype(np.float32)), "label": torch.from_numpy(labels)[None]}
            )
            if bool((out["label"] != UNKNOWN).any()):
                break
        return {**facts, "image": out["image"].float(), "label": out["label"][0].to(torch.uint8)}

    def _draw_subject(self, random: np.random.Generator) -> CachedSubject:
        s, pool = self.settings, self.real
        if self.phantoms or self.templates:
            draw = random.random()
            if draw < s.phantom_share and self.phantoms:
                pool = self.phantoms
            elif s.phantom_share <= draw < s.phantom_share + s.template_share and self.templates:
                pool = self.templates
        pool = pool or self.phantoms or self.templates
        return pool[int(random.integers(len(pool)))]

    def volumes(self) -> list[Volume]:
        """What the patches of items that were not drawn are drawn from, on the CPU; empty where items are drawn."""
        return [self._volume(s) for s in self.everyone] if self.on_device else []

    def _volume(self, subject: CachedSubject) -> Volume:
        if subject.name not in self._volumes:
            spacing_mm = self.settings.network.spacing_mm
            inside = subject.inside()
            self._volumes[subject.name] = Volume.of(
                np.array(subject.image()), np.array(subject.labels()), spacing_mm,
                None if inside is None else np.array(inside),
            )  # fmt: skip
        return self._volumes[subject.name]

    def _arrays(self, subject: CachedSubject) -> tuple[np.ndarray, np.ndarray]:
        if subject.name not in self._opened:
            labels = np.array(subject.labels())
            if subject.name in self.known:
                labels[~self.known[subject.name]] = UNKNOWN
            self._opened[subject.name] = (np.array(subject.image()), labels)
        return self._opened[subject.name]


class EpochSampler(Sampler[int]):
    """Numbers of the patches of one epoch; Lightning calls ``set_epoch``. Each of several GPUs takes its own share."""

    def __init__(self, per_epoch: int, rank: int = 0, world: int = 1) -> None:
        self.per_epoch, self.rank, self.world, self.epoch = per_epoch, rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch // self.world

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.per_epoch
        yield from range(start + self.rank, start + len(self) * self.world, self.world)


def check_masks(training: Sequence[CachedSubject], known: Mapping[str, np.ndarray]) -> None:
    """NeonatalSegError where a mask of labelled voxels is of nobody in training, of another grid, or empty."""
    shapes = {s.name: s.labels().shape for s in training}
    for name, mask in known.items():
        if name not in shapes:
            raise NeonatalSegError(f"There is a mask of labelled voxels for {name}, which is not trained on.")
        if mask.shape != shapes[name] or mask.dtype != bool:
            raise NeonatalSegError(
                f"The mask of labelled voxels of {name} is {mask.dtype} {mask.shape}: expected bool {shapes[name]}."
            )
        if not mask.any():
            raise NeonatalSegError(f"Nothing is labelled in {name}: leave it out, or label a slice of it.")
