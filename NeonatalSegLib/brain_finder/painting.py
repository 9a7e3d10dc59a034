"""Training images of the brain finder, painted from the pool's maps of parts: random contrast, pose, masks, scanners.

Each drawing gives every part of head and brain a brightness of its own, keeps the real texture or not, turns and
scales the head, cuts the field of view or takes the head away as an extraction would, and passes it through a scanner.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from NeonatalSegLib.augmentation.acquisition import bias_field, coarse_slices, gamma, ghosts, noise
from NeonatalSegLib.augmentation.synthesis import smooth_field, uniform
from NeonatalSegLib.brain_finder.grid import FAR_MM, SPACING_MM
from NeonatalSegLib.brain_finder.heads import BRAIN_OF_HEAD, CLUSTERS, GRID_MM, OUTSIDE, PARTS

EDGES = (64, 64, 80, 96)  # voxels of a patch along each axis, one of these
NOTHING_SHOWN = 100.0  # distance given where a sample shows nothing


def normalised(image: torch.Tensor) -> torch.Tensor:
    """Brightness (z, y, x) from the darkest voxel to the 99.5 centile of what is brighter, scaled to 0-1, up to 1.5."""
    image = image - image.min()
    bright = image[image > 0.02 * image.max()]
    if bright.numel() == 0:
        return torch.zeros_like(image)
    rank = max(1, round(0.995 * bright.numel()))
    top = torch.kthvalue(bright.flatten(), rank).values
    return (image / top.clamp(min=1e-6)).clamp(max=1.5)


def patch_shape(generator: torch.Generator) -> tuple[int, ...]:
    """Voxels (z, y, x) of a patch, drawn."""
    return tuple(EDGES[int(uniform(generator, 0, len(EDGES) - 0.001))] for _ in range(3))


def painted(
    parts: torch.Tensor, guides: torch.Tensor, distance_mm: torch.Tensor, true_scale: float,
    shape: tuple[int, ...], generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """One training patch of a head of the pool.

    Args:
        parts: (z, y, x) uint8.
        guides: (2, z, y, x) float32 in 0-1.
        distance_mm: (z, y, x) float32.
        shape: of the patch (:func:`patch_shape`).

    Returns:
        Image (z, y, x) float32, normalised, and the distance to the brain's surface in mm, clipped at ``FAR_MM``.
    """
    image = _contrast(parts, guides, generator)
    points, scale = _pose(parts.shape, shape, true_scale, generator)
    image = functional.grid_sample(image[None, None], points, padding_mode="zeros", align_corners=False)[0, 0]
    distance = functional.grid_sample(
        distance_mm[None, None], points, padding_mode="border", align_corners=False
    )[0, 0] * scale  # fmt: skip
    if uniform(generator, 0, 1) < 0.4:
        image, distance = _extracted(image, distance, generator)
    if uniform(generator, 0, 1) < 0.5:
        image, distance = _cut(image, distance, generator)
    image = _scanned(image, generator)
    return normalised(image), distance.clamp(-FAR_MM, FAR_MM)


def _contrast(parts: torch.Tensor, guides: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness (z, y, x) float32 of the parts: as in the guide, shifted, or drawn."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    shown = parts.reshape(-1).nonzero()[:, 0]  # the air, half of the volume, stays 0
    flat = parts.reshape(-1)[shown].int()
    guide = guides[int(uniform(generator, 0, 1.999))].reshape(-1)[shown]
    count = torch.bincount(flat, minlength=PARTS).clamp(min=1)
    usual = torch.bincount(flat, guide, minlength=PARTS) / count
    tissue = draw(OUTSIDE // CLUSTERS, 1) + 0.3 * draw(OUTSIDE // CLUSTERS, 1) * (
        draw(OUTSIDE // CLUSTERS, CLUSTERS) - 0.5
    )
    drawn = torch.cat([tissue.reshape(-1), draw(PARTS - OUTSIDE)])
    own = slice(BRAIN_OF_HEAD, OUTSIDE)
    drawn[own] = draw(1) + (draw(OUTSIDE - BRAIN_OF_HEAD) - 0.5) * draw(1)
    if uniform(generator, 0, 1) < 0.6:  # bone and air spaces are dark in most scans
        drawn[65] *= 0.3
    kind = uniform(generator, 0, 1)
    texture, spread = draw(PARTS) * 1.2, 0.01 + 0.07 * draw(PARTS)
    if kind < 0.35:  # drawn throughout
        means, texture = drawn, texture * (draw(1) < 0.5)
    elif kind < 0.55:  # inside as it is, the head drawn
        means = torch.cat([usual[:OUTSIDE], drawn[OUTSIDE:]])
        texture[:OUTSIDE], spread[:OUTSIDE] = 1.0, 0.01
    elif kind < 0.75:  # shifted
        means = (usual + 0.25 * (drawn - 0.5)).clamp(0, 1.2)
    else:  # as they are, the head as a whole brighter or darker
        gain = 0.3 + 1.4 * draw(1)
        if uniform(generator, 0, 1) < 0.3:  # as in another sequence: what is bright is dark
            usual = torch.cat([usual[:OUTSIDE], (0.9 - usual[OUTSIDE:]).clamp(0.02, 1)])
        means = torch.cat([usual[:OUTSIDE], usual[OUTSIDE:] * gain])
        texture, spread = torch.ones(PARTS), 0.02 * draw(PARTS)
        texture[OUTSIDE:] *= gain
    values = torch.randn(flat.shape, generator=generator).mul_(spread[flat])
    values += texture[flat] * guide
    values += (means - texture * usual)[flat]
    image = torch.zeros(parts.numel())
    image[shown] = values.clamp_(min=0)
    return image.reshape(parts.shape)


def _pose(
    volume: torch.Size, patch: tuple[int, ...], true_scale: float, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """Where a patch's voxels lie in the pool's volume, as grid_sample takes it, and the head's scale."""
    scale = uniform(generator, 0.66, 1.12) if uniform(generator, 0, 1) < 0.75 else uniform(generator, 0.95, 1.1)
    if true_scale > 1.1:
        scale = uniform(generator, 0.8, 1.1 * true_scale)
    widest = 50.0 if uniform(generator, 0, 1) < 0.15 else 20.0
    matrix = torch.eye(3)
    for axis in range(3):
        angle = math.radians(uniform(generator, -widest, widest)) * (1.0 if axis == 0 else 0.7)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    aspect = torch.tensor([uniform(generator, 0.92, 1.08) for _ in range(3)])
    matrix = matrix * (aspect / scale)
    if uniform(generator, 0, 1) < 0.5:
        matrix[:, 0] *= -1
    # The volume's middle is not the brain's: the grid reaches further down than up (heads.LOWER_MM, UPPER_MM).
    middle = torch.tensor([0.0, -1.5, -25.5]) * -1
    off = torch.tensor([uniform(generator, -25, 25), uniform(generator, -25, 25), uniform(generator, -35, 25)])
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * SPACING_MM for n in patch]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    where = (torch.stack([x, y, z], -1) + off) @ matrix.T + middle
    if uniform(generator, 0, 1) < 0.4:
        bend = torch.stack([smooth_field(patch, 5, generator, where.device) for _ in range(3)], -1)
        where = where + uniform(generator, 1.0, 5.0) * bend
    half = torch.tensor(list(reversed(volume)), dtype=torch.float32) * GRID_MM / 2
    return (where / half)[None], scale


def _extracted(
    image: torch.Tensor, distance: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The head taken away: tight, into the brain's own rim, or loosely; the surface is that of what is left."""
    tight = uniform(generator, 0, 1) < 0.5
    level = uniform(generator, -2.5, 1.0) if tight else uniform(generator, 1.0, 9.0)
    uneven = level + uniform(generator, 0.0, 2.0) * smooth_field(tuple(image.shape), 8, generator, image.device)
    return torch.where(distance < uneven, image, 0.0), torch.maximum(distance, distance - uneven)


def _cut(image: torch.Tensor, distance: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A field of view that ends within the patch: one to three planes, mostly along the axes."""
    for _ in range(1 + int(uniform(generator, 0, 2.999))):
        axis, side = int(uniform(generator, 0, 2.999)), uniform(generator, 0, 1) < 0.5
        normal = torch.zeros(3)
        normal[axis] = 1.0 if side else -1.0
        if uniform(generator, 0, 1) < 0.3:
            normal = normal + 0.3 * torch.randn(3, generator=generator)
            normal = normal / normal.norm()
        inside = distance < 0
        if not bool(inside.any()):
            break
        axes = [torch.arange(n, dtype=torch.float32) * SPACING_MM for n in image.shape]
        along = (
            axes[0][:, None, None] * normal[0] + axes[1][None, :, None] * normal[1] + axes[2][None, None] * normal[2]
        )
        reach = along[inside]
        low, high = float(reach.min()), float(reach.max())
        room = uniform(generator, -0.25, 0.0) if uniform(generator, 0, 1) < 0.3 else uniform(generator, 0.0, 0.4)
        beyond = along - (high + room * (high - low))
        image = torch.where(beyond < 0, image, 0.0)
        distance = torch.maximum(distance, beyond)
    return image, distance


def _scanned(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Coil, contrast curve, motion, slices and noise, each by chance."""

    def by_chance(chance: float) -> bool:
        return uniform(generator, 0, 1) < chance

    image = image / image.max().clamp(min=1e-6)
    zero = image == 0
    if by_chance(0.5):
        image = bias_field(image, generator, 0.6)
    if by_chance(0.3):
        image = gamma(image, generator)
    if by_chance(0.1):
        image = ghosts(image, generator)
    if by_chance(0.25):
        image = coarse_slices(image, SPACING_MM, generator, 6.0)
    if by_chance(0.5):
        image = noise(image, generator, 0.12)
        if by_chance(0.4):  # masked, or written with zeros around the head
            image = torch.where(zero, 0.0, image)
    return image
