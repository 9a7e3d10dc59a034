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

    ``total`` is the number of patches in the whole run (default: as the settings say); how far the run has come says
    how much the patches are those of ``settings.randomisation_end``, and how many show the whole brain.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        settings: TrainingSettings,
        known: Mapping[str, np.ndarray] | None = None,
        *,
        on_device: bool = False,
        total: int | None = None,
    ) -> None:
        set_track_meta(False)  # the arrays lie on one known grid already; tracking it costs time and memory
        self.real = [s for s in subjects if s.kind == NEWBORN]
        self.phantoms = [s for s in subjects if s.kind == PHANTOM]
        self.templates = [s for s in subjects if s.kind == TEMPLATE]
        self.everyone = self.real + self.phantoms + self.templates
        self.subjects = list(subjects)
        self.settings = settings
        self.known = {name: _core(mask) for name, mask in (known or {}).items()}
        self.transform = build_augmentation(settings.augmentation, settings.network.patch)
        network, random = settings.network, settings.randomisation
        if random is not None and self.known:
            raise NeonatalSegError(
                "Random contrasts are drawn from whole label maps; these subjects have a few slices."
            )
        self.total = total or settings.patches
        self.on_device = on_device and random is not None
        self._whole = (network.stride, settings.whole_brain) if any(settings.whole_brain) else None
        self._volumes: dict[str, Volume] = {}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng([self.settings.seed, number])
        subject = self._in_turn(number) if self.settings.in_turn else self._draw_subject(random)
        place = self.everyone.index(subject)
        age = torch.tensor(float("nan") if subject.age_weeks is None else subject.age_weeks, dtype=torch.float32)
        facts = {"subject": torch.tensor(place), "age": age}
        if self.settings.randomisation is not None:
            seed, come = int(random.integers(2**31)), min(1.0, number / self.total)
            facts |= {"come": torch.tensor(come, dtype=torch.float32), "whole": torch.tensor(0)}
            if self._whole:
                step, (first, last) = self._whole
                facts["whole"] = torch.tensor(step * (random.random() < (1 - come) * first + come * last))
            if self.on_device:
                return {**facts, "seed": torch.tensor(seed)}
            return drawn(self.settings, self._volume(subject), facts, seed)
        arrays = self._arrays(subject)
        for _ in range(PATCH_TRIES if subject.name in self.known else 1):
            self.transform.set_random_state(seed=int(random.integers(2**31)))
            out = self.transform(cut(arrays, self.settings.network.patch, random))
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

    def _in_turn(self, number: int) -> CachedSubject:
        """Every pass over the subjects shows each of them once, in another order."""
        turn, place = divmod(number, len(self.everyone))
        order = np.random.default_rng([self.settings.seed, 3, turn]).permutation(len(self.everyone))
        return self.everyone[int(order[place])]

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

    def _arrays(self, subject: CachedSubject) -> dict[str, np.ndarray]:
        """The subject's arrays as they lie on disk, (channels, z, y, x), mapped and not read.

        Nothing is kept: a process that has touched hundreds of scans would hold them all.
        """
        arrays = {"image": subject.image(), "label": subject.labels()[None]}
        if subject.name in self.known:
            arrays["known"] = np.broadcast_to(self.known[subject.name], subject.labels().shape)[None]
        return arrays


def cut(arrays: Mapping[str, np.ndarray], patch: Sequence[int], random: np.random.Generator) -> dict[str, torch.Tensor]:
    """A random piece of the patch's size of (channels, z, y, x) arrays; no more of them than that is read.

    Args:
        arrays: "image" (any float), "label" (uint8), and where only a part is labelled "known" (bool).

    Returns:
        "image" float32 and "label" uint8, ``UNKNOWN`` where not known; axes shorter than the patch repeat their ends.
    """
    shape = arrays["image"].shape[1:]
    first = [int(random.integers(max(0, n - p) + 1)) for n, p in zip(shape, patch, strict=True)]
    window = (slice(None), *(slice(a, a + p) for a, p in zip(first, patch, strict=True)))
    image, label = np.array(arrays["image"][window], np.float32), np.array(arrays["label"][window])
    if "known" in arrays:
        label[~arrays["known"][window]] = UNKNOWN
    short = [max(0, p - n) for n, p in zip(shape, patch, strict=True)]
    if any(short):
        ends = [(0, 0), *((n // 2, n - n // 2) for n in short)]
        image, label = np.pad(image, ends, "edge"), np.pad(label, ends, "edge")
    return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}


def _core(mask: np.ndarray) -> np.ndarray:
    """What a mask of whole slices consists of: one voxel along the axes on which it repeats itself.

    Hundreds of scans' masks then take no memory; :func:`numpy.broadcast_to` gives the mask back.
    """
    return np.ascontiguousarray(mask[tuple(slice(None) if step else slice(0, 1) for step in mask.strides)])


def drawn(
    settings: TrainingSettings, volume: Volume, facts: Mapping[str, torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """The patch of a volume that the facts and the seed of an item describe, as an item.

    Its age is NaN where the head was scaled or made younger: a brain of 40 weeks at the size of one of 30 has the folds
    of 40, and a target for it, either way, would teach the age head what is not so.
    """
    network, start = settings.network, settings.randomisation
    assert start is not None
    end, come = settings.randomisation_end, float(facts["come"])
    now = start.towards(end, come) if end else start
    patch = Randomisation(now, network.spacing_mm, network.patch)(volume, seed, whole=int(facts["whole"]))
    age = facts["age"] if patch.of_its_age else torch.full_like(facts["age"], float("nan"))
    return {"subject": facts["subject"], "age": age, "image": patch.image, "label": patch.labels}


class EpochSampler(Sampler[int]):
    """Numbers of the patches of one epoch; Lightning calls ``set_epoch``. Each of several GPUs takes its own share.

    ``done``: epochs that an earlier run has behind it.
    """

    def __init__(self, per_epoch: int, rank: int = 0, world: int = 1, done: int = 0) -> None:
        self.per_epoch, self.rank, self.world, self.done, self.epoch = per_epoch, rank, world, done, done

    def set_epoch(self, epoch: int) -> None:
        self.epoch = self.done + epoch

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
