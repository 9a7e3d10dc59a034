"""What scanners and heads do to a scan, for training: size and pose, slices, coils, motion, noise, masking.

Plain torch on the device of the arrays; every draw comes from one generator. The evaluation matrix alters scans by code
of its own (``experiments/robustness/alterations.py``), so that a model is not evaluated by what drew its
training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from NeonatalSegLib.augmentation.synthesis import blur, smooth_field, uniform


@dataclass(frozen=True)
class Geometry:
    """Where a patch's voxels lie in the subject's volume.

    Attributes:
        points: (z, y, x, 3) float32, voxel coordinates x, y, z of the volume.
        scale: size of the head in the patch against that in the volume.
    """

    points: torch.Tensor
    scale: float

    @classmethod
    def draw(
        cls, volume: Sequence[int], patch: Sequence[int], scale: tuple[float, float], generator: torch.Generator,
        device: torch.device, *, moved: float = 1.0, rotate_degrees: float = 15.0, bend_voxels: float = 3.0,
        flip: float = 0.5, whole: tuple[tuple[Sequence[int], Sequence[int]], int] | None = None, room: int = 0,
    ) -> Geometry:  # fmt: skip
        """A place anywhere in the volume, perhaps mirrored left to right, and with the chance ``moved`` also turned,
        scaled isotropically and bent; else its voxels are those of the volume, not interpolated.

        ``whole``: first and last voxel (z, y, x) of a box, and a step: the patch shows that box, a few voxels more or
        less, and its size is a multiple of the step instead of ``patch``. ``room``: voxels at every side of the volume
        that a patch reaches only where it is larger than what lies between them.
        """
        still = moved < 1 and uniform(generator, 0, 1) >= moved
        size = uniform(generator, *scale) if uniform(generator, 0, 1) < 0.6 else uniform(generator, 0.92, 1.08)
        turn = _rotation([math.radians(uniform(generator, -rotate_degrees, rotate_degrees)) for _ in range(3)])
        if still:
            size, turn = 1.0, torch.eye(3)
        if whole:
            (first, last), step = whole
            patch = [
                max(step, round(((b - a + 1) * size + uniform(generator, 0, step)) / step) * step)
                for a, b in zip(first, last, strict=True)
            ]
        matrix = turn / size
        if uniform(generator, 0, 1) < flip:
            matrix[:, 0] *= -1
        centre = []
        for axis, (length, edge) in enumerate(zip(reversed(tuple(volume)), reversed(tuple(patch)), strict=True)):
            half = min(edge / size, length - 2 * room) / 2  # what hangs over the volume's edge shows nothing
            at = uniform(generator, room + half - 0.5, length - room - half - 0.5)
            if whole:
                at = (whole[0][0][2 - axis] + whole[0][1][2 - axis]) / 2 + uniform(generator, -3, 3)
            centre.append(round(at - (edge - 1) / 2) + (edge - 1) / 2 if still else at)
        axes = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in patch]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        points = torch.stack([x, y, z], -1) @ matrix.T.to(device) + torch.tensor(centre, device=device)
        if not still and uniform(generator, 0, 1) < 0.5:
            bend = torch.stack([smooth_field(tuple(patch), 5, generator, device) for _ in range(3)], -1)
            points = points + uniform(generator, 0.5, bend_voxels) * bend
        return cls(points, size)

    def sample(
        self, volumes: torch.Tensor, mode: str = "bilinear", shift_voxels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(c, z, y, x) of the volume at the patch's voxels, in the volume's own type; its edge goes on outside.

        ``shift_voxels`` (x, y, z) moves the image: T1 and T2 are never quite on each other.
        """
        points = self.points if shift_voxels is None else self.points + shift_voxels.to(self.points)
        size = torch.tensor(volumes.shape[:0:-1], dtype=torch.float32, device=points.device)
        grid = (2 * points + 1) / size - 1
        out = functional.grid_sample(
            volumes[None].float(), grid[None], mode=mode, padding_mode="border", align_corners=False
        )[0]
        return out if volumes.is_floating_point() else out.round().to(volumes.dtype)


def _rotation(radians: Sequence[float]) -> torch.Tensor:
    """Rotation matrix (3, 3) about x, y and z."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(radians):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def bias_field(image: torch.Tensor, generator: torch.Generator, strength: float = 0.5) -> torch.Tensor:
    """A positive image (z, y, x) times exp of a smooth field of up to ``strength`` (standard deviation)."""
    field = smooth_field(tuple(image.shape), 3 + int(uniform(generator, 0, 3)), generator, image.device)
    return image * (uniform(generator, 0.05, strength) * field).exp()


def coarse_slices(
    image: torch.Tensor, spacing_mm: float, generator: torch.Generator, thickest_mm: float = 4.0
) -> torch.Tensor:
    """An image (z, y, x) as from thick slices along one axis, or from larger voxels along all, interpolated back."""
    axis = int(uniform(generator, 0, 3.999))  # 3: all axes
    mm = uniform(generator, 1.0, thickest_mm if axis < 3 else 1.6)
    shape = list(image.shape)
    small = [max(4, round(n * spacing_mm / mm)) if axis in (a, 3) else n for a, n in enumerate(shape)]
    averaged = functional.interpolate(image[None, None], size=small, mode="area")
    return functional.interpolate(averaged, size=shape, mode="trilinear", align_corners=False)[0, 0]


def ghosts(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An image (z, y, x) of a head that moved by up to 3 voxels along the phase-encoding axis, once or several times.

    A shift along the axis is a phase in its Fourier lines; lines acquired after a movement get the phase of the new
    place. Rotations are left out: they would need a Fourier transform of every axis.
    """
    axis = int(uniform(generator, 0, 2.999))
    length = image.shape[axis]
    order = torch.fft.fftfreq(length, device=image.device)
    shifts = torch.zeros(length)
    for _ in range(1 + int(uniform(generator, 0, 2.999))):
        after = int(uniform(generator, 0.1, 0.9) * length)
        shifts[after:] += uniform(generator, -3.0, 3.0)
    # Lines are acquired from one end of k-space to the other; those of the FFT begin with its centre.
    shifts = torch.fft.ifftshift(shifts).to(image.device)
    shifts = shifts - shifts[0]  # the centre says where the head is, and the labels lie there
    phase = torch.polar(torch.ones_like(order), -2 * math.pi * order * shifts)
    shape = [1, 1, 1]
    shape[axis] = length
    return torch.fft.ifft(torch.fft.fft(image, dim=axis) * phase.reshape(shape), dim=axis).abs()


def noise(image: torch.Tensor, generator: torch.Generator, strongest: float = 0.1) -> torch.Tensor:
    """Rician noise on a positive image (z, y, x) whose brightest tissue is about 1."""
    sd = uniform(generator, 0.01, strongest)
    real, other = (torch.randn(image.shape, generator=generator).to(image.device) * sd for _ in range(2))
    if uniform(generator, 0, 1) < 0.5:  # scanners and resampling smooth it
        sigma = uniform(generator, 0.4, 0.9)
        real, other = blur(torch.stack([real, other]), sigma) * 2.0
    return ((image + real) ** 2 + other**2).sqrt()


def gamma(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A positive image (z, y, x) of about 0-1 with another contrast curve."""
    return image.clamp(min=0) ** math.exp(uniform(generator, -0.7, 0.7))
