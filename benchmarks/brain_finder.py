"""The brain finder beside SynthStrip, on newborns that neither has learned from, in a head that ours has not seen.

    pip download --no-deps --no-binary :all: deepsurfer==0.1.1a5 && tar xzf deepsurfer-0.1.1a5.tar.gz
    python benchmarks/brain_finder.py --data DATA --synthstrip .../deepsurfer/resource/models/synthstrip-1.pt

DATA holds ``alberts``, ``templates`` and ``heads``. Printed for each image: DSC of the mask, HD95 in mm, the share of
tissue voxels outside the mask (at the surface, and with the rim that a segmentation keeps), and CPU seconds.
SynthStrip's mask is what lies within 1 mm of its surface, as its authors use it. Its package needs libraries that
today's versions of Python have outgrown, so that its network is written out here; its way of preparing an image is
that of its authors: 1 mm voxels, left-inferior-anterior, 0 to the 99.9 % quantile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from NeonatalSegLib.brain_finder.find import find_brain
from NeonatalSegLib.brain_finder.heads import inside_skull, whole_head
from NeonatalSegLib.brain_finder.pool import heads_of, newborns_of
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import RIM_MM, foreground

TISSUES = (1, 2, 3, 5, 6, 7, 8, 9)
Find = Callable[[sitk.Image], np.ndarray]  # image to distance in mm on its grid


class SynthStrip(nn.Module):
    """Its U-Net, by the names of its weights: 7 levels, two convolutions each, leaky ReLU of 0.2."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = torch.load(weights, map_location="cpu", weights_only=False)["model_state_dict"]
        self.weights = {k.removeprefix("unet."): v for k, v in state.items()}
        self.levels = 1 + max(int(k.split(".")[1]) for k in self.weights if k.startswith("encoder"))

    def _convolve(self, x: torch.Tensor, name: str, last: bool = False) -> torch.Tensor:
        out = nn.functional.conv3d(x, self.weights[f"{name}.conv.weight"], self.weights[f"{name}.conv.bias"], padding=1)
        return out if last else nn.functional.leaky_relu(out, 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in range(self.levels):
            for k in range(2):
                x = self._convolve(x, f"encoder.{level}.{k}")
            if level < self.levels - 1:
                skips.append(x)
                x = nn.functional.max_pool3d(x, 2)
        for level in range(self.levels - 1):
            x = torch.cat([nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1)
            for k in range(2):
                x = self._convolve(x, f"decoder.{level}.{k}")
        return self._convolve(x, f"decoder.{self.levels - 2}.2", last=True)

    @torch.inference_mode()
    def distance(self, image: sitk.Image) -> np.ndarray:
        """Its distance, less the 1 mm of its mask, on the image's grid."""
        turned = sitk.DICOMOrient(sitk.Cast(image, sitk.sitkFloat32), "LIA")
        size = [round(n * s) for n, s in zip(turned.GetSize(), turned.GetSpacing(), strict=True)]
        fine = sitk.Resample(
            turned, size, sitk.Transform(), sitk.sitkLinear, turned.GetOrigin(), (1.0,) * 3, turned.GetDirection(), 0.0
        )
        array = sitk.GetArrayFromImage(fine)
        padded = np.pad(array, [(0, -n % 64) for n in array.shape])
        padded = np.clip((padded - padded.min()) / np.quantile(padded, 0.999), 0, 1)
        found = self(torch.from_numpy(padded.transpose(2, 1, 0).copy())[None, None].float())[0, 0].numpy()
        out = sitk.GetImageFromArray(found.transpose(2, 1, 0)[tuple(slice(n) for n in array.shape)].copy())
        out.CopyInformation(fine)
        back = sitk.Resample(out, image, sitk.Transform(), sitk.sitkLinear, 100.0)
        return sitk.GetArrayFromImage(back) - 1.0


def ours(image: sitk.Image) -> np.ndarray:
    found = find_brain(image, foreground(image))
    return np.full(Grid.of(image).shape, 100.0) if found is None else found.on(Grid.of(image))


def cases(data: Path, newborns: list[str]) -> Iterator[tuple[str, sitk.Image, np.ndarray, np.ndarray]]:
    """Name, image, inside of the skull, tissue: whole and extracted, T1 and T2, of the held-out newborns."""
    (head,) = heads_of(data / "heads", held_out=True)
    for newborn in newborns_of(data / "alberts", data / "templates", held_out=True, spacing_mm=0.86):
        if newborns and newborn.name not in newborns:
            continue
        images, inside = whole_head(newborn, head, seed=int(newborn.name))
        tissue = np.isin(newborn.labels, TISSUES) & inside
        for k, modality in enumerate(("T1", "T2")):
            yield f"{newborn.name} {modality} whole", newborn.grid.image(images[k]), inside, tissue
            extracted = newborn.images[k] * (newborn.labels > 0)
            yield f"{newborn.name} {modality} extracted", newborn.grid.image(extracted), newborn.brain, tissue


def as_they_are(data: Path, newborns: list[str]) -> Iterator[tuple[str, sitk.Image, np.ndarray, np.ndarray]]:
    """The same of all ALBERTs and age templates as their files are, those that trained the finder among them."""
    labels = {p.name.split("_")[0]: p for p in (data / "alberts" / "derivatives").rglob("*_dseg.nii.gz")}
    labels |= {p.name.split("_")[0]: p for p in (data / "templates").rglob("*_dseg.nii.gz")}
    for name, file in sorted(labels.items()):
        if newborns and name.removeprefix("sub-ALBERT") not in newborns:
            continue
        folder = data / "alberts" / name / "anat" if name.startswith("sub-") else file.parent
        for modality in ("T1", "T2"):
            image = sitk.ReadImage(str(folder / f"{name}_{modality}w.nii.gz"), sitk.sitkFloat32)
            there = sitk.Resample(sitk.ReadImage(str(file)), image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
            array = sitk.GetArrayFromImage(there)
            yield f"{name} {modality} as it is", image, inside_skull(array), np.isin(array, TISSUES)


def surface_distance_95(a: np.ndarray, b: np.ndarray, spacing_mm: float) -> float:
    from scipy import ndimage

    edges = [m ^ ndimage.binary_erosion(m) for m in (a, b)]
    if not edges[0].any():
        return float("inf")
    away = [spacing_mm * ndimage.distance_transform_edt(~edge) for edge in edges]
    return max(float(np.percentile(away[1 - k][edges[k]], 95)) for k in (0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--synthstrip", type=Path, help="synthstrip-1.pt of the package deepsurfer")
    parser.add_argument("--newborns", default="", help="such as 07,16; default: all that were held out")
    parser.add_argument("--as-is", action="store_true", help="all ALBERTs and templates as their files are instead")
    options = parser.parse_args()
    finders: dict[str, Find] = {"ours": ours}
    if options.synthstrip:
        finders["SynthStrip"] = SynthStrip(options.synthstrip).distance
    drawn = as_they_are if options.as_is else cases
    print("case\tfinder\tDSC\tHD95 mm\ttissue lost\tlost with the rim\tCPU s")
    for name, image, inside, tissue in drawn(options.data, [n for n in options.newborns.split(",") if n]):
        for finder, find in finders.items():
            started = time.process_time()
            away = find(image)
            seconds = time.process_time() - started
            mask = away < 0
            dsc = 2 * np.count_nonzero(mask & inside) / (np.count_nonzero(mask) + np.count_nonzero(inside))
            far = surface_distance_95(mask, inside, image.GetSpacing()[0])
            lost = [float((away[tissue] >= rim).mean()) for rim in (0.0, RIM_MM)]
            figures = f"{dsc:.4f}\t{far:.1f}\t{lost[0]:.4f}\t{lost[1]:.4f}\t{seconds:.1f}"
            print(f"{name}\t{finder}\t{figures}", flush=True)


if __name__ == "__main__":
    main()
