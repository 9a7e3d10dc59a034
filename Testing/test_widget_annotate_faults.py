"""The Annotate section when something under it fails: the way out stays open, and what was done stays."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path

import numpy as np
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
from test_widget_annotate import FIRST, SECOND, AnnotateCase

from NeonatalSegLib.annotation.session import AnnotationSession


class StuckTest(AnnotateCase):
    """A slice that cannot be begun: the one before stays, and every button goes on working."""

    scans = ("sub-01", "sub-02")

    def row_of(self, scan: str) -> int:
        return next(row for row, item in enumerate(self.panel.project.items) if item.slice.scan == scan)

    def test_the_prefill_of_another_scan_is_gone(self) -> None:
        self.open()
        self.stroke("wm")
        path = self.study / "prefill" / "sub-02_dseg.nii.gz"
        away = path.rename(path.with_suffix(".away"))
        self.ui.slicesTable.selectRow(self.row_of("sub-02"))
        self.assertIn("sub-02_dseg.nii.gz", self.text("annotateMessageLabel"))
        self.assertEqual((self.panel.key, self.ui.slicesTable.currentRow()), (FIRST, 0))
        self.assertTrue((self.labels() == 3).all(), "what was painted stays in sight")
        self.stroke("csf")
        away.rename(path)
        self.ui.slicesTable.selectRow(self.row_of("sub-02"))
        self.assertEqual(self.section.desk.shown.scan, "sub-02")
        self.ui.slicesTable.selectRow(0)
        self.assertTrue((self.labels() == 1).all())

    def test_the_ledger_cannot_be_written(self) -> None:
        self.open()
        ledger = self.study / "raters" / "Anna" / "ledger.jsonl"
        kept = ledger.rename(ledger.with_suffix(".away"))
        ledger.mkdir()
        self.ui.slicesTable.selectRow(self.row_of("sub-02"))
        self.assertIn("could not be saved", self.text("annotateMessageLabel"))
        self.assertEqual(self.panel.key, FIRST)
        ledger.rmdir()
        kept.rename(ledger)
        self.ui.slicesTable.selectRow(self.row_of("sub-02"))
        self.ui.doneButton.click()
        self.assertEqual(self.states()[self.row_of("sub-02")], "done")

    def test_the_scan_of_the_slice_is_gone(self) -> None:
        self.open()
        self.stroke("wm")
        (self.folder / "sub-02_T2w.nii.gz").unlink()
        self.ui.slicesTable.selectRow(self.row_of("sub-02"))
        self.assertIn("sub-02_T2w.nii.gz", self.text("annotateMessageLabel"))
        self.assertEqual((self.panel.key, self.section.desk.shown), ("", None))
        self.ui.slicesTable.selectRow(0)
        self.assertTrue((self.labels() == 3).all())
        self.ui.doneButton.click()
        self.assertEqual(self.states()[0], "done")

    def test_a_completed_slice_that_stays_in_sight_is_locked(self) -> None:
        self.open()
        ends = [item.slice.key for item in self.panel.project.items if item.slice.scan == "sub-01"]
        for _ in ends[:-1]:
            self.ui.doneButton.click()
        (self.study / "prefill" / "sub-02_dseg.nii.gz").unlink()
        self.ui.doneButton.click()
        self.assertEqual((self.panel.key, self.panel.item.state), (ends[-1], "done"))
        before = self.labels()
        self.stroke("wm")
        np.testing.assert_array_equal(self.labels(), before)

    def test_the_scene_closes_and_the_lock_goes_whatever_fails(self) -> None:
        self.open()
        self.section.desk.shown.node.RemoveNodeReferenceIDs("display")
        self.section.desk.shown.node.SetAndObserveSegmentation(None)
        self.scene.Clear(0)
        self.assertIsNone(self.panel.project)
        with AnnotationSession.open(self.study, "Anna") as project:
            self.assertEqual(project.item(FIRST).state, "in progress")


class ComparedTest(AnnotateCase):
    """The other rater's ledger is damaged."""

    def damaged(self) -> None:
        with AnnotationSession.open(self.study, "Bea") as other:
            other.start(FIRST)
            other.complete(FIRST, other.prefill(FIRST, "model"), 1.0)
        self.open()
        self.compare()
        ledger = self.study / "raters" / "Bea" / "ledger.jsonl"
        ledger.write_text("{broken\n" + ledger.read_text())

    def compare(self) -> None:
        self.ui.compareSelector.setCurrentIndex(self.ui.compareSelector.findData("Bea"))

    def test_done_is_done_and_goes_on(self) -> None:
        self.damaged()
        self.assertIn("Bea", self.text("agreementLabel"))
        self.stroke("wm")
        self.ui.doneButton.click()
        self.assertEqual(self.states()[:2], ["done", "in progress"])
        self.assertEqual(self.panel.key, SECOND)
        self.assertIn("The slice is completed", self.text("annotateMessageLabel"))
        self.assertIn("ledger.jsonl", self.text("annotateMessageLabel"))
        self.assertEqual((self.panel.other_rater, self.text("agreementLabel")), ("", ""))
        self.stroke("csf")
        self.ui.nextButton.click()
        self.ui.previousButton.click()
        self.assertTrue((self.labels() == 1).all(), "what was painted afterwards is kept")

    def test_a_rater_who_cannot_be_compared_with_is_not_chosen(self) -> None:
        self.damaged()
        self.ui.compareSelector.setCurrentIndex(0)
        self.compare()
        self.assertIn("ledger.jsonl", self.text("annotateMessageLabel"))
        self.assertEqual((self.panel.other_rater, self.panel.agreement), ("", None))
        self.ui.doneButton.click()
        self.assertEqual(self.panel.key, SECOND)


class NameTest(AnnotateCase):
    def load_scene_of(self, rater: str) -> None:
        """While another module is used."""
        self.widget.exit()
        self.scene.Clear(0)
        parameters = self.widget.logic.getParameterNode()
        parameters.rater, parameters.studyFolder = rater, str(self.study)
        self.widget.onSceneEndImport()
        self.widget.enter()

    def test_a_colleagues_scene_renames_nobody(self) -> None:
        self.section.host.write_setting("rater", "Bea")
        self.addCleanup(slicer.app.settings.texts.clear)
        self.widget.cleanup()
        self.new_scene()
        self.load_scene_of("Anna")
        self.assertEqual(self.text("raterEdit"), "Bea")
        self.assertIn("saved by Anna", self.text("annotateMessageLabel"))
        self.ui.annotateSection.setProperty("collapsed", False)
        self.ui.resumeButton.click()
        self.assertEqual(self.text("studyLabel"), "study, rater Bea")
        self.assertEqual(self.section.host.read_setting("rater"), "Bea")
        self.assertFalse((self.study / "raters" / "Anna").exists())

    def test_a_scene_fills_an_empty_name(self) -> None:
        self.load_scene_of("Anna")
        self.assertEqual((self.text("raterEdit"), self.text("annotateMessageLabel")), ("Anna", ""))


if __name__ == "__main__":
    unittest.main()
