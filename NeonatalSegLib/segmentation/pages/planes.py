"""The volume that a scan's page scrolls through: two pictures that its script cuts into planes.

All axial slices lie side by side in one JPEG (grey values) and one PNG (labels), so that a page of about a megabyte
shows every slice along every axis.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.segmentation.overlay import FILL, Upright
from NeonatalSegLib.tissues import PHYSIOLOGICAL

LABEL_STEP = 25  # grey values between two labels: browsers that blur what pages read back change them by less
JPEG_QUALITY = 88
BLOCK = 8  # pixels of a block of JPEG: none lies in two slices


def planes_data(seen: Upright) -> dict[str, Any]:
    """For ``planes.js``, as JSON: both pictures as data URIs, how slices lie in them, where they lie in the patient."""
    nz, ny, nx = seen.labels.shape
    tile = (-(-ny // BLOCK) * BLOCK, -(-nx // BLOCK) * BLOCK)
    columns = max(1, round((nz * tile[0] / tile[1]) ** 0.5))
    grey = np.rint(255 * seen.grey).astype(np.uint8)
    z, y, x = seen.centre
    return {
        "size": [nx, ny, nz],
        "tile": [tile[1], tile[0]],
        "columns": columns,
        "spacing_mm": seen.grid.spacing_mm[0],
        "first_mm": list(seen.grid.origin_mm),  # LPS
        "start": [x, y, z],
        "opacity": FILL,
        "label_step": LABEL_STEP,
        "tissues": [{"index": t.index, "name": t.name, "colour": list(t.colour)} for t in PHYSIOLOGICAL],
        "grey": _uri(_side_by_side(grey, columns, tile), "jpeg"),
        "labels": _uri(_side_by_side(LABEL_STEP * seen.labels, columns, tile), "png"),
    }


def picture_uri(picture: Path) -> str:
    """A picture as a JPEG in a data URI, for readers that run no script."""
    from PIL import Image

    with Image.open(picture) as opened:
        return _uri(np.asarray(opened.convert("RGB")), "jpeg")


def _side_by_side(slices: np.ndarray, columns: int, tile: tuple[int, int]) -> np.ndarray:
    """(z, y, x) as one picture, row by row; each slice in the upper left of its tile (height, width)."""
    rows = -(-len(slices) // columns)
    out = np.zeros((rows, tile[0], columns, tile[1]), np.uint8)
    for k, one in enumerate(slices):
        out[k // columns, : one.shape[0], k % columns, : one.shape[1]] = one
    return out.reshape(rows * tile[0], columns * tile[1])


def _uri(picture: np.ndarray, kind: str) -> str:
    """A data URI of a uint8 picture, grey or (.., 3); "jpeg" loses a little, "png" nothing."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, kind, **({"quality": JPEG_QUALITY} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
