"""What the network sees in training: random patches and the paper's random changes to them (MONAI transforms).

Probabilities and ranges of :meth:`AugmentationSettings.paper` are those of the paper's published code. The defaults
differ where 13 newborns and one model for T1, T2 or both ask for it: more left-right flips (the brain is symmetric),
rotation within what heads do in a scanner instead of half turns, contrast changes, and modality dropout.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai import transforms as mt


@dataclass(frozen=True)
class AugmentationSettings:
    """Probabilities (0-1) and ranges. Array axes are z, y, x of the network's grid (patient axes).

    Attributes:
        flip: per axis z, y, x; x is left-right.
        elastic: chance of a 3D elastic deformation, with ``elastic_sigma`` and ``elastic_magnitude`` in voxels.
        affine: chance of a rotation, scaling and shift without elastic deformation.
        translate_voxels, rotate_radians (per axis), scale: ranges for both.
        noise, noise_sd: Gaussian noise on z-scored images.
        smooth, smooth_sigma: Gaussian smoothing, sigma in voxels.
        intensity, intensity_range: scaling and shifting, each with this chance.
        contrast, contrast_gamma: gamma curve on one image.
        bias, bias_range: smooth multiplicative field (polynomial of order 3).
        padding: what a deformation brings in from outside the patch: "border" repeats the edge, "reflection" mirrors.
        joint: noise, smoothing, scaling and shifting with one draw for T1 and T2 together, as in the paper's code; else
            each has its own.
        drop_modality: chance to blank T1, and the same chance to blank T2; never both.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.5)
    elastic: float = 0.15
    elastic_sigma: tuple[float, float] = (5.0, 8.0)
    elastic_magnitude: tuple[float, float] = (40.0, 80.0)
    affine: float = 0.35
    translate_voxels: float = 5.0
    rotate_radians: tuple[float, float, float] = (0.2, 0.2, 0.2)
    scale: float = 0.12
    noise: float = 0.13
    noise_sd: float = 0.1
    smooth: float = 0.13
    smooth_sigma: tuple[float, float] = (0.5, 1.15)
    intensity: float = 0.24
    intensity_range: float = 0.1
    contrast: float = 0.2
    contrast_gamma: tuple[float, float] = (0.7, 1.5)
    bias: float = 0.2
    bias_range: float = 0.2
    padding: str = "border"
    joint: bool = False
    drop_modality: float = 0.25

    @classmethod
    def paper(cls) -> AugmentationSettings:
        """The paper's augmentation, without modality dropout."""
        return cls(
            flip=(0.1, 0.1, 0.1),
            elastic=0.24,
            affine=0.0,
            translate_voxels=20.0,
            rotate_radians=(math.pi, math.pi / 36, math.pi / 36),
            scale=0.15,
            noise_sd=0.01,
            contrast=0.0,
            bias=0.0,
            padding="reflection",
            joint=True,
            drop_modality=0.0,
        )


class DropModalityd(mt.MapTransform, mt.RandomizableTransform):
    """Blank T1 or T2 (channel 0 or 1 of a (2, z, y, x) image) with probability ``p`` each, never both.

    An image that is already blank (a subject without that contrast) counts as the dropped one.
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], p: float) -> None:
        mt.MapTransform.__init__(self, keys)
        mt.RandomizableTransform.__init__(self)
        if not 0 <= p <= 0.5:
            raise ValueError(f"p must lie in 0-0.5 since both modalities share one draw, got {p}")
        self.p = p

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        draw = self.R.random()
        for key in self.keys:
            image = torch.as_tensor(out[key])
            blank = [not bool(c.any()) for c in image]
            if draw < 2 * self.p and not any(blank):
                image = image.clone()
                image[0 if draw < self.p else 1] = 0.0
            out[key] = image
        return out


class PerModalityd(mt.MapTransform, mt.Randomizable):
    """Apply one random transform to T1 and T2, with separate draws or (``joint``) one; a blank channel stays blank."""

    def __init__(
        self, keys: Hashable | Sequence[Hashable], transform: mt.RandomizableTransform, joint: bool = False
    ) -> None:
        super().__init__(keys)
        self.transform, self.joint = transform, joint

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PerModalityd:
        super().set_random_state(seed, state)
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            image = torch.as_tensor(out[key])
            if self.joint:
                present = image.flatten(1).any(1)[:, None, None, None]
                out[key] = torch.where(present, torch.as_tensor(self.transform(image.clone())), image)
                continue
            channels = [torch.as_tensor(self.transform(c[None]))[0] if bool(c.any()) else c for c in image]
            out[key] = torch.stack(channels)
        return out


def build_augmentation(settings: AugmentationSettings, patch: Sequence[int]) -> mt.Compose:
    """Transform of {"image": (2, z, y, x) float32, "label": (1, z, y, x) uint8} to a random patch of that kind.

    The same ``set_random_state(seed)`` on the result gives the same patch.
    """
    s = settings
    keys, modes = ("image", "label"), ("bilinear", "nearest")
    spatial = {
        "rotate_range": tuple(s.rotate_radians),
        "translate_range": (s.translate_voxels,) * 3,
        "scale_range": (s.scale,) * 3,
        "padding_mode": s.padding,
        "mode": modes,
    }
    steps: list[Any] = [
        mt.SpatialPadd(keys, patch, mode="edge"),
        mt.RandSpatialCropd(keys, patch, random_size=False),
        *(mt.RandFlipd(keys, prob=p, spatial_axis=axis) for axis, p in enumerate(s.flip) if p > 0),
    ]
    if s.elastic > 0:
        steps.append(mt.Rand3DElasticd(keys, s.elastic_sigma, s.elastic_magnitude, prob=s.elastic, **spatial))
    if s.affine > 0:
        steps.append(mt.RandAffined(keys, prob=s.affine, **spatial))
    intensity: list[tuple[float, Any]] = [
        (s.bias, mt.RandBiasField(degree=3, coeff_range=(0.0, s.bias_range), prob=s.bias)),
        (s.contrast, mt.RandAdjustContrast(prob=s.contrast, gamma=s.contrast_gamma)),
        (s.noise, mt.RandGaussianNoise(prob=s.noise, std=s.noise_sd)),
        (s.smooth, mt.RandGaussianSmooth(*(tuple(s.smooth_sigma),) * 3, prob=s.smooth)),
        (s.intensity, mt.RandScaleIntensity(factors=s.intensity_range, prob=s.intensity)),
        (s.intensity, mt.RandShiftIntensity(offsets=s.intensity_range, prob=s.intensity)),
    ]
    steps += [PerModalityd("image", transform, s.joint) for p, transform in intensity if p > 0]
    steps += [DropModalityd("image", s.drop_modality), mt.EnsureTyped(keys, track_meta=False)]
    return mt.Compose(steps)
