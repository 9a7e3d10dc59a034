"""Further looks at the brain alone, where a scan shows much else: skull, scalp, neck.

The shipped models learned from scans of which little besides the brain was left. A head around it changes the z-score
and the instance norms of every window, and looks like nothing in the training. The first pass finds the brain well
enough to mask the rest; the passes after it see what the models know.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from NeonatalSegLib.scans.preprocessing import MARGIN_VOXELS, Prepared, zscore
from NeonatalSegLib.tissues import CORTICAL_GM, PHYSIOLOGICAL

CORTEX = next(t.index for t in PHYSIOLOGICAL if t.key == "cortical_gm")

# Volume of the head against that of the brain without CSF, which a first pass may see all over a scalp: 1.3 to 1.8 in
# the ALBERTs and the age templates, 2.5 and more with a skull on.
MAX_HEAD_TO_BRAIN_RATIO = 2.1
MAX_HEAD_TO_INNER_BRAIN_RATIO = 3.6  # the same against the brain without cortex: up to 3.2, and 4.6 and more
CORTEX_MM = 5.0  # 99 % of the ALBERTs' cortex lie within 2.7 to 3.4 mm of what it covers; a scalp further away
MIN_BRAIN_ML = 30.0  # a newborn of 28 weeks has about 100: less is not a brain but an error, and nothing to go by
RIM_MM = 6.5  # left around the brain: 99 % of the ALBERTs' CSF lies within 4.3 to 6.2 mm of it


def crop_to_brain(prepared: Prepared, labels: np.ndarray, *, force: bool = False) -> Prepared | None:
    """The scan with everything but the brain and a rim around it masked, cropped and z-scored anew.

    Args:
        labels: (z, y, x) uint8 of a first segmentation on ``prepared.grid``.
        force: also where little besides the brain is left: what a first look at a head has masked is masked better.

    Returns:
        None where the scan shows little besides the brain, or no brain was found.
    """
    from scipy import ndimage

    spacing_mm = prepared.grid.spacing_mm[::-1]
    tissue = np.isin(labels, [t.index for t in PHYSIOLOGICAL if t.brain])
    # A first pass sees cortex in a scalp as well, but white matter and what lies within it only where they are.
    inner, head = tissue & (labels != CORTICAL_GM), np.count_nonzero(prepared.inside)
    if not force and head <= MAX_HEAD_TO_INNER_BRAIN_RATIO * np.count_nonzero(inner):
        return None  # spares an extracted scan what follows
    inner = _largest_part(inner)
    cortex_mm = ndimage.distance_transform_edt(~inner, sampling=spacing_mm)
    brain = _largest_part(tissue & (cortex_mm <= CORTEX_MM))
    volume_ml = np.count_nonzero(brain) * prepared.grid.voxel_volume_mm3 / 1000
    if volume_ml < MIN_BRAIN_ML or (not force and head <= MAX_HEAD_TO_BRAIN_RATIO * np.count_nonzero(brain)):
        return None
    brain = ndimage.binary_fill_holes(brain)
    kept = prepared.inside & (ndimage.distance_transform_edt(~brain, sampling=spacing_mm) <= RIM_MM)
    if not kept.any():
        return None
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


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, thin bridges cut; empty where nothing is left."""
    from scipy import ndimage

    parts, _ = ndimage.label(ndimage.binary_opening(mask))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax() if sizes.any() else np.zeros_like(mask)
