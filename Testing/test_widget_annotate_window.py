"""The window while a study is open: what is drawn over the slice, the layout, keys, the brush, and two raters."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from small_studies import prefill
from test_mrml_logic import add_volume
from test_widget_annotate import FIRST, SECOND, AnnotateCase

from NeonatalSegLib.mrml.annotate.annotation_view import MASK_ID


@unittest.skipIf(slicer_scene.in_slicer(), "strokes are made by the stand-in of the editor's widget")
class WindowCase(AnnotateCase):
    """With a main window: a layout of four views, a cross-hair, and a result of Segment in sight."""

    def setUp(self) -> None:
        slicer_qt.install()
        slicer.app.layout = slicer_qt.LayoutManager()
        self.addCleanup(setattr, slicer.app, "layout", None)
        self.addCleanup(slicer.app.settings.texts.clear)
        super().setUp()

    def new_scene(self) -> None:
        super().new_scene()
        self.layout = self.scene.AddNewNodeByClass("vtkMRMLLayoutNode")
        self.layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.crosshair = self.scene.AddNewNodeByClass("vtkMRMLCrosshairNode")
        self.crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowBasic)

    def other_segmentation(self, name: str = "sub-01_T2w tissues") -> Any:
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        return node.GetDisplayNode()

    def key(self, name: str) -> None:
        shortcut = self.section.keys.shortcuts[name]
        self.assertTrue(shortcut.isEnabled(), name)
        shortcut.activated.emit()


class WindowTest(WindowCase):
    def test_nothing_else_is_drawn_over_the_slice(self) -> None:
        result, hidden = self.other_segmentation(), self.other_segmentation("hidden by the user")
        hidden.SetVisibility(False)
        self.open()
        own = self.section.desk.shown.node.GetDisplayNode()
        self.assertEqual((result.GetVisibility(), own.GetVisibility()), (0, 1))
        late = self.other_segmentation("a result that comes while annotating")
        self.section.on_timer()
        self.assertFalse(late.GetVisibility())
        self.ui.closeButton.click()
        self.assertEqual((result.GetVisibility(), late.GetVisibility(), hidden.GetVisibility()), (1, 1, 0))
        self.assertFalse(own.GetVisibility(), "a single slice of labels is no result")

    def test_a_segmentation_that_the_user_shows_again_stays(self) -> None:
        result = self.other_segmentation()
        self.open()
        result.SetVisibility(True)
        self.section.on_timer()
        self.ui.nextButton.click()
        self.assertTrue(result.GetVisibility())

    def test_the_slice_gets_the_window_and_gives_it_back(self) -> None:
        self.open()
        one_up = slicer.vtkMRMLLayoutNode
        self.assertEqual(self.layout.GetViewArrangement(), one_up.SlicerLayoutOneUpRedSliceView)
        self.assertEqual(self.crosshair.GetCrosshairMode(), self.crosshair.NoCrosshair)
        self.ui.slicesTable.selectRow(2)  # a coronal slice
        self.assertEqual(self.layout.GetViewArrangement(), one_up.SlicerLayoutOneUpGreenSliceView)
        self.widget.exit()  # another module has its own needs
        self.assertEqual(self.layout.GetViewArrangement(), one_up.SlicerLayoutFourUpView)
        self.widget.enter()
        self.assertEqual(self.layout.GetViewArrangement(), one_up.SlicerLayoutOneUpGreenSliceView)
        self.ui.closeButton.click()
        self.assertEqual(self.layout.GetViewArrangement(), one_up.SlicerLayoutFourUpView)
        self.assertEqual(self.crosshair.GetCrosshairMode(), self.crosshair.ShowBasic)

    def test_a_study_that_opens_while_another_module_is_used_waits_for_the_window(self) -> None:
        """One that was being made, and is ready now."""
        result = self.other_segmentation()
        self.widget.parent.show()
        self.widget.exit()
        self.open()
        four_up = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        self.assertEqual((self.layout.GetViewArrangement(), result.GetVisibility()), (four_up, 1))
        self.assertEqual(self.crosshair.GetCrosshairMode(), self.crosshair.ShowBasic)
        self.assertTrue(self.widget.ui.scanSection.isVisible())
        self.widget.enter()
        self.assertEqual(self.layout.GetViewArrangement(), slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
        self.assertEqual((self.panel.key, result.GetVisibility()), (FIRST, 0))
        self.assertFalse(self.widget.ui.scanSection.isVisible())
        self.stroke("wm")
        self.assertTrue((self.labels() == 3).all())

    def test_a_layout_that_the_user_chooses_meanwhile_stays(self) -> None:
        self.open()
        chosen = slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView
        self.layout.SetViewArrangement(chosen)
        self.ui.slicesTable.selectRow(2)
        self.ui.closeButton.click()
        self.assertEqual(self.layout.GetViewArrangement(), chosen)

    def test_a_view_that_gets_its_size_later_is_fitted(self) -> None:
        """In Slicer a view that comes into the layout is as large as it will be only after the event loop ran."""
        self.open()
        view = self.views["axial"]
        view.SetDimensions(900, 300, 1)
        self.section.on_timer()
        up_mm = 26 * 1.25  # rows of the scan's axial plane
        self.assertAlmostEqual(view.GetFieldOfView()[1] / up_mm, 1.05, places=2)
        self.assertAlmostEqual(view.GetFieldOfView()[0], 3 * view.GetFieldOfView()[1], places=3)

    def test_the_slice_view_says_what_it_shows(self) -> None:
        self.open()
        (text,) = slicer.app.layout.slices["Red"].texts()
        self.assertIn("sub-01, axial", text)
        self.assertIn("1 of 4", text)
        self.key("tissue 9")
        self.section.on_timer()
        self.assertIn("Hippocampus", slicer.app.layout.slices["Red"].texts()[0])
        self.ui.slicesTable.selectRow(2)
        self.assertEqual(slicer.app.layout.slices["Red"].texts(), [])
        self.assertIn("coronal", slicer.app.layout.slices["Green"].texts()[0])
        self.ui.closeButton.click()
        self.assertEqual(slicer.app.layout.slices["Green"].texts(), [])

    def test_a_saved_scene_holds_no_helpers(self) -> None:
        self.open()
        self.stroke("wm")
        self.scene.SetSaveToXMLString(1)
        self.scene.Commit()
        saved = str(self.scene.GetSceneXMLString())
        self.assertNotIn(MASK_ID, saved)
        self.assertNotIn("sub-01 annotation", saved)
        self.assertNotIn("SegmentEditor", saved)
        self.assertIn("sub-01_T2w", saved)


class EffectTest(WindowCase):
    def test_the_first_stroke_after_a_completed_slice_paints(self) -> None:
        self.open()
        self.stroke("wm")
        self.assertTrue((self.labels() == 3).all())
        self.ui.doneButton.click()
        self.ui.previousButton.click()  # completed, hence read-only: the editor puts its effect away
        self.assertIsNone(self.editor.activeEffect())
        self.ui.nextButton.click()
        self.stroke("csf")
        self.assertTrue((self.labels() == 1).all())

    def test_an_effect_that_the_user_put_away_stays_away(self) -> None:
        self.open()
        self.editor.setActiveEffect(None)
        self.ui.nextButton.click()
        self.assertIsNone(self.editor.activeEffect())

    def test_another_module_gets_no_effect(self) -> None:
        self.open()
        self.key("erase")
        self.widget.exit()
        self.assertIsNone(self.editor.activeEffect())
        self.widget.enter()
        self.assertEqual(self.editor.activeEffect().name, "Erase")


class KeyTest(WindowCase):
    def test_number_keys_choose_tissues_in_the_window(self) -> None:
        """Pressed as the user does it: the Segment Editor has keys 1-9 of its own, and of two on one key none works."""
        from PySide6 import QtCore, QtTest

        self.open()
        window = self.widget.parent
        window.show()
        window.activateWindow()
        QtTest.QTest.qWaitForWindowActive(window, 2000)
        QtTest.QTest.keyClick(window, QtCore.Qt.Key_9)
        self.assertEqual(self.editor.mrmlSegmentEditorNode().GetSelectedSegmentID(), "hippocampus")
        QtTest.QTest.keyClick(window, QtCore.Qt.Key_3)
        self.assertEqual(self.editor.mrmlSegmentEditorNode().GetSelectedSegmentID(), "wm")
        before = self.labels()
        self.stroke("wm")
        QtTest.QTest.keyClick(window, QtCore.Qt.Key_Z)
        np.testing.assert_array_equal(self.labels(), before)

    def test_brush(self) -> None:
        self.open()
        paint = self.editor.effectByName("Paint")
        size = paint.doubleParameter("BrushAbsoluteDiameter")
        self.assertEqual((size, paint.common["BrushDiameterIsRelative"]), (3.0, 0))
        self.key("larger")
        self.assertAlmostEqual(paint.doubleParameter("BrushAbsoluteDiameter"), 3.75)
        for _ in range(20):
            self.key("smaller")
        self.assertEqual(paint.doubleParameter("BrushAbsoluteDiameter"), 0.5)

    def test_the_next_tissue_that_errs_is_the_one_corrected_most(self) -> None:
        self.open()
        labels = self.labels()
        labels[labels == 8] = 7  # all of the brainstem was wrong
        self.section.desk.shown.show("axial", 5, labels)
        self.section.desk.shown.allow()
        self.ui.doneButton.click()
        self.assertEqual(self.panel.key, SECOND)
        self.key("errs")
        self.assertEqual(self.section.desk.editor.selected, "brainstem")
        self.key("errs")
        self.assertEqual(self.section.desk.editor.selected, "deep_gm")

    def test_no_editing_keys_on_a_completed_slice(self) -> None:
        self.open()
        self.ui.doneButton.click()
        self.ui.previousButton.click()
        self.assertFalse(self.section.keys.shortcuts["tissue 3"].isEnabled())
        self.assertTrue(self.section.keys.shortcuts["fill"].isEnabled())


class ComingBackTest(WindowCase):
    def test_one_click_after_a_new_start(self) -> None:
        self.open("Anna")
        self.widget.cleanup()
        self.new_scene()  # a new scene that knows nothing
        self.assertEqual(self.ui.raterEdit.property("text"), "Anna")
        self.ui.annotateSection.setProperty("collapsed", False)
        self.assertTrue(self.ui.resumeButton.isVisibleTo(self.ui.annotateSection.parentWidget()))
        self.ui.resumeButton.click()
        self.assertEqual(self.panel.key, FIRST)

    def test_a_study_that_is_gone_is_not_offered(self) -> None:
        slicer.app.settings.setValue("NeonatalSeg/studies", f"{self.folder / 'gone'}\n{self.study}")
        self.widget.cleanup()
        self.new_scene()
        self.assertEqual(self.panel.recent, (str(self.study),))

    def test_the_scan_of_the_study_is_chosen_above(self) -> None:
        add_volume(self.scene, "another_T1w", False)
        self.widget.enter()
        self.open()
        parameters = self.widget.controller.parameters
        self.assertIsNone(parameters.t1)
        self.assertEqual(parameters.t2.GetName(), "sub-01_T2w")

    def test_the_sections_above_make_room(self) -> None:
        self.widget.parent.show()
        above = (self.widget.ui.scanSection, self.widget.ui.resultSection)
        self.open()
        self.assertFalse(any(section.isVisible() for section in above))
        self.ui.closeButton.click()
        self.assertTrue(all(section.isVisible() for section in above))

    def test_skipped_and_flagged_slices_stay_in_the_count(self) -> None:
        self.open()
        self.ui.doneButton.click()
        self.ui.skipButton.click()
        self.ui.flagButton.click()
        self.assertIn("1 of 4 slices completed, 1 skipped, 1 flagged", self.text("studyProgressLabel"))
        self.assertEqual(self.ui.studyBar.property("value"), 75)


class TwoRatersTest(WindowCase):
    def test_where_they_differ_and_how_far_they_agree(self) -> None:
        self.open("Bea")
        self.stroke("wm")  # all of the slice
        self.ui.doneButton.click()
        self.ui.closeButton.click()
        self.open("Anna")
        own = self.labels()
        self.ui.doneButton.click()
        self.ui.previousButton.click()
        self.ui.compareSelector.setCurrentIndex(self.ui.compareSelector.findData("Bea"))
        expected = 2 * (own == 3).sum() / ((own == 3).sum() + own.size)
        self.assertIn("Bea, on 1 slice that both have completed", self.text("agreementLabel"))
        self.assertIn(f"White matter {expected:.3f}", self.text("agreementLabel"))
        node = self.scene.GetFirstNodeByName("Where the raters differ")
        self.assertTrue(node.GetDisplayNode().GetVisibility())
        self.assertEqual(np.count_nonzero(self.panel.differing()), np.count_nonzero(own != 3))
        self.ui.nextButton.click()  # Bea has not completed this one
        self.assertIsNone(self.scene.GetFirstNodeByName("Where the raters differ"))
        self.assertEqual(prefill().shape, self.panel.project.label_map("sub-01").shape)


if __name__ == "__main__":
    unittest.main()
