"""Slices of a scan on real segmentation nodes: only the slice can be edited, and exactly the slice is read back.

Edits go through Slicer's own editing logic (``vtkSlicerSegmentEditorLogic``), the one behind every editor effect.
"""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from stand_in_editor import Brush

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.annotate.annotation_view import MASK_ID, PAINTED, AnnotationView
from NeonatalSegLib.mrml.scene import segments
from NeonatalSegLib.mrml.scene.volumes import RAS_TO_LPS, matrix_to_array, volume_from_image
from NeonatalSegLib.scans.grid import AXES, Grid, plane, voxel_axis

SIZE = (14, 18, 11)  # x, y, z: all different, so that an exchanged axis is seen
OBLIQUE = sitk.VersorTransform((0.3, 0.5, 0.1), 0.35).GetMatrix()
DIRECTIONS = {
    "LPS": np.diag([1.0, 1.0, 1.0]),
    "LAS": np.diag([1.0, -1.0, 1.0]),  # left-handed
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),  # acquired in sagittal slices
    "oblique": np.array(OBLIQUE).reshape(3, 3),
    "oblique left-handed": np.array(OBLIQUE).reshape(3, 3) @ np.diag([1.0, 1.0, -1.0]),
}


def scan_image(direction: np.ndarray) -> sitk.Image:
    """A scan with blocks of grey on a grid whose voxels are of three lengths."""
    array = np.random.default_rng(1).normal(100, 10, SIZE[::-1]).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.5, 2.0))
    image.SetOrigin((3.0, -7.0, 11.0))
    image.SetDirection(direction.ravel().tolist())
    return image


def label_array() -> np.ndarray:
    """All ten classes, in no order that would hide a flip."""
    return np.random.default_rng(2).integers(0, 10, SIZE[::-1]).astype(np.uint8)


def add_slice_view(scene: Any, axis: str) -> Any:
    """A slice view's node as Slicer's layouts make it."""
    layout = {"axial": "Red", "sagittal": "Yellow", "coronal": "Green"}[axis]
    node = scene.CreateNodeByClass("vtkMRMLSliceNode")
    node.SetLayoutName(layout)
    node.SetName(layout)
    node.SetSingletonTag(layout)
    node.SetOrientation(axis.capitalize())
    return scene.AddNode(node)


class ViewCase(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()

    def make(self, direction: str, axis: str = "axial", index: int = 5) -> AnnotationView:
        """A scan with one of its slices shown, and a brush to paint in it."""
        image = scan_image(DIRECTIONS[direction])
        self.grid = Grid.of(image)
        self.slice = plane(self.grid, axis, index)
        self.labels = label_array()[self.slice]
        self.volume = volume_from_image(image, "sub-01_T2w", self.scene)
        self.view = AnnotationView(self.volume, self.grid, "sub-01")
        self.view.show(axis, index, self.labels)
        self.brush = Brush(self.view.node, self.volume)
        self.view.keep(self.brush.node)
        self.everywhere = np.ones(self.grid.shape, bool)
        return self.view

    def everything(self) -> np.ndarray:
        """All that the node's tissues hold, on the whole scan (z, y, x in the scan's order)."""
        found = np.zeros(self.grid.shape, np.uint8)
        geometry, oriented = segments._reference_geometry(self.view.node), slicer.vtkOrientedImageData()
        for tissue in PAINTED:
            found[segments._segment_mask(self.view.node, tissue.key, geometry, oriented) > 0] = tissue.index
        return found

    def only_the_slice_is(self, labels: np.ndarray) -> None:
        expected = np.zeros(self.grid.shape, np.uint8)
        expected[self.slice] = labels
        np.testing.assert_array_equal(self.everything(), expected)
        np.testing.assert_array_equal(self.view.read(), labels)


class PlaneTest(ViewCase):
    def test_every_slice_of_every_orientation_lies_in_its_place_and_is_read_back(self) -> None:
        for direction in DIRECTIONS:
            for axis in AXES:
                for index in (0, 4, 10):
                    with self.subTest(direction=direction, axis=axis, index=index):
                        self.make(direction, axis, index)
                        self.only_the_slice_is(self.labels)
                        self.scene.RemoveNode(self.view.node)

    def test_the_next_slice_takes_the_place_of_the_last(self) -> None:
        view = self.make("LAS", "coronal", 6)
        self.slice = plane(self.grid, "sagittal", 2)
        wanted = label_array()[self.slice]
        view.show("sagittal", 2, wanted)
        self.only_the_slice_is(wanted)


class EditTest(ViewCase):
    def test_painting_and_erasing_stay_in_the_slice(self) -> None:
        """A brush through the whole scan, for each axis and orientation: the slice takes it, nothing else does."""
        for direction in ("LPS", "LAS", "oblique", "oblique left-handed"):
            for axis in AXES:
                with self.subTest(direction=direction, axis=axis):
                    view = self.make(direction, axis)
                    view.allow()
                    self.brush.paint("wm", self.everywhere)
                    self.only_the_slice_is(np.full_like(self.labels, 3))
                    self.brush.erase("wm", self.everywhere)
                    self.only_the_slice_is(np.zeros_like(self.labels))
                    self.brush.paint("csf", self.everywhere)
                    self.only_the_slice_is(np.full_like(self.labels, 1))
                    self.scene.RemoveNode(view.node)

    def test_one_stroke_over_the_other(self) -> None:
        """The mask is never eaten: the second tissue takes the place of the first, everywhere in the slice."""
        view = self.make("LAS")
        view.allow()
        for key, value in (("wm", 3), ("csf", 1), ("intracranial_bg", 4), ("hippocampus", 9)):
            self.brush.paint(key, self.everywhere)
            self.only_the_slice_is(np.full_like(self.labels, value))

    def test_within_a_tissue(self) -> None:
        view = self.make("oblique")
        view.allow(within="cortical_gm")
        self.brush.paint("csf", self.everywhere)
        self.only_the_slice_is(np.where(self.labels == 2, 1, self.labels))

    def test_erasing_does_not_widen_what_may_be_edited(self) -> None:
        """Slicer adds what is erased to the mask segment; here it is as it was before the next stroke."""
        view = self.make("LPS")
        view.allow(within="cortical_gm")
        self.brush.erase("wm", self.everywhere)
        view.keep(self.brush.node)
        self.brush.paint("csf", self.everywhere)
        without_wm = np.where(self.labels == 3, 0, self.labels)
        self.only_the_slice_is(np.where(self.labels == 2, 1, without_wm))

    def test_nothing_can_be_painted_before_a_slice_is_begun_or_after_it(self) -> None:
        view = self.make("LPS")
        self.brush.paint("csf", self.everywhere)
        self.only_the_slice_is(self.labels)
        view.allow()
        view.forbid()
        self.brush.paint("csf", self.everywhere)
        self.only_the_slice_is(self.labels)

    def test_what_limits_the_edits_is_put_back(self) -> None:
        """A user removes the mask segment, shows it, hides a tissue, and chooses other masking: all is as before."""
        view = self.make("LPS")
        view.allow()
        node, display = self.brush.node, view.node.GetDisplayNode()
        view.node.GetSegmentation().RemoveSegment(MASK_ID)
        display.SetSegmentVisibility("csf", False)
        node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
        node.SetOverwriteMode(node.OverwriteNone)
        view.keep(node)
        self.brush.paint("wm", self.everywhere)
        self.only_the_slice_is(np.full_like(self.labels, 3))
        display.SetSegmentVisibility(MASK_ID, True)
        view.keep(node)
        self.assertFalse(display.GetSegmentVisibility(MASK_ID))

    def test_a_foreign_segment_in_the_slice_is_refused_and_gone_with_the_next_slice(self) -> None:
        view = self.make("LPS")
        view.allow()
        other = view.node.GetSegmentation().AddEmptySegment("Segment_1", "island 2")
        np.testing.assert_array_equal(view.read(), self.labels)  # an empty one does no harm
        self.brush.paint(other, self.everywhere)
        with self.assertRaisesRegex(NeonatalSegError, "island 2"):
            view.read()
        view.show("axial", 5, self.labels)
        self.only_the_slice_is(self.labels)

    def test_undo_brings_the_slice_back(self) -> None:
        view = self.make("oblique")
        view.allow()
        self.brush.logic.SaveStateForUndo()
        self.brush.paint("wm", self.everywhere)
        self.brush.logic.Undo()
        self.only_the_slice_is(self.labels)


class SceneTest(ViewCase):
    def test_the_slice_view_shows_the_slice(self) -> None:
        """Every voxel centre of the slice lies in the plane of its view, for each axis and orientation."""
        views = {axis: add_slice_view(self.scene, axis) for axis in AXES}
        for direction in DIRECTIONS:
            for axis in AXES:
                with self.subTest(direction=direction, axis=axis):
                    turned = self.make(direction, axis, 4).turn_view()
                    self.assertIs(turned, views[axis])
                    self.assertLess(self.distances(turned, axis, 4).max(), 1e-3)
                    self.scene.RemoveNode(self.view.node)

    def distances(self, node: Any, axis: str, index: int) -> np.ndarray:
        """Of the corners of a slice from the plane that a slice view shows, in mm."""
        to_slice = np.linalg.inv(matrix_to_array(node.GetSliceToRAS())) @ RAS_TO_LPS @ self.grid.matrix()
        corners = np.array([[a, b, c] for a in (0, SIZE[0] - 1) for b in (0, SIZE[1] - 1) for c in (0, SIZE[2] - 1)])
        corners[:, voxel_axis(self.grid, axis)] = index
        return np.abs((np.c_[corners, np.ones(8)] @ to_slice.T)[:, 2])

    @unittest.skipIf(slicer_scene.in_slicer(), "a Slicer with a main window has slice views")
    def test_without_slice_views(self) -> None:
        self.assertIsNone(self.make("LPS").turn_view())

    def test_a_second_view_of_the_scan_takes_the_node_over(self) -> None:
        first = self.make("LPS")
        second = AnnotationView(self.volume, self.grid, "sub-01")
        self.assertIs(second.node, first.node)
        self.assertEqual(list(second.node.GetSegmentation().GetSegmentIDs()), [])

    def test_the_mask_is_no_tissue(self) -> None:
        """Reading and exporting a segmentation as tissues leaves the mask out; it can be taken away."""
        view = self.make("LPS")
        view.allow()
        read = sitk.GetArrayFromImage(segments.label_map_from_segmentation(view.node))
        expected = np.zeros(self.grid.shape, np.uint8)
        expected[self.slice] = self.labels
        np.testing.assert_array_equal(read, expected)
        view.remove_mask()
        self.assertIsNone(view.node.GetSegmentation().GetSegment(MASK_ID))

    def test_how_it_looks(self) -> None:
        view = self.make("LPS")
        display = view.node.GetDisplayNode()
        view.look(fill=False, outline=True, opacity=0.3)
        self.assertEqual((display.GetVisibility2DFill(), display.GetVisibility2DOutline()), (0, 1))
        self.assertAlmostEqual(display.GetOpacity2DFill(), 0.3)

    def test_background_of_the_views(self) -> None:
        composite = self.scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
        view = self.make("LPS")
        view.show_volumes()
        self.assertEqual(composite.GetBackgroundVolumeID(), self.volume.GetID())


if __name__ == "__main__":
    unittest.main()
