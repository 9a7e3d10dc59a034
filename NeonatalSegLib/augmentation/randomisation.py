"""Patches that teach a network to hold outside its training set (domain randomisation).

A patch is real (the scan itself), hybrid (the scan with its tissues' contrast changed) or synthetic (drawn from the
label map alone), in shares that ``docs/robustness.md`` found by measurement; all three then pass through the same
random heads and scanners. ``Randomisation`` works on the device of its arrays: in the loader's processes where the
network runs on a CPU, on the GPU itself where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch

from NeonatalSegLib.augmentation.acquisition import Geometry, bias_field, coarse_slices, gamma, ghosts, noise
from NeonatalSegLib.augmentation.synthesis import (
    changed_contrast,
    clusters,
    head_shells,
    random_contrast,
    simulate_younger,
    smooth_field,
    uniform,
)
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.tissues import INTRACRANIAL_BG

ROOM_MM = 14.0  # around a scan, for skull and scalp
SAME_SIZE = 0.02  # a head scaled by no more than this is still as large as its age says


@dataclass(frozen=True)
class RandomisationSettings:
    """Shares and chances (0-1) of a patch; all 0 leaves a real patch as it is.

    Attributes:
        synthetic, hybrid: shares of patches; the rest are real.
        clean: chance that a real patch is left with its own head and scanner.
        moved: chance that a patch is turned, scaled and bent; the rest keep the sharpness of the scan.
        scale: of the head; 0.68 is a newborn of 28 weeks, 1.10 one of 45 (40 weeks are 1).
        younger: chance that a synthetic patch gets smoother and thinner cortex, larger ventricles and CSF spaces.
        skull, tight: chance of skull and scalp around the head, and of a mask that cuts off all but the brain.
        loose: chance that skull and scalp are cut off again some millimetres from the brain, as a brain finder does.
        bias, gamma, motion, coarse, noise: chance of each, for T1 and T2 separately.
        misaligned: chance that T1 lies up to ``misaligned_mm`` beside T2.
        drop_modality: chance to blank T1, and the same chance to blank T2; never both.
    """

    synthetic: float = 0.25
    hybrid: float = 0.15
    clean: float = 0.0
    moved: float = 1.0
    scale: tuple[float, float] = (0.68, 1.10)
    younger: float = 0.5
    skull: float = 0.3
    tight: float = 0.15
    loose: float = 0.0
    bias: float = 0.4
    gamma: float = 0.3
    motion: float = 0.12
    coarse: float = 0.25
    noise: float = 0.3
    misaligned: float = 0.2
    misaligned_mm: float = 1.0
    drop_modality: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(float(s) for s in self.scale))
        if self.synthetic + self.hybrid > 1 or self.skull + self.tight > 1 or self.drop_modality > 0.5:
            raise NeonatalSegError("synthetic + hybrid and skull + tight may be 1 at most, drop_modality 0.5.")
        if not 0.3 <= self.scale[0] <= self.scale[1] <= 2:
            raise NeonatalSegError(f"The scale {self.scale} is not a range between 0.3 and 2.")

    def towards(self, end: RandomisationSettings, share: float) -> RandomisationSettings:
        """These settings with every chance and millimetre ``share`` (0-1) of the way to ``end``'s; ``scale`` stays."""
        numbers = [f.name for f in fields(self) if f.name != "scale"]
        return replace(self, **{n: (1 - share) * getattr(self, n) + share * getattr(end, n) for n in numbers})


@dataclass(frozen=True)
class Volume:
    """A subject with room around it.

    Attributes:
        image: (2, z, y, x) float16, z-scored; an absent contrast is all 0.
        labels: (1, z, y, x) uint8.
        distances: (2, z, y, x) float16, mm to what the scan shows, and to brain and CSF.
        box: first and last voxel (z, y, x) of brain and CSF.
    """

    image: torch.Tensor
    labels: torch.Tensor
    distances: torch.Tensor
    box: tuple[tuple[int, int, int], tuple[int, int, int]]

    @classmethod
    def of(cls, image: np.ndarray, labels: np.ndarray, spacing_mm: float, inside: np.ndarray | None = None) -> Volume:
        """Pad prepared arrays (2, z, y, x) and (z, y, x) by ``ROOM_MM`` and measure the distances.

        ``inside`` is the head (z, y, x) bool; where it is not known, all that is brighter than the darkest voxel.
        """
        from scipy.ndimage import distance_transform_edt

        room = round(ROOM_MM / spacing_mm)
        air = [float(channel.min()) for channel in image]
        padded = np.stack([np.pad(c, room, constant_values=a) for c, a in zip(image, air, strict=True)])
        wide = np.pad(labels, room)
        if inside is None:
            bright = np.any([c > a + 1e-3 for c, a in zip(padded, air, strict=True)], axis=0)
        else:
            bright = np.pad(inside, room)
        shown = (wide > 0) | bright
        brain = (wide > 0) & (wide != INTRACRANIAL_BG)
        distances = [distance_transform_edt(~mask, sampling=spacing_mm) for mask in (shown, brain)]
        voxels = np.argwhere(brain) if brain.any() else np.argwhere(shown)
        first, last = ((int(z), int(y), int(x)) for z, y, x in (voxels.min(0), voxels.max(0)))
        return cls(
            torch.from_numpy(padded.astype(np.float16)),
            torch.from_numpy(wide[None]),
            torch.from_numpy(np.stack(distances).astype(np.float16)),
            (first, last),
        )

    def to(self, device: torch.device) -> Volume:
        return replace(
            self, image=self.image.to(device), labels=self.labels.to(device), distances=self.distances.to(device)
        )


class Patch(NamedTuple):
    """What is drawn.

    Attributes:
        image: (2, z, y, x) float32, z-scored.
        labels: (z, y, x) uint8.
        of_its_age: False where the head was scaled or made younger, so that it no longer looks its age.
    """

    image: torch.Tensor
    labels: torch.Tensor
    of_its_age: bool


class Randomisation:
    """Random patches of a :class:`Volume`; the same seed gives the same patch on the same kind of device."""

    def __init__(self, settings: RandomisationSettings, spacing_mm: float, patch: Sequence[int]) -> None:
        self.settings, self.spacing_mm, self.patch = settings, spacing_mm, tuple(patch)

    def __call__(self, volume: Volume, seed: int, *, whole: int = 0) -> Patch:
        """A patch of the size asked for, or with ``whole`` one around the whole brain, of a multiple of it."""
        s, generator = self.settings, torch.Generator().manual_seed(seed)
        shape, device = volume.labels.shape[1:], volume.labels.device
        box = (volume.box, whole) if whole else None
        kind, head = uniform(generator, 0, 1), uniform(generator, 0, 1)
        clean = kind >= s.synthetic + s.hybrid and uniform(generator, 0, 1) < s.clean
        # Where no skull is drawn a patch lies within the scan, as the windows of a segmentation do: a network's norms
        # see the whole of a window, and most places in the room around a scan have more air than any of its windows.
        room = 0 if head < s.skull and not clean else round(ROOM_MM / self.spacing_mm)
        geometry = Geometry.draw(shape, self.patch, s.scale, generator, device, moved=s.moved, whole=box, room=room)
        of_its_age = abs(geometry.scale - 1) <= SAME_SIZE
        labels = geometry.sample(volume.labels, "nearest")[0]
        shown_mm, brain_mm = geometry.sample(volume.distances) * geometry.scale
        channels = self._images(volume, geometry, labels, kind, generator)
        if kind < s.synthetic:
            labels, channels, made_younger = self._draw(labels, channels, generator)
            of_its_age = of_its_age and not made_younger
        elif kind < s.synthetic + s.hybrid:
            channels = [c if c is None else changed_contrast(c, labels, generator) for c in channels]
        foreground = shown_mm < 0.5 * self.spacing_mm
        if not clean:
            labels, channels, foreground = self._head(head, labels, channels, shown_mm, brain_mm, generator)
        blank = uniform(generator, 0, 1)
        for i in range(2):
            if blank < 2 * s.drop_modality and i == int(blank < s.drop_modality) and channels[1 - i] is not None:
                channels[i] = None
        done = [
            torch.zeros_like(shown_mm) if c is None else self._scan(c, foreground, generator, clean) for c in channels
        ]
        return Patch(torch.stack(done), labels, of_its_age)

    def _images(
        self, volume: Volume, geometry: Geometry, labels: torch.Tensor, kind: float, generator: torch.Generator
    ) -> list[torch.Tensor | None]:
        """T1 and T2 of the patch, air at 0 and bright tissue at 1; None where the subject has none."""
        channels: list[torch.Tensor | None] = []
        together = uniform(generator, 0, 1) >= self.settings.misaligned
        for i, channel in enumerate(volume.image):
            if not bool(channel.any()):
                channels.append(None)
                continue
            shift = None
            if i == 0 and not together:
                largest = self.settings.misaligned_mm / self.spacing_mm
                shift = torch.tensor([uniform(generator, -largest, largest) for _ in range(3)])
            patch = geometry.sample(channel[None], shift_voxels=shift)[0]
            channels.append(_unit(patch, float(channel[0, 0, 0]), labels > 0))
        return channels

    def _draw(
        self, labels: torch.Tensor, channels: list[torch.Tensor | None], generator: torch.Generator
    ) -> tuple[torch.Tensor, list[torch.Tensor | None], bool]:
        """Two images of random contrast from the label map; the scan only says where tissue is uneven.

        Also whether the anatomy was made younger.
        """
        guide = next((c for c in reversed(channels) if c is not None), None)
        if guide is None or uniform(generator, 0, 1) < 0.3:
            guide = smooth_field(tuple(labels.shape), 12, generator, labels.device)
        if made_younger := uniform(generator, 0, 1) < self.settings.younger:
            labels = simulate_younger(labels, generator)
        parts = clusters(labels, guide, generator)
        return labels, [random_contrast(parts, generator) for _ in range(2)], made_younger

    def _head(
        self,
        draw: float,
        labels: torch.Tensor,
        channels: list[torch.Tensor | None],
        shown_mm: torch.Tensor,
        brain_mm: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, list[torch.Tensor | None], torch.Tensor]:
        """Skull and scalp around it, or a tight mask, or neither; also the mask of what is shown."""
        s = self.settings
        shown = shown_mm < 0.5 * self.spacing_mm
        if draw < s.skull:
            shape_seed = int(torch.randint(2**31, (), generator=generator))
            for i, channel in enumerate(channels):
                if channel is not None:
                    shape = torch.Generator().manual_seed(shape_seed)
                    values, around = head_shells(torch.where(shown, 0.0, shown_mm), shape, generator)
                    channels[i] = torch.where(around, values, channel)
                    foreground = shown | around
            if uniform(generator, 0, 1) < s.loose:
                kept = brain_mm <= uniform(generator, 3.0, 10.0)
                labels = torch.where(kept, labels, 0).to(torch.uint8)
                channels = [c if c is None else torch.where(kept, c, 0.0) for c in channels]
                foreground = foreground & kept
            return labels, channels, foreground
        if draw < s.skull + s.tight:
            kept = brain_mm <= uniform(generator, 0.0, 4.0)
            labels = torch.where(kept, labels, 0).to(torch.uint8)
            return labels, [c if c is None else torch.where(kept, c, 0.0) for c in channels], shown & kept
        return labels, channels, shown

    def _scan(
        self, image: torch.Tensor, foreground: torch.Tensor, generator: torch.Generator, clean: bool
    ) -> torch.Tensor:
        """What a scanner makes of it, unless it is to stay clean, z-scored over the head."""
        s = self.settings
        image = image.clamp(min=0)
        for chance, change in (
            (s.gamma, gamma),
            (s.bias, bias_field),
            (s.motion, ghosts),
            (s.coarse, lambda i, g: coarse_slices(i, self.spacing_mm, g)),
            (s.noise, noise),
        ):
            if not clean and uniform(generator, 0, 1) < chance:
                image = change(image, generator)
        if uniform(generator, 0, 1) < 0.5:  # most scans come with the air around the head set to zero
            image = torch.where(foreground, image, 0.0)
        values = image[foreground] if bool(foreground.any()) else image.reshape(-1)
        gain, offset = uniform(generator, 0.85, 1.15), uniform(generator, -0.15, 0.15)
        return (image - values.mean()) / values.std().clamp(min=1e-3) * gain + offset


def _unit(image: torch.Tensor, air: float, inside: torch.Tensor) -> torch.Tensor:
    """Air to 0 and the 98th centile of the head to 1."""
    values = image[inside][::7]
    bright = float(torch.quantile(values, 0.98)) if len(values) > 10 else air + 3.0
    return (image - air) / max(bright - air, 1e-3)
