"""Images drawn from label maps: random contrast, the anatomy of a younger newborn, a head around the brain.

After SynthSeg (Billot et al., Medical Image Analysis 2023) and FetalSynthSeg (several clusters within a tissue). All of
it is torch on whatever device the label map lies on, and hangs on the generator alone. ``docs/robustness.md`` says why
neither TorchIO nor cornucopia draws these images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from NeonatalSegLib.tissues import CORTICAL_GM, CSF, NUMBER_OF_CLASSES, VENTRICLES

CLUSTERS = 4  # at most, within one tissue


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def smooth_field(shape: tuple[int, ...], points: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """A smooth random field (z, y, x) of about unit variance, from ``points`` ** 3 random numbers."""
    coarse = torch.randn((1, 1, points, points, points), generator=generator).to(device)
    return functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0, 0]


def blur(volumes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of (c, z, y, x) float volumes, sigma in voxels, edges repeated."""
    radius = max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=volumes.device, dtype=volumes.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = volumes[:, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        out = functional.conv3d(functional.pad(out, pad, mode="replicate"), kernel.reshape(shape))
    return out[:, 0]


def simulate_younger(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A label map (z, y, x) uint8 with a smoother and thinner cortex, and larger ventricles and CSF spaces.

    The classes' blurred shares of a voxel are weighted before the largest is taken: blurring evens out the folds, the
    weights move the borders. Size is not changed here (see ``acquisition.Geometry``).
    """
    weights = torch.ones(NUMBER_OF_CLASSES)
    weights[CORTICAL_GM] = uniform(generator, 0.4, 0.9)
    weights[CSF] = uniform(generator, 1.0, 1.6)
    weights[VENTRICLES] = uniform(generator, 1.2, 3.0)
    one_hot = functional.one_hot(labels.long(), NUMBER_OF_CLASSES).movedim(-1, 0).to(torch.float32)
    shares = blur(one_hot, uniform(generator, 0.8, 2.0)) * weights.to(labels.device)[:, None, None, None]
    return shares.argmax(0).to(torch.uint8)


def clusters(labels: torch.Tensor, guide: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Part every tissue into 1 to ``CLUSTERS`` by the brightness of ``guide`` within it.

    Args:
        labels: (z, y, x) uint8, 0-9.
        guide: (z, y, x) float32, an image of the same newborn, or a smooth field.

    Returns:
        (z, y, x) int64, ``label * CLUSTERS + cluster``.
    """
    flat, values = labels.long().reshape(-1), guide.reshape(-1)
    count = torch.bincount(flat, minlength=NUMBER_OF_CLASSES).clamp(min=1)
    mean = torch.bincount(flat, values, minlength=NUMBER_OF_CLASSES) / count
    spread = (torch.bincount(flat, values**2, minlength=NUMBER_OF_CLASSES) / count - mean**2).clamp(min=1e-6).sqrt()
    unit = ((values - mean[flat]) / spread[flat]).to(torch.float32)
    inner = torch.randn((NUMBER_OF_CLASSES, CLUSTERS - 1), generator=generator)
    used = torch.randint(0, CLUSTERS, (NUMBER_OF_CLASSES, 1), generator=generator)
    inner[torch.arange(CLUSTERS - 1)[None] >= used] = float("inf")  # that many borders and no more
    borders = inner.to(labels.device)
    cluster = sum((unit > borders[flat, i]).long() for i in range(CLUSTERS - 1))
    return (flat * CLUSTERS + cluster).reshape(labels.shape)


def random_contrast(parts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An image (z, y, x) float32 in about 0-1: every cluster of :func:`clusters` gets a random brightness and texture.

    Air stays dark. Neighbouring tissues may by chance be equally bright, as they may be in a scan.
    """
    tissue = torch.rand((NUMBER_OF_CLASSES, 1), generator=generator)
    spread = 0.3 * torch.rand((NUMBER_OF_CLASSES, 1), generator=generator)
    means = tissue + spread * (torch.rand((NUMBER_OF_CLASSES, CLUSTERS), generator=generator) - 0.5)
    deviations = 0.01 + 0.09 * torch.rand((NUMBER_OF_CLASSES, CLUSTERS), generator=generator)
    means[0], deviations[0] = 0.0, 0.005
    noise = torch.randn(parts.shape, generator=generator).to(parts.device)
    flat_means, flat_deviations = means.reshape(-1).to(parts.device), deviations.reshape(-1).to(parts.device)
    image = flat_means[parts] + flat_deviations[parts] * noise
    return blur(image[None], uniform(generator, 0.35, 0.8))[0].clamp(min=0)


def changed_contrast(image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A real image (z, y, x), z-scored, with every tissue's brightness and contrast shifted a little: a hybrid."""
    shift = 0.35 * torch.randn(NUMBER_OF_CLASSES, generator=generator)
    gain = (0.25 * torch.randn(NUMBER_OF_CLASSES, generator=generator)).exp()
    shift[0], gain[0] = 0.0, 1.0
    at = labels.long()
    maps = blur(torch.stack([shift.to(image.device)[at], gain.to(image.device)[at]]), 0.7)
    return image * maps[1] + maps[0]


def head_shells(
    distance_mm: torch.Tensor, generator: torch.Generator, contrast: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What lies around the brain in a scan whose skull was left on: a gap, dark bone, bright scalp.

    Args:
        distance_mm: (z, y, x) float32, distance to what is already in the image; 0 within it.
        generator: of the shells' shape.
        contrast: of their brightness; default: the same. T1 and T2 share the shape and not the brightness.

    Returns:
        Brightness (z, y, x) float32 relative to the brain's brightest tissue (1), and a bool mask of the shells.
    """
    contrast = contrast or generator
    layers = shell_layers(distance_mm, generator)
    fluid, dark, fat = (uniform(contrast, *range_) for range_ in ((0.0, 1.0), (0.0, 0.25), (0.3, 1.3)))
    texture = 1 + 0.3 * smooth_field(tuple(distance_mm.shape), 12, contrast, distance_mm.device)
    values = torch.where(layers < 2, fluid, torch.where(layers < 3, dark, fat * texture.clamp(0.3, 1.7)))
    return values.to(torch.float32), layers > 0


def shell_layers(distance_mm: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shells of uneven thickness around a brain: (z, y, x) uint8, 1 gap, 2 bone, 3 scalp, 0 within and beyond.

    ``distance_mm`` as for :func:`head_shells`.
    """
    shape = tuple(distance_mm.shape)
    uneven = distance_mm * (1 + 0.25 * smooth_field(shape, 6, generator, distance_mm.device)).clamp(0.4, 2.0)
    gap, bone, scalp = (uniform(generator, *mm) for mm in ((0.3, 2.5), (1.0, 3.5), (2.0, 6.0)))
    layers = 1 + (uneven >= gap).to(torch.uint8) + (uneven >= gap + bone)
    return torch.where((distance_mm > 0) & (uneven < gap + bone + scalp), layers, 0)


def add_head(
    image: np.ndarray,
    inside: np.ndarray,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    shape_seed: int = 0,
) -> np.ndarray:
    """Put skull and scalp around an extracted brain.

    Args:
        image: (z, y, x) float32, 0 or more, with room around the head (14 mm).
        inside: (z, y, x) bool, what the image already shows.
        spacing_mm: of z, y, x.
        rng: of the shells' brightness.
        shape_seed: of their shape; the same for T1 and T2 of one newborn.

    Returns:
        (z, y, x) float32; unchanged where ``inside``.
    """
    from scipy.ndimage import distance_transform_edt

    distance = torch.from_numpy(distance_transform_edt(~inside, sampling=spacing_mm).astype(np.float32))
    contrast = torch.Generator().manual_seed(int(rng.integers(2**31)))
    values, around = head_shells(distance, torch.Generator().manual_seed(shape_seed), contrast)
    bright = float(np.percentile(image[inside], 98))
    smooth = blur(torch.where(around, values * bright, 0.0)[None], 0.6)[0].numpy()
    return np.where(inside, image, smooth).astype(np.float32)
