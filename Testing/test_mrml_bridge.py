"""Volume node to image, label map to segments, and back, on the real MRML classes."""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation import metrics
from NeonatalSegLib.mrml.scene import export, results, segments, volumes
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.tissues import PHYSIOLOGICAL

SIZE = (9, 11, 7)


def oblique_affine() -> np.ndarray:
    """Anisotropic, rotated about two axes, left-handed (K runs downwards), far from the origin."""
    a, b = np.radians(20.0), np.radians(-13.0)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.8, 1.1, -2.5])
    affine[:3, 3] = (31.0, -44.0, 17.0)
    return affine


def label_array() -> np.ndarray:
    """Every class 0-9 somewhere, class 7 left out; shape K, J, I."""
    array = np.arange(np.prod(SIZE)).reshape(SIZE[::-1]) % 10
    array[array == 7] = 0
    return array.astype(np.uint8)


def volume_node(scene: Any, array: np.ndarray, affine: np.ndarray, name: str = "T2") -> Any:
    image = sitk.GetImageFromArray(array)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetAndObserveImageData(volumes.vtk_voxels(image))
    node.SetIJKToRASMatrix(volumes.array_to_matrix(affine))
    node.CreateDefaultDisplayNodes()
    return node


def linear_transform(scene: Any, matrix: np.ndarray) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Move")
    node.SetMatrixTransformToParent(volumes.array_to_matrix(matrix))
    return node


def moved() -> np.ndarray:
    c, s = np.cos(0.3), np.sin(0.3)
    return np.array([[c, 0, s, 12.0], [0, 1, 0, -5.0], [-s, 0, c, 3.0], [0, 0, 0, 1]])


class VolumeTest(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()

    def test_voxels_and_world_positions_agree(self) -> None:
        array = np.random.default_rng(0).integers(0, 900, SIZE[::-1]).astype(np.int16)
        node = volume_node(self.scene, array, oblique_affine())
        image = volumes.image_from_volume(node)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
        for index in ((0, 0, 0), (8, 10, 6), (3, 1, 5)):
            ras = oblique_affine() @ [*index, 1]
            lps = image.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose([-lps[0], -lps[1], lps[2]], ras[:3], atol=1e-6)

    def test_image_to_node_and_back(self) -> None:
        image = sitk.GetImageFromArray(np.random.default_rng(1).random(SIZE[::-1], dtype=np.float32))
        volumes.set_ras_affine(image, oblique_affine())
        node = volumes.volume_from_image(image, "back", self.scene)
        again = volumes.image_from_volume(node)
        np.testing.assert_allclose(volumes.ras_affine(again), oblique_affine(), atol=1e-9)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))

    def test_parent_transform_is_composed_and_the_node_untouched(self) -> None:
        node = volume_node(self.scene, np.ones(SIZE[::-1], np.int16), oblique_affine())
        node.SetAndObserveTransformNodeID(linear_transform(self.scene, moved()).GetID())
        image = volumes.image_from_volume(node)
        np.testing.assert_allclose(volumes.ras_affine(image), moved() @ oblique_affine(), atol=1e-9)
        np.testing.assert_allclose(volumes.ijk_to_ras(node), oblique_affine(), atol=1e-12)
        self.assertIsNotNone(node.GetParentTransformNode())

    def test_extent_that_does_not_start_at_zero(self) -> None:
        node = volume_node(self.scene, np.ones(SIZE[::-1], np.int16), oblique_affine())
        node.GetImageData().SetExtent(2, 10, 1, 11, 3, 9)
        image = volumes.image_from_volume(node)
        lps = image.TransformIndexToPhysicalPoint((0, 0, 0))
        np.testing.assert_allclose([-lps[0], -lps[1], lps[2]], (oblique_affine() @ [2, 1, 3, 1])[:3], atol=1e-6)

    def refused(self, node: Any, *words: str) -> None:
        with self.assertRaises(NeonatalSegError) as caught:
            volumes.image_from_volume(node)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_non_linear_transform_is_refused(self) -> None:
        node = volume_node(self.scene, np.ones(SIZE[::-1], np.int16), np.eye(4))
        grid = self.scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "Warp")
        displacement = vtk.vtkImageData()
        displacement.SetDimensions(4, 4, 4)
        displacement.AllocateScalars(vtk.VTK_DOUBLE, 3)
        warp = slicer.vtkOrientedGridTransform()
        warp.SetDisplacementGridData(displacement)
        grid.SetAndObserveTransformToParent(warp)
        node.SetAndObserveTransformNodeID(grid.GetID())
        self.refused(node, "Warp", "non-linear", "arden")

    def test_shearing_transform_is_refused(self) -> None:
        node = volume_node(self.scene, np.ones(SIZE[::-1], np.int16), np.eye(4))
        shear = np.eye(4)
        shear[0, 1] = 0.2
        node.SetAndObserveTransformNodeID(linear_transform(self.scene, shear).GetID())
        self.refused(node, "perpendicular")

    def test_node_without_image_is_refused(self) -> None:
        self.refused(self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty"), "Empty", "no image data")

    def test_colour_volume_is_refused(self) -> None:
        node = self.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Colour")
        data = vtk.vtkImageData()
        data.SetDimensions(4, 4, 4)
        data.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
        node.SetAndObserveImageData(data)
        self.refused(node, "Colour", "3 values per voxel")

    def test_single_slice_is_refused(self) -> None:
        self.refused(volume_node(self.scene, np.ones((1, 5, 6), np.int16), np.eye(4)), "single slice")


class SegmentationTest(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        self.reference = volume_node(self.scene, np.ones(SIZE[::-1], np.int16), oblique_affine())
        self.label_map = sitk.GetImageFromArray(label_array())
        self.kept = label_array()

    def make(self) -> Any:
        volumes.set_ras_affine(self.label_map, volumes.world_affine(self.reference))
        return segments.segmentation_from_label_map(self.label_map, "T2 tissues", self.reference)

    def test_ids_names_colours_terminology_and_values(self) -> None:
        segmentation = self.make().GetSegmentation()
        self.assertEqual(list(segmentation.GetSegmentIDs()), [tissue.key for tissue in segments.SEGMENTED])
        for tissue in PHYSIOLOGICAL:
            segment = segmentation.GetSegment(tissue.key)
            self.assertEqual(segment.GetName(), tissue.name)
            self.assertEqual(segment.GetLabelValue(), tissue.index)
            np.testing.assert_allclose(segment.GetColor(), np.array(tissue.colour) / 255, atol=1e-6)
            entry = vtk.mutable("")
            self.assertTrue(segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry))
            self.assertEqual(len(str(entry).split("~")), 7)
            self.assertIn(tissue.snomed_code, str(entry))

    def test_each_segment_holds_its_own_voxels(self) -> None:
        node = self.make()
        for tissue in PHYSIOLOGICAL:
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, tissue.key, self.reference)
            np.testing.assert_array_equal(mask > 0, label_array() == tissue.index, err_msg=tissue.key)

    def test_what_is_no_tissue_is_hidden_and_csf_is_not_in_3d(self) -> None:
        display = self.make().GetDisplayNode()
        self.assertFalse(display.GetSegmentVisibility("intracranial_bg"))
        self.assertTrue(display.GetSegmentVisibility("csf"))
        self.assertFalse(display.GetSegmentVisibility3D("csf"), "it encloses all the others")
        self.assertTrue(display.GetSegmentVisibility3D("wm"))

    def test_label_values_survive_the_way_back(self) -> None:
        image = segments.label_map_from_segmentation(self.make())
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), self.kept)
        np.testing.assert_allclose(volumes.ras_affine(image), oblique_affine(), atol=1e-5)

    def test_follows_its_input_under_a_transform(self) -> None:
        transform = linear_transform(self.scene, moved())
        self.reference.SetAndObserveTransformNodeID(transform.GetID())
        node = self.make()
        self.assertEqual(node.GetTransformNodeID(), transform.GetID())
        image = segments.label_map_from_segmentation(node)
        np.testing.assert_allclose(volumes.ras_affine(image), moved() @ oblique_affine(), atol=1e-5)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), self.kept)

    def test_lies_in_the_folder_of_its_input(self) -> None:
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
        item = hierarchy.GetItemByDataNode(self.reference) or hierarchy.CreateItem(study, self.reference)
        hierarchy.SetItemParent(item, study)
        node = self.make()
        table = results.table_from_volumes({}, "volumes", self.reference)
        self.assertEqual(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)), study)
        self.assertEqual(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(table)), study)

    def test_reference_geometry_is_the_input(self) -> None:
        node = self.make()
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        self.assertEqual(node.GetNodeReferenceID(role), self.reference.GetID())

    def test_surfaces_on_off_and_not_in_the_file(self) -> None:
        node = self.make()
        self.assertFalse(segments.surfaces_shown(node))
        segments.show_surfaces(node, True)
        self.assertTrue(segments.surfaces_shown(node))
        with tempfile.TemporaryDirectory() as folder:
            path = export.export_seg_nrrd(node, Path(folder))
            self.assertNotIn(b"Closed surface representation", path.read_bytes()[:20000])
            header = sitk.ReadImage(str(path))
            self.assertIn("Binary labelmap", header.GetMetaData("Segmentation_ContainedRepresentationNames"))
            self.assertNotIn("Closed", header.GetMetaData("Segmentation_ContainedRepresentationNames"))
        self.assertTrue(segments.surfaces_shown(node))
        segments.show_surfaces(node, False)
        self.assertFalse(segments.surfaces_shown(node))

    def test_export_keeps_label_values_and_place(self) -> None:
        node = self.make()
        with tempfile.TemporaryDirectory() as folder:
            files = export.export_label_map(node, Path(folder))
            image = sitk.ReadImage(str(files["label_map"]))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), self.kept)
            np.testing.assert_allclose(volumes.ras_affine(image), oblique_affine(), atol=1e-3)
            lines = files["volumes"].read_text(encoding="utf-8").splitlines()
        self.assertEqual(lines[0].split("\t"), ["index", "key", "name", "volume_ml"])
        csf = next(line.split("\t") for line in lines if line.startswith("1\t"))
        self.assertAlmostEqual(float(csf[3]), (label_array() == 1).sum() * 0.8 * 1.1 * 2.5 / 1000, places=3)

    def test_exported_volumes_read_like_those_of_the_command(self) -> None:
        """One format of ``_volumes.tsv``, and the same rows."""
        from NeonatalSegLib.segmentation.outputs import write_outputs
        from NeonatalSegLib.segmentation.segmenter import Segmentation

        node = self.make()
        scene_labels = sitk.GetImageFromArray(self.kept)
        scene_labels.CopyInformation(self.label_map)
        counted = metrics.volumes_ml(self.kept, float(np.prod(scene_labels.GetSpacing())))
        with tempfile.TemporaryDirectory() as folder:
            scan = Scan(None, scene_labels, "sub-01")
            command = write_outputs(Segmentation(scene_labels, counted), scan, Path(folder) / "command", picture=False)
            slicer_files = export.export_label_map(node, Path(folder) / "slicer")
            tables = [
                [line.split("\t") for line in files["volumes"].read_text(encoding="utf-8").splitlines()]
                for files in (command, slicer_files)
            ]
        self.assertEqual(*tables)

    def test_export_to_a_folder_that_cannot_be_written(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            not_a_folder = Path(folder) / "file"
            not_a_folder.write_text("x", encoding="utf-8")
            with self.assertRaises(NeonatalSegError) as caught:
                export.export_label_map(self.make(), not_a_folder)
        self.assertIn("file", str(caught.exception))

    @unittest.skipUnless(os.name == "posix", "file size limits are POSIX's")
    def test_export_on_a_full_disk_says_so_and_keeps_the_old_files(self) -> None:
        """VTK and ITK say success: a good file was replaced by a truncated one."""
        import resource

        node = self.make()
        exports = (export.export_label_map, export.export_seg_nrrd, export.export_surfaces)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for write in exports:
                write(node, folder)
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            for write in exports:
                for size in (20, 200):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
                    try:
                        with self.subTest(write=write.__name__, size=size), self.assertRaises(NeonatalSegError):
                            write(node, folder)
                    finally:
                        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            self.assertEqual({path.name: path.read_bytes() for path in folder.iterdir()}, before)

    def test_stl_in_world_space(self) -> None:
        transform = linear_transform(self.scene, moved())
        self.reference.SetAndObserveTransformNodeID(transform.GetID())
        block = np.zeros(SIZE[::-1], np.uint8)
        block[1:6, 2:9, 2:7] = 3
        self.label_map = sitk.GetImageFromArray(block)
        node = self.make()
        with tempfile.TemporaryDirectory() as folder:
            (path,) = export.export_surfaces(node, Path(folder))
            self.assertTrue(path.name.endswith("_wm.stl"))
            reader = vtk.vtkSTLReader()
            reader.SetFileName(str(path))
            reader.Update()
            bounds = np.array(reader.GetOutput().GetBounds()).reshape(3, 2)
        centre = (moved() @ oblique_affine() @ [4, 5, 3, 1])[:3]
        np.testing.assert_allclose(bounds.mean(axis=1), centre, atol=1.0)

    def test_segmentation_of_somebody_else_is_refused(self) -> None:
        other = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Tumour")
        other.GetSegmentation().AddEmptySegment("tumour")
        with self.assertRaisesRegex(NeonatalSegError, "Tumour"):
            segments.label_map_from_segmentation(other)


class ResultTest(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        self.reference = volume_node(self.scene, np.ones(SIZE[::-1], np.int16), oblique_affine())

    def test_table_has_tissues_and_two_sums(self) -> None:
        given = {tissue.key: float(tissue.index) for tissue in PHYSIOLOGICAL}
        rows = dict(results.rows_from_table(results.table_from_volumes(given, "volumes", self.reference)))
        self.assertEqual(len(rows), 10)
        self.assertAlmostEqual(rows[results.BRAIN_ROW], 2 + 3 + 6 + 7 + 8 + 9)
        self.assertAlmostEqual(rows[results.INTRACRANIAL_ROW], 1 + 2 + 3 + 5 + 6 + 7 + 8 + 9)

    def test_uncertainty_lies_on_its_input(self) -> None:
        transform = linear_transform(self.scene, moved())
        self.reference.SetAndObserveTransformNodeID(transform.GetID())
        image = sitk.GetImageFromArray(np.random.default_rng(2).random(SIZE[::-1], dtype=np.float32))
        volumes.set_ras_affine(image, moved() @ oblique_affine())
        node = results.volume_from_uncertainty(image, "sure?", self.reference, np.linalg.inv(moved()))
        np.testing.assert_allclose(volumes.ijk_to_ras(node), oblique_affine(), atol=1e-6)
        np.testing.assert_allclose(volumes.world_affine(node), moved() @ oblique_affine(), atol=1e-6)
        display = node.GetDisplayNode()
        self.assertEqual((display.GetWindowLevelMin(), display.GetWindowLevelMax()), (0.0, 1.0))
        self.assertIsNotNone(display.GetColorNode())

    def test_volumes_counted_on_a_label_map(self) -> None:
        image = sitk.GetImageFromArray(label_array())
        image.SetSpacing((0.5, 2.0, 1.0))
        counted = results.volumes_from_label_map(image)
        self.assertAlmostEqual(counted["wm"], (label_array() == 3).sum() / 1000)
        self.assertEqual(counted["deep_gm"], 0.0)


if __name__ == "__main__":
    unittest.main()
