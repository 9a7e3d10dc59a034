"""T1 and T2 told apart: on made-up heads here, on the real ALBERTs where they are (NEONATALSEG_DATA)."""

from __future__ import annotations

import os
import sys
import unittest
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from NeonatalSegLib.datasets.phantom import draw_newborn
from NeonatalSegLib.scans.contrast import fluid_skewness, swapped_inputs

ROOT = Path(__file__).resolve().parents[1]
ALBERTS = Path(os.environ.get("NEONATALSEG_DATA", ROOT.parent / "shared" / "data")) / "alberts"


def head(bright_fluid: bool) -> sitk.Image:
    z, y, x = np.indices((40, 48, 44)) - np.array([20, 24, 22]).reshape(3, 1, 1, 1)
    radius = np.sqrt(x**2 + y**2 + z**2)
    array = np.where(radius < 19, 100.0, 0.0)
    array[((radius > 14) & (radius < 16)) | (radius < 4)] = 400.0 if bright_fluid else 40.0
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((2.5, 2.5, 2.5))
    return image


class ContrastTest(unittest.TestCase):
    def test_right_way_and_swapped(self) -> None:
        self.assertFalse(swapped_inputs(head(False), head(True)))
        self.assertTrue(swapped_inputs(head(True), head(False)))

    def test_one_alone(self) -> None:
        self.assertTrue(swapped_inputs(head(True), None))
        self.assertTrue(swapped_inputs(None, head(False)))
        self.assertFalse(swapped_inputs(head(False), None))
        self.assertFalse(swapped_inputs(None, head(True)))

    def test_intensity_scale_has_no_say(self) -> None:
        scaled = head(True) * 37.0 - 1000.0
        self.assertAlmostEqual(fluid_skewness(scaled) or 0.0, fluid_skewness(head(True)) or 1.0, places=3)

    def test_synthetic_newborn(self) -> None:
        phantom = draw_newborn(40.0, seed=1, spacing_mm=1.5)
        self.assertFalse(swapped_inputs(phantom.t1, phantom.t2))
        self.assertTrue(swapped_inputs(phantom.t2, phantom.t1))
        self.assertFalse(swapped_inputs(phantom.t1, None))
        self.assertFalse(swapped_inputs(None, phantom.t2))

    def test_images_that_say_nothing(self) -> None:
        empty = sitk.Image((30, 30, 30), sitk.sitkInt16)
        self.assertIsNone(fluid_skewness(empty))
        self.assertFalse(swapped_inputs(empty, empty))
        self.assertFalse(swapped_inputs(head(True), empty))
        self.assertFalse(swapped_inputs(head(True), head(True)))

    @unittest.skipUnless(ALBERTS.is_dir(), f"no real scans at {ALBERTS}")
    def test_alberts_both_ways(self) -> None:
        scans = sorted(ALBERTS.glob("sub-*/anat/*_T1w.nii.gz"))
        self.assertGreater(len(scans), 0)
        for path in scans:
            t1 = sitk.ReadImage(str(path))
            t2 = sitk.ReadImage(str(path).replace("_T1w", "_T2w"))
            with self.subTest(path.name):
                self.assertFalse(swapped_inputs(t1, t2))
                self.assertTrue(swapped_inputs(t2, t1))
                self.assertFalse(swapped_inputs(None, t2))
                self.assertTrue(swapped_inputs(t2, None))
                self.assertFalse(swapped_inputs(t1, None))


if __name__ == "__main__":
    unittest.main()
