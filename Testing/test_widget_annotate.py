"""The Annotate section: the real .ui file and widget, real nodes, a real study on disk; edits by Slicer's own logic."""

from __future__ import annotations

import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from small_studies import cut, make_study, prefill
from test_mrml_annotation import add_slice_view

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from scripted_engine import ScriptedEngine

from NeonatalSegLib.annotation.session import read_annotations
from NeonatalSegLib.mrml.annotate.annotation_view import MASK_ID, MASK_NAME
from NeonatalSegLib.mrml.annotate.slice_editor import EFFECTS
from NeonatalSegLib.mrml.scene.volumes import ijk_to_ras
from NeonatalSegLib.panel.work_clock import WorkClock
from NeonatalSegLib.scans.grid import AXES

FIRST, SECOND, THIRD = "sub-01/axial/5", "sub-01/axial/11", "sub-01/coronal/7"


@unittest.skipIf(slicer_scene.in_slicer(), "strokes are made by the stand-in of the editor's widget")
class AnnotateCase(unittest.TestCase):
    """The module, opened in an empty scene with three slice views, and a study beside it."""

    direction = "LPS"
    scans: tuple[str, ...] = ("sub-01",)

    def setUp(self) -> None:
        slicer_qt.install()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.study = make_study(self.folder, self.direction, self.scans)
        self.new_scene()

    def new_scene(self) -> None:
        """As after a new start of the application."""
        self.scene = slicer_scene.new_scene()
        self.views = {axis: add_slice_view(self.scene, axis) for axis in AXES}
        self.engine = ScriptedEngine()
        self.widget = slicer_qt.make_widget(lambda: self.engine)
        self.addCleanup(self.widget.cleanup)
        self.section = self.widget.sections["Annotate"]
        self.ui, self.panel = self.section.ui, self.section.panel
        self.editor = self.ui.segmentEditor
        self.time, self.active = 0.0, True
        self.panel.clock = WorkClock(lambda: self.time)
        self.section.desk._worked = self.panel.clock.touch
        self.section.is_active = lambda: self.active
        self.section.confirm = self.no_dialog
        self.widget.enter()

    def no_dialog(self, text: str) -> bool:
        raise AssertionError(f"an unexpected dialog: {text}")

    def open(self, rater: str = "Anna") -> None:
        self.ui.raterEdit.setText(rater)
        self.ui.raterEdit.editingFinished.emit()
        self.section.choose_folder = lambda title: str(self.study)
        self.ui.annotateSection.setProperty("collapsed", False)
        self.ui.openButton.click()
        self.section.on_timer()  # the clock learns that the application is active

    def text(self, name: str) -> str:
        return str(getattr(self.ui, name).property("text"))

    def stroke(self, segment: str, share: float = 1.0) -> None:
        """Paint through the whole scan, or its first part (along each of its axes)."""
        data = self.section.desk.shown.reference.GetImageData().GetDimensions()
        voxels = np.zeros(data[::-1], bool)
        voxels[tuple(slice(0, max(1, round(share * length))) for length in voxels.shape)] = True
        self.editor.paint(segment, voxels)

    def labels(self) -> np.ndarray:
        return np.asarray(self.section.desk.shown.read())

    def states(self) -> list[str]:
        return [item.state for item in self.panel.project.items]


class WorkTest(AnnotateCase):
    def test_closed_and_empty_at_first(self) -> None:
        self.assertTrue(self.ui.annotateSection.property("collapsed"))
        self.assertFalse(self.ui.workBox.isVisibleTo(self.ui.annotateSection))
        self.assertFalse(any(shortcut.isEnabled() for shortcut in self.section.keys.shortcuts.values()))

    def test_opening_shows_the_first_slice(self) -> None:
        self.open()
        self.assertEqual(self.text("studyLabel"), "study, rater Anna")
        self.assertEqual(self.ui.slicesTable.property("rowCount"), 4)
        self.assertEqual(self.ui.slicesTable.item(0, 0).text(), "▸ in progress")
        self.assertEqual(self.ui.slicesTable.item(2, 1).text(), "coronal")
        self.assertEqual(self.ui.slicesTable.item(0, 2).toolTip(), "sub-01: reason 5")
        self.assertEqual(self.ui.slicesTable.currentRow(), 0)
        self.assertEqual(self.text("studyProgressLabel"), "0 of 4 slices completed")
        np.testing.assert_array_equal(self.labels(), self.start_of(FIRST))
        parameters = self.widget.logic.getParameterNode()
        self.assertEqual((parameters.rater, parameters.studyFolder), ("Anna", str(self.study)))

    def start_of(self, key: str) -> np.ndarray:
        project = self.panel.project
        return cut(prefill(), project.plan.grids["sub-01"], project.item(key).slice)

    def test_done_writes_exactly_the_slice_and_goes_on(self) -> None:
        self.open()
        expected = prefill()
        planned = self.panel.project.item(FIRST).slice
        self.stroke("wm")
        self.ui.doneButton.click()
        self.assertEqual(self.states(), ["done", "in progress", "to do", "to do"])
        self.assertEqual(self.panel.key, SECOND)
        self.assertEqual(self.text("annotateMessageLabel"), "")
        grid = self.panel.project.plan.grids["sub-01"]
        cut(expected, grid, planned)[:] = 3
        np.testing.assert_array_equal(self.panel.project.label_map("sub-01"), expected)
        np.testing.assert_array_equal(self.labels(), self.start_of(SECOND))
        self.ui.closeButton.click()
        (annotated,) = read_annotations(self.study)
        self.assertEqual([s.key for s in annotated.slices], [FIRST])
        done = np.zeros_like(expected)
        cut(done, grid, planned)[:] = 3
        np.testing.assert_array_equal(annotated.labels, done)

    def test_the_editor_is_set_up_and_limited(self) -> None:
        self.open()
        self.assertEqual(self.editor.effectNameOrder(), EFFECTS)
        for name in ("unorderedEffectsVisible", "segmentationNodeSelectorVisible", "sourceVolumeNodeSelectorVisible"):
            self.assertFalse(self.editor.property(name), name)
        self.assertIs(self.editor.segmentationNode(), self.section.desk.shown.node)
        self.assertEqual(self.editor.sourceVolumeNode().GetName(), "sub-01_T2w")
        for name in ("addRemoveSegmentButtonsVisible", "show3DButtonVisible", "maskingSectionVisible"):
            self.assertFalse(self.editor.property(name), name)
        self.assertNotIn("Smoothing", self.editor.effectNameOrder(), "it filters in 3D: a slice would be wiped out")
        (table,) = slicer.util.findChildren(self.editor, name="SegmentsTableView")
        names = [table.item(row).text() for row in range(int(table.property("count")))]
        self.assertIn("White matter", names)
        self.assertNotIn(MASK_NAME, names)
        self.assertFalse(table.eyes)
        node = self.editor.mrmlSegmentEditorNode()
        self.assertEqual(node.GetMaskSegmentID(), MASK_ID)
        node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)  # a user tries
        self.assertEqual(node.GetMaskMode(), slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
        display = self.section.desk.shown.node.GetDisplayNode()
        display.SetSegmentVisibility("csf", False)
        self.assertTrue(display.GetSegmentVisibility("csf"))

    def test_undo(self) -> None:
        self.open()
        before = self.labels()
        self.stroke("wm")
        self.assertTrue(self.editor.canUndo())
        self.editor.undo()
        np.testing.assert_array_equal(self.labels(), before)
        self.stroke("wm")
        self.ui.nextButton.click()
        self.assertFalse(self.editor.canUndo(), "the slice before would come back into this one")

    def test_fill_again_can_be_undone(self) -> None:
        self.open()
        before = self.labels()
        self.ui.prefillSelector.setCurrentIndex(2)
        self.ui.fillButton.click()
        self.assertFalse(self.labels().any())
        self.stroke("csf")
        self.assertTrue((self.labels() == 1).all())
        self.editor.undo()
        self.editor.undo()
        np.testing.assert_array_equal(self.labels(), before)

    def test_within_a_tissue(self) -> None:
        self.open()
        before = self.labels()
        self.ui.withinSelector.setCurrentIndex(self.ui.withinSelector.findData("deep_gm"))
        self.stroke("hippocampus")
        np.testing.assert_array_equal(self.labels(), np.where(before == 7, 9, before))

    def test_smooth_takes_a_single_voxel_away_and_can_be_undone(self) -> None:
        self.open()
        self.ui.prefillSelector.setCurrentIndex(2)
        self.ui.fillButton.click()
        self.stroke("wm")
        self.section.desk.shown.show("axial", 5, np.where(np.indices(self.labels().shape).sum(0) == 9, 9, 3))
        self.section.desk.shown.allow()
        rough = self.labels()
        self.ui.smoothButton.click()
        smooth = self.labels()
        self.assertLess(int((smooth == 9).sum()), int((rough == 9).sum()))
        self.assertGreater(int((smooth == 3).sum()), int((rough == 3).sum()))
        self.editor.undo()
        np.testing.assert_array_equal(self.labels(), rough)

    def test_a_tissue_that_was_removed_is_told_and_nothing_is_saved(self) -> None:
        self.open()
        self.section.desk.shown.node.GetSegmentation().RemoveSegment("wm")
        self.ui.doneButton.click()
        self.assertEqual(self.states()[0], "in progress")
        self.assertIn("was removed", self.text("annotateMessageLabel"))

    def add_foreign_segment(self) -> None:
        """As the editor's Add button or "Split islands" would."""
        shown = self.section.desk.shown
        copy = slicer.vtkSegment()
        copy.DeepCopy(shown.node.GetSegmentation().GetSegment("wm"))
        copy.SetName("Segment_1")
        shown.node.GetSegmentation().AddSegment(copy, "foreign")

    def test_what_cannot_be_kept_is_not_lost_without_a_question(self) -> None:
        self.open()
        self.stroke("wm")
        self.add_foreign_segment()
        asked: list[str] = []
        self.section.confirm = lambda text: bool(asked.append(text))  # the user says no
        leaving = (self.ui.nextButton, self.ui.skipButton, self.ui.flagButton, self.ui.closeButton)
        for number, button in enumerate(leaving, 1):
            button.click()
            self.assertEqual(len(asked), number)
            self.assertIn("Segment_1", asked[-1])
            self.assertEqual(self.panel.key, FIRST)
            self.assertIn("Segment_1", self.text("annotateMessageLabel"))
        self.ui.slicesTable.selectRow(2)
        self.assertEqual((self.panel.key, self.ui.slicesTable.currentRow()), (FIRST, 0))
        self.section.desk.shown.node.GetSegmentation().RemoveSegment("foreign")
        self.ui.nextButton.click()  # now it can be kept
        self.assertEqual((len(asked), self.panel.key), (5, SECOND))
        self.ui.previousButton.click()
        self.assertTrue((self.labels() == 3).all())

    def test_the_user_may_leave_what_cannot_be_kept(self) -> None:
        self.open()
        self.stroke("wm")
        self.add_foreign_segment()
        self.section.confirm = lambda text: True
        self.ui.nextButton.click()
        self.assertEqual(self.panel.key, SECOND)

    def test_an_unfinished_slice_is_kept_every_half_minute(self) -> None:
        self.open()
        self.stroke("wm")
        self.section.on_timer()
        self.assertFalse(self.panel.item.saved)
        self.section.drafts.kept_at -= 31  # seconds
        self.section.on_timer()
        self.assertTrue(self.panel.item.saved)
        self.assertTrue((self.panel.project.label_plane(FIRST) == 3).all())

    def test_the_whole_scan_is_in_view_and_a_click_returns_to_the_slice(self) -> None:
        self.open()
        view = self.views["axial"]
        bounds = [0.0] * 6
        self.section.desk.shown.reference.GetRASBounds(bounds)
        to_view = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(view.GetSliceToRAS(), to_view)
        width, height = view.GetFieldOfView()[:2]
        for number in range(8):
            corner = [bounds[2 * axis + (number >> axis & 1)] for axis in range(3)]
            x, y, _, _ = to_view.MultiplyPoint([*corner, 1.0])
            self.assertLessEqual(abs(x), width / 2)
            self.assertLessEqual(abs(y), height / 2)
        offset = view.GetSliceOffset()
        view.SetSliceOffset(offset + 5)
        self.ui.slicesTable.cellClicked.emit(0, 0)
        self.assertAlmostEqual(view.GetSliceOffset(), offset, places=3)

    def test_previous_reopen_and_locked_slices(self) -> None:
        self.open()
        self.stroke("wm")
        self.ui.doneButton.click()
        self.ui.previousButton.click()
        self.assertEqual(self.panel.key, FIRST)
        self.assertTrue(self.editor.property("readOnly"))
        self.assertFalse(self.ui.doneButton.isEnabled())
        self.ui.reopenButton.click()
        self.assertEqual(self.states()[0], "in progress")
        self.assertTrue((self.labels() == 3).all())
        self.stroke("csf")
        self.ui.doneButton.click()
        self.assertTrue((self.panel.project.label_plane(FIRST) == 1).all())

    def test_skip_and_flag_with_a_note(self) -> None:
        self.open()
        self.ui.skipButton.click()
        self.ui.noteEdit.setText("motion")
        self.ui.flagButton.click()
        self.assertEqual(self.states(), ["skipped", "flagged", "in progress", "to do"])
        self.assertIn("motion", self.ui.slicesTable.item(1, 0).toolTip())
        self.assertEqual(self.ui.noteEdit.property("text"), "")

    def test_choosing_in_the_list(self) -> None:
        self.open()
        self.ui.slicesTable.selectRow(2)
        self.assertEqual(self.panel.key, THIRD)
        planned = self.panel.project.item(THIRD).slice
        self.assertAlmostEqual(self.views["coronal"].GetSliceOffset(), planned.position_mm, places=3)

    def test_the_last_slice(self) -> None:
        self.open()
        for _ in range(4):
            self.ui.doneButton.click()
        self.assertEqual(self.states(), ["done"] * 4)
        self.assertIn("All slices", self.text("annotateMessageLabel"))
        self.assertFalse(self.ui.doneButton.isEnabled())
        before = self.labels()
        self.stroke("wm")
        np.testing.assert_array_equal(self.labels(), before)

    def test_fill_and_outline(self) -> None:
        self.open()
        display = self.section.desk.shown.node.GetDisplayNode()
        self.ui.fillBox.click()
        self.ui.fillSlider.setProperty("value", 0.25)
        self.assertEqual((display.GetVisibility2DFill(), display.GetVisibility2DOutline()), (0, 1))
        self.assertAlmostEqual(display.GetOpacity2DFill(), 0.25)
        self.ui.outlineBox.click()
        self.assertEqual(display.GetVisibility2DOutline(), 0)


class OrientationTest(AnnotateCase):
    """A stroke through the whole scan, Done, and the file: nothing but the slice has changed."""

    def paint_all_slices(self) -> None:
        self.open()
        expected, grid = prefill(), self.panel.project.plan.grids["sub-01"]
        for item, (segment, value) in zip(
            self.panel.project.items, (("wm", 3), ("csf", 1), ("deep_gm", 7), ("hippocampus", 9)), strict=True
        ):
            self.stroke(segment)
            self.ui.doneButton.click()
            cut(expected, grid, item.slice)[:] = value
        np.testing.assert_array_equal(self.panel.project.label_map("sub-01"), expected)
        path = self.study / "raters" / "Anna" / "sub-01_dseg.nii.gz"
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), expected)


class LasTest(OrientationTest):
    direction = "LAS"

    def test_all_slices(self) -> None:
        self.paint_all_slices()

    def test_a_stroke_lies_where_the_user_sees_it(self) -> None:
        """The scan is left-handed, its node is not: a stroke at one place of the world is labelled at that place."""
        self.open()
        volume, image = self.section.desk.shown.reference, sitk.ReadImage(str(self.panel.project.scans[0].t2))
        self.assertGreater(np.linalg.det(ijk_to_ras(volume)[:3, :3]), 0)
        x, y, z = (6, 4, 5)  # in the slice, which is axial, number 5
        left, back, up = image.TransformIndexToPhysicalPoint((x, y, z))
        place = np.rint(np.linalg.inv(ijk_to_ras(volume)) @ [-left, -back, up, 1.0]).astype(int)[:3].tolist()
        self.assertAlmostEqual(volume.GetImageData().GetScalarComponentAsDouble(*place, 0), image[x, y, z], places=3)
        before = self.labels()
        voxels = np.zeros(volume.GetImageData().GetDimensions()[::-1], bool)
        voxels[place[2], place[1], place[0]] = True
        self.editor.paint("hippocampus", voxels)
        before[y, x] = 9
        np.testing.assert_array_equal(self.labels(), before)


class ObliqueTest(OrientationTest):
    direction = "oblique"

    def test_all_slices(self) -> None:
        self.paint_all_slices()


class KeyTest(AnnotateCase):
    def press(self, name: str) -> None:
        shortcut = self.section.keys.shortcuts[name]
        if shortcut.isEnabled():
            shortcut.activated.emit()

    def test_keys(self) -> None:
        self.open()
        self.stroke("wm")
        for name in ("done", "next", "previous", "skip", "previous", "reopen", "flag"):
            self.press(name)
        self.assertEqual(self.states(), ["done", "flagged", "in progress", "to do"])
        self.press("fill")
        self.press("outline")
        self.assertFalse(self.ui.fillBox.isChecked() or self.ui.outlineBox.isChecked())

    def test_a_key_reaches_the_section(self) -> None:
        """Pressed in the window, as the user does it."""
        from PySide6 import QtCore, QtTest

        self.open()
        window = self.widget.parent
        window.show()
        window.activateWindow()
        QtTest.QTest.qWaitForWindowActive(window, 2000)
        QtTest.QTest.keyClick(window, QtCore.Qt.Key_D)
        self.assertEqual(self.states()[0], "done")
        self.widget.exit()
        QtTest.QTest.keyClick(window, QtCore.Qt.Key_D)
        self.assertEqual(self.states()[1], "in progress")

    def test_keys_are_those_of_the_tool_tips(self) -> None:
        self.open()
        for name in ("done", "skip", "flag", "next"):
            keys = self.section.keys.shortcuts[name].key.toString()
            self.assertIn(f"Key: {keys}", getattr(self.ui, f"{name}Button").property("toolTip"))

    def test_a_key_held_down_completes_one_slice(self) -> None:
        self.open()
        self.assertFalse(any(shortcut.autoRepeat for shortcut in self.section.keys.shortcuts.values()))

    def test_no_keys_while_the_section_is_folded(self) -> None:
        self.open()
        self.ui.annotateSection.setProperty("collapsed", True)
        self.assertFalse(any(shortcut.isEnabled() for shortcut in self.section.keys.shortcuts.values()))
        self.ui.annotateSection.setProperty("collapsed", False)
        self.assertTrue(self.section.keys.shortcuts["done"].isEnabled())

    def test_the_opacity_key_goes_round(self) -> None:
        self.open()
        seen = []
        for _ in range(4):
            self.press("opacity")
            seen.append(round(float(self.ui.fillSlider.property("value")), 2))
        self.assertEqual(seen, [0.75, 1.0, 0.25, 0.5])

    def test_no_keys_outside_the_module(self) -> None:
        self.open()
        self.assertTrue(self.section.keys.shortcuts["done"].isEnabled())
        self.widget.exit()
        self.assertFalse(any(shortcut.isEnabled() for shortcut in self.section.keys.shortcuts.values()))
        self.assertIsNone(self.editor.activeEffect())
        self.widget.enter()
        self.assertTrue(self.section.keys.shortcuts["done"].isEnabled())


if __name__ == "__main__":
    unittest.main()
