"""Patches drawn ahead onto disk and used several times, each time under other cheap changes.

Drawing a patch (turning, bending, skull, motion) costs a CPU about half a step of the network; reading one back
costs next to nothing. A pool holds ``size`` patches; the run uses each of them ``uses`` times, in random order, and
then goes on with the next pool. Everything hangs on the run's seed and on numbers alone: a patch that is missing is
drawn again as it was, so that a run that goes on sees what it would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch.utils.data import Dataset

from NeonatalSegLib.training.patches import PatchDataset

FLIP, GAMMA, NOISE = 0.5, 0.25, 0.25  # chances of the cheap changes
ARRAYS = ("image", "label", "subject", "age")


class PatchPool(Dataset[dict[str, torch.Tensor]]):
    """The items of ``patches``, each used several times; item ``i`` is the same whenever and wherever it is asked for.

    Args:
        patches: draws; its modality dropout has to be 0, since that is one of the cheap changes.
        folder: of the pool's files; those of earlier pools are deleted.
        drop_modality: chance to blank T1, and the same chance to blank T2; never both.

    Example:
        >>> pool = PatchPool(drawing, run / "pool", size=300, uses=4, drop_modality=0.25)  # doctest: +SKIP
        >>> pool[17]["image"].shape  # doctest: +SKIP
        torch.Size([2, 96, 96, 96])
    """

    def __init__(self, patches: PatchDataset, folder: Path, *, size: int, uses: int, drop_modality: float) -> None:
        self.patches, self.folder, self.size, self.uses = patches, folder, size, uses
        self.drop_modality = drop_modality
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        entry = self.entry(number)
        random = np.random.default_rng([self.patches.settings.seed, 1, number])
        return changed(self._read(entry) or self._drawn(entry), self.drop_modality, random)

    def entry(self, number: int) -> int:
        """Which drawn patch item ``number`` shows: of every pool each comes ``uses`` times, in random order."""
        pool, place = divmod(number, self.size * self.uses)
        if self._order is None or self._order[0] != pool:
            random = np.random.default_rng([self.patches.settings.seed, 2, pool])
            self._order = (pool, random.permutation(self.size * self.uses) % self.size)
            self._forget(pool)
        return pool * self.size + int(self._order[1][place])

    def _drawn(self, entry: int) -> dict[str, torch.Tensor]:
        """Draw and keep; rounded to 16 bits already at the first use, as all later uses read it."""
        item = self.patches[entry]
        item["image"] = item["image"].half()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file(entry).with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as stream:  # no fsync: what a crash leaves unreadable is drawn again
            arrays: dict[str, Any] = {key: item[key].numpy() for key in ARRAYS}
            np.savez(stream, **arrays)
        os.replace(part, self._file(entry))
        return item

    def _read(self, entry: int) -> dict[str, torch.Tensor] | None:
        try:
            with np.load(self._file(entry)) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def _file(self, entry: int) -> Path:
        return self.folder / f"{entry:07d}.npz"

    def _forget(self, pool: int) -> None:
        """Delete the patches of pools before the last one, which another process may still be reading."""
        for file in self.folder.glob("*.npz"):
            if int(file.stem) < (pool - 1) * self.size:
                file.unlink(missing_ok=True)


def pooled(patches: PatchDataset, folder: Path) -> Dataset[dict[str, torch.Tensor]]:
    """``patches`` behind a pool, where their settings ask for one and they are not drawn on a GPU."""
    s = patches.settings
    if not s.pool or patches.on_device:
        return patches
    random = s.randomisation
    drop = random.drop_modality if random else s.augmentation.drop_modality
    keeping = replace(
        s,
        augmentation=replace(s.augmentation, drop_modality=0.0),
        randomisation=random and replace(random, drop_modality=0.0),
        randomisation_end=s.randomisation_end and replace(s.randomisation_end, drop_modality=0.0),
    )
    drawing = PatchDataset(patches.subjects, keeping, patches.known, total=-(-s.patches // s.pool_uses))
    return PatchPool(drawing, folder, size=s.pool, uses=s.pool_uses, drop_modality=drop)


def changed(
    item: Mapping[str, torch.Tensor], drop_modality: float, random: np.random.Generator
) -> dict[str, torch.Tensor]:
    """An item mirrored left to right, with another contrast curve, gain and noise, or without T1 or T2."""
    image, label = item["image"].float(), item["label"]
    if random.random() < FLIP:
        image, label = image.flip(-1), label.flip(-1)
    present = [bool(channel.any()) for channel in image]
    draw, dropped = random.random(), None
    if draw < 2 * drop_modality and all(present):
        dropped = int(draw < drop_modality)
    channels = []
    for i, channel in enumerate(image):
        if not present[i] or i == dropped:
            channels.append(torch.zeros_like(channel))
            continue
        channels.append(_channel(channel, random))
    return {**item, "image": torch.stack(channels), "label": label}


def _channel(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    if random.random() < GAMMA:
        low, high = float(image.min()), float(image.max())
        if high > low:
            unit = (image - low) / (high - low)
            image = unit ** float(np.exp(random.uniform(-0.3, 0.3))) * (high - low) + low
    if random.random() < NOISE:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(int(random.integers(2**31))))
        image = image + random.uniform(0.02, 0.15) * noise
    return image * random.uniform(0.9, 1.1) + random.uniform(-0.1, 0.1)
