"""The panel's export is the command's file: the same voxels in the same order, the same labels, the same table."""

from __future__ import annotations

import itertools
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from test_mrml_annotation import DIRECTIONS, label_array, scan_image

from NeonatalSegLib.mrml.annotate.study_volumes import remember_file, right_handed
from NeonatalSegLib.mrml.scene import export, segments
from NeonatalSegLib.mrml.scene.volumes import image_from_volume, volume_from_image
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.nifti import read_header
from NeonatalSegLib.scans.placement import Forms, place
from NeonatalSegLib.scans.read import read_image
from NeonatalSegLib.scans.write import forms_of_grid, write_image


class FileGridTest(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def loaded(self, image: sitk.Image, path: Path) -> Any:
        """A volume node as Slicer's reader makes it: right-handed, the last axis turned round where need be."""
        sitk.WriteImage(image, str(path))
        node = volume_from_image(right_handed(sitk.ReadImage(str(path))), "sub-01_T2w", self.scene)
        remember_file(node, path)
        return node

    def exported(self, node: Any, labels: sitk.Image) -> sitk.Image:
        """``labels``, on the file's grid, into the scene on the node's grid, and out again."""
        on_node = sitk.Resample(labels, image_from_volume(node), sitk.Transform(), sitk.sitkNearestNeighbor)
        segmentation = segments.segmentation_from_label_map(on_node, "sub-01_T2w tissues", node)
        return sitk.ReadImage(str(export.export_label_map(segmentation, self.folder / "out")["label_map"]))

    def test_every_order_of_voxels_comes_back_as_in_the_file(self) -> None:
        turned = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]
        directions = {**DIRECTIONS, **{f"order {n}": turn for n, turn in enumerate(turned)}}
        for name, direction in directions.items():
            with self.subTest(direction=name):
                image = scan_image(direction)
                labels = sitk.GetImageFromArray(label_array())
                labels.CopyInformation(image)
                node = self.loaded(image, self.folder / "scan_T2w.nii.gz")
                found = self.exported(node, labels)
                np.testing.assert_array_equal(sitk.GetArrayFromImage(found), label_array())
                np.testing.assert_allclose(found.GetDirection(), direction.ravel(), atol=1e-5)
                np.testing.assert_allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-3)

    def test_both_positions_of_a_file_are_written_whichever_slicer_has_taken(self) -> None:
        """The scan says that the label map carries both: it lies on the scan in every viewer."""
        image = scan_image(DIRECTIONS["LAS"])
        path, places = self.folder / "scan_T2w.nii.gz", forms_of_grid(Grid.of(image))
        apart = replace(places, qoffset=tuple(v + 20 for v in places.qoffset))
        for by in ("sform", "qform"):
            with self.subTest(by=by):
                write_image(image, path, forms=apart)
                where = place(read_header(path), path.name)
                seen = sitk.Image(image)
                seen.SetOrigin((where.grid if by == "sform" else where.others[0]).origin_mm)
                node = volume_from_image(right_handed(seen), "sub-01_T2w", self.scene)
                remember_file(node, path)
                labels = sitk.GetImageFromArray(label_array())
                labels.CopyInformation(seen)
                self.exported(node, labels)
                written = next((self.folder / "out").glob("*_dseg.nii.gz"))
                self.assertEqual(Forms.of(read_header(written)), Forms.of(read_header(path)))
                np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(written).image), label_array())
                self.scene.Clear(False)

    def test_a_volume_that_was_moved_is_written_where_it_is_now(self) -> None:
        image = scan_image(DIRECTIONS["LAS"])
        node = self.loaded(image, self.folder / "scan_T2w.nii.gz")
        transform = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Move")
        import vtk

        matrix = vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, 5.0)
        transform.SetMatrixTransformToParent(matrix)
        node.SetAndObserveTransformNodeID(transform.GetID())
        labels = sitk.GetImageFromArray(label_array())
        labels.CopyInformation(image_from_volume(node))
        segmentation = segments.segmentation_from_label_map(labels, "tissues", node)
        found = sitk.ReadImage(str(export.export_label_map(segmentation, self.folder / "out")["label_map"]))
        np.testing.assert_allclose(found.GetOrigin(), image_from_volume(node).GetOrigin(), atol=1e-3)


if __name__ == "__main__":
    unittest.main()
