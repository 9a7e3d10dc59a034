"""Annotated slices on the network's grid: each voxel's label, or that nobody has said what it is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from NeonatalSegLib.tissues import UNKNOWN

if TYPE_CHECKING:
    import torch

    from NeonatalSegLib.augmentation.transforms import AugmentationSettings
    from NeonatalSegLib.scans.grid import Grid


def annotated_on(grid: Grid, target: Grid, labels: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """Bring partly annotated labels from a scan's own grid onto the network's.

    A voxel of the network's grid takes the label of the scan voxel in which its centre lies. Where the scan is finer
    than the network, a slice may fall between the centres; then its voxels are given to the nearest centres besides,
    so that no annotated slice is lost.

    Args:
        grid: the network's.
        target: the scan's.
        labels: (z, y, x) uint8 on ``target``; looked at only where annotated.
        annotated: (z, y, x) bool on ``target``.

    Returns:
        (z, y, x) uint8 on ``grid``; ``UNKNOWN`` where nothing was annotated.
    """
    out = np.full(grid.shape, UNKNOWN, np.uint8)
    if min(target.spacing_mm) < max(grid.spacing_mm):
        index = np.argwhere(annotated)  # z, y, x
        place = _through(index[:, ::-1], np.linalg.inv(grid.matrix()) @ target.matrix())
        nearest = np.rint(place).astype(int)
        inside = np.all((nearest >= 0) & (nearest < np.asarray(grid.size)), axis=1)
        closest_last = np.argsort(-np.abs(place - nearest).max(1)[inside], kind="stable")
        to = nearest[inside][closest_last]
        out[to[:, 2], to[:, 1], to[:, 0]] = labels[tuple(index[inside][closest_last].T)]
    matrix = np.linalg.inv(target.matrix()) @ grid.matrix()
    y, x = np.mgrid[: grid.size[1], : grid.size[0]]
    for z in range(grid.size[2]):  # plane by plane: the indices of a whole head would take a gigabyte
        plane = np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], 1)
        nearest = np.rint(_through(plane, matrix)).astype(int)
        inside = np.all((nearest >= 0) & (nearest < np.asarray(target.size)), axis=1)
        where = tuple(nearest[inside][:, ::-1].T)
        known = annotated[where]
        out[z].ravel()[np.flatnonzero(inside)[known]] = labels[where][known]
    return out


def _through(index: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n, 3) indices x, y, z through a 4x4 matrix."""
    return index @ matrix[:3, :3].T + matrix[:3, 3]


Box = tuple[slice, slice, slice]  # z, y, x


def box_of(grid: Grid, target: Grid, where: tuple[slice | int, ...]) -> Box:
    """The box on the network's grid that holds one slice of a scan's grid, so that nothing else need be segmented.

    Args:
        grid: the network's.
        target: the scan's.
        where: the slice, as ``scans.grid.plane`` gives it (z, y, x).
    """
    ends = [
        (w - 0.5, w + 0.5) if isinstance(w, int) else (-0.5, n - 0.5) for w, n in zip(where, target.shape, strict=True)
    ]
    corners = np.array(list(itertools.product(*ends[::-1])))  # x, y, z
    place = _through(corners, np.linalg.inv(grid.matrix()) @ target.matrix())
    first = np.clip(np.floor(place.min(0)), 0, grid.size).astype(int)
    last = np.clip(np.ceil(place.max(0)) + 1, 0, grid.size).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first[::-1], last[::-1], strict=True))
    return z, y, x


@dataclass(frozen=True)
class SparseCase:
    """A scan on the network's grid of which some slices are annotated.

    Attributes:
        image: (2, z, y, x) floats, z-scored, T1 and T2, an absent one all 0.
        labels: (z, y, x) uint8 to learn from; ``UNKNOWN`` where nobody has said, and where slices are held out.
        held_out: (z, y, x) uint8 to evaluate by; ``UNKNOWN`` elsewhere.
        warnings: what is doubtful about the scan, in words.
        boxes: that hold the held-out slices, one each; empty where it is not known which slices they are.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    warnings: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


class SparsePatches:
    """Patches around annotated voxels, cut and changed at random; number ``i`` is the same whenever it is drawn.

    Args:
        cases: with at least one known voxel each; drawn alike, however many slices each has.
        rehearsal: fully labelled cases of the model's own domain, against forgetting (may be empty).
        share: of the patches that come from ``rehearsal``, 0-1.
        patch: voxels (z, y, x).
        augmentation: random changes.
    """

    def __init__(
        self,
        cases: Sequence[SparseCase],
        rehearsal: Sequence[SparseCase],
        share: float,
        patch: tuple[int, int, int],
        augmentation: AugmentationSettings,
        seed: int,
    ) -> None:
        from monai.data import set_track_meta

        from NeonatalSegLib.augmentation.transforms import build_augmentation

        set_track_meta(False)
        # A scan all of whose slices are held out judges and teaches nothing.
        self.pools = [
            [_Voxels(case) for case in given if (case.labels != UNKNOWN).any()] for given in (cases, rehearsal)
        ]
        self.share = share if rehearsal else 0.0
        self.patch, self.seed = patch, seed
        self.transform = build_augmentation(augmentation, patch)

    def from_rehearsal(self, number: int) -> bool:
        """True where patch ``number`` is one of the model's own domain."""
        return bool(np.random.default_rng([self.seed, number]).random() < self.share)

    def draw(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (2, z, y, x) float32 and labels (z, y, x) uint8 with ``UNKNOWN``."""
        import torch

        random = np.random.default_rng([self.seed, number])
        pool = self.pools[int(random.random() < self.share)]
        voxels = pool[int(random.integers(len(pool)))]
        image, labels = voxels.cut(random, self.patch)
        self.transform.set_random_state(seed=int(random.integers(2**31)))
        out = self.transform({"image": torch.from_numpy(image), "label": torch.from_numpy(labels)[None]})
        return out["image"].float(), out["label"][0].to(torch.uint8)


class _Voxels:
    """Where the known voxels of a case are, by class."""

    def __init__(self, case: SparseCase) -> None:
        self.case = case
        values = case.labels.ravel()
        self.of_class = [np.flatnonzero(values == c) for c in np.unique(values) if c != UNKNOWN]

    def cut(self, random: np.random.Generator, patch: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A patch around a known voxel of a random class, so that small tissues are seen as often as large ones."""
        chosen = self.of_class[int(random.integers(len(self.of_class)))]
        centre = np.unravel_index(int(chosen[random.integers(chosen.size)]), self.case.labels.shape)
        start = [
            int(c) - p // 2 + int(random.integers(-p // 8, p // 8 + 1)) for c, p in zip(centre, patch, strict=True)
        ]
        image = np.stack([_cut(channel, start, patch, None) for channel in self.case.image]).astype(np.float32)
        return image, _cut(self.case.labels, start, patch, UNKNOWN)


def central_part(case: SparseCase, patch: tuple[int, int, int]) -> SparseCase:
    """The box of ``patch`` voxels around the middle of what is labelled and not class 0; beyond the border unknown."""
    places = np.argwhere((case.labels != UNKNOWN) & (case.labels != 0))
    centre = places.mean(0) if len(places) else np.asarray(case.labels.shape) / 2
    start = [round(float(c)) - p // 2 for c, p in zip(centre, patch, strict=True)]
    image = np.stack([_cut(channel, start, patch, None) for channel in case.image])
    return SparseCase(
        case.name, image, _cut(case.labels, start, patch, UNKNOWN), _cut(case.held_out, start, patch, UNKNOWN)
    )


def _cut(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: int | None) -> np.ndarray:
    """A box of ``array``; outside it is ``fill``, or the nearest voxel of the array where that is None."""
    index = [np.arange(s, s + n) for s, n in zip(start, size, strict=True)]
    near = [np.clip(i, 0, length - 1) for i, length in zip(index, array.shape, strict=True)]
    out = np.array(array[np.ix_(*near)])
    if fill is not None:
        for axis, (i, n) in enumerate(zip(index, near, strict=True)):
            outside = (slice(None),) * axis + (i != n,)
            out[outside] = fill
    return out
