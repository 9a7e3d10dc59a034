"""A second look at the brain alone, where a scan shows much else: skull, scalp, neck.

The shipped models learned from scans of which little besides the brain was left. A head around it changes the z-score
and the instance norms of every window, and looks like nothing in the training. The first pass finds the brain well
enough to mask the rest; the second pass then sees what the models know.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from NeonatalSegLib.preprocessing import MARGIN_VOXELS, Prepared, zscore
from NeonatalSegLib.tissues import PHYSIOLOGICAL

# Volume of the head against that of the brain without CSF, which a first pass may see all over a scalp: 1.3 to 1.8 in
# the ALBERTs and the age templates, 2.5 and more with a skull on.
MUCH = 2.1
RIM_MM = 6.5  # left around the brain: 99 % of the ALBERTs' CSF lies within 4.3 to 6.2 mm of it


def focused(prepared: Prepared, labels: np.ndarray) -> Prepared | None:
    """The scan with everything but the brain and a rim around it masked, cropped and z-scored anew.

    Args:
        labels: (z, y, x) uint8 of a first segmentation on ``prepared.grid``.

    Returns:
        None where the scan shows little besides the brain, or no brain was found.
    """
    from scipy import ndimage

    tissue = np.isin(labels, [t.index for t in PHYSIOLOGICAL if t.brain])
    parts, _ = ndimage.label(ndimage.binary_opening(tissue))  # bridges to the scalp are thin
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.max() or np.count_nonzero(prepared.inside) <= MUCH * sizes.max():
        return None
    brain = ndimage.binary_fill_holes(parts == sizes.argmax())
    spacing_mm = prepared.grid.spacing_mm[::-1]
    kept = prepared.inside & (ndimage.distance_transform_edt(~brain, sampling=spacing_mm) <= RIM_MM)
    occupied = np.argwhere(kept)
    start = np.maximum(occupied.min(0) - MARGIN_VOXELS, 0)
    stop = np.minimum(occupied.max(0) + 1 + MARGIN_VOXELS, labels.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    array = np.zeros((len(prepared.array), *(stop - start).tolist()), np.float32)
    for channel, image in enumerate(prepared.array):
        if prepared.present[channel]:
            array[channel] = zscore(np.where(kept, image, image.min())[box], kept[box])
    z, y, x = (int(n) for n in start)
    grid = prepared.grid.crop((x, y, z), tuple(int(n) for n in (stop - start)[::-1]))  # type: ignore[arg-type]
    return replace(prepared, array=array, grid=grid, inside=kept[box])
