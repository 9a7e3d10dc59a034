"""The Annotate section: nothing is lost, time is counted only at work, errors are told, studies are made."""

from __future__ import annotations

import json
import sys
import threading
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
from test_mrml_annotation import add_slice_view
from test_mrml_logic import add_volume
from test_widget_annotate import AnnotateCase

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
from scripted_engine import HELLO

from NeonatalSegLib.annotation.new_study import start_study
from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.annotation.study import read_study
from NeonatalSegLib.models.for_study import name_for_study
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.mrml.annotate.annotation_view import MASK_ID
from NeonatalSegLib.mrml.annotate.study_volumes import lies_on, scan_volumes
from NeonatalSegLib.mrml.scene import segments
from NeonatalSegLib.mrml.shared.choices import completed_slices
from NeonatalSegLib.scans.grid import AXES

FIRST, SECOND, THIRD = "sub-01/axial/5", "sub-01/axial/11", "sub-01/coronal/7"


class LastingTest(AnnotateCase):
    """Whatever happens, what was done is there, and what was begun too."""

    scans = ("sub-01", "sub-02")

    def test_a_new_session_goes_to_the_next_slice(self) -> None:
        self.open()
        self.stroke("wm")
        self.ui.doneButton.click()
        self.widget.cleanup()
        self.new_scene()
        self.open()
        self.assertEqual(self.panel.key, SECOND)
        self.assertEqual(self.states()[0], "done")
        self.assertTrue((self.panel.project.label_plane(FIRST) == 3).all())

    def test_edits_survive_leaving_the_module_and_a_kill(self) -> None:
        self.open()
        self.stroke("wm", 0.5)
        edited = self.labels()
        self.time += 30
        self.widget.exit()
        self.panel.project.close()  # the process ends without another word
        self.new_scene()
        self.open()
        self.assertEqual(self.panel.key, FIRST)
        np.testing.assert_array_equal(self.labels(), edited)
        self.assertEqual(self.panel.clock.seconds, 30)

    def test_edits_survive_the_end_of_the_scene(self) -> None:
        self.open()
        self.stroke("wm", 0.5)
        edited = self.labels()
        self.scene.Clear(0)
        self.assertIsNone(self.panel.project)
        with AnnotationSession.open(self.study, "Anna") as project:
            np.testing.assert_array_equal(project.label_plane(FIRST), edited)
        self.views = {axis: add_slice_view(self.scene, axis) for axis in AXES}
        self.open()
        np.testing.assert_array_equal(self.labels(), edited)
        self.stroke("csf")
        self.ui.doneButton.click()
        self.assertTrue((self.panel.project.label_plane(FIRST) == 1).all())

    def test_edits_survive_the_deletion_of_a_node(self) -> None:
        for node in ("node", "reference"):
            with self.subTest(deleted=node):
                self.open(rater=node)
                self.stroke("wm", 0.5)
                edited = self.labels()
                self.scene.RemoveNode(getattr(self.section.desk.shown, node))
                self.assertIn("was deleted", self.text("annotateMessageLabel"))
                self.assertEqual(self.panel.key, "")
                self.ui.slicesTable.selectRow(1)
                self.ui.slicesTable.selectRow(0)
                np.testing.assert_array_equal(self.labels(), edited)
                self.ui.closeButton.click()

    def test_going_to_another_slice_and_scan_keeps_the_edits(self) -> None:
        self.open()
        self.stroke("wm", 0.5)
        edited = self.labels()
        self.ui.slicesTable.selectRow(6)  # of sub-02
        self.assertEqual(self.section.desk.shown.reference.GetName(), "sub-02_T2w")
        first = self.scene.GetFirstNodeByName("sub-01 annotation")
        self.assertIsNone(first.GetSegmentation().GetSegment(MASK_ID))
        self.ui.slicesTable.selectRow(0)
        np.testing.assert_array_equal(self.labels(), edited)
        self.assertEqual(self.states()[0], "in progress")

    def test_volumes_are_loaded_once(self) -> None:
        self.open()
        self.ui.slicesTable.selectRow(6)
        self.ui.slicesTable.selectRow(0)
        names = [n.GetName() for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
        self.assertEqual(sorted(names), ["sub-01_T2w", "sub-02_T2w"])

    def test_a_volume_that_was_moved_is_not_taken(self) -> None:
        self.open()
        project = self.panel.project
        node = self.section.desk.shown.reference
        self.assertIs(scan_volumes(project.scans[0], project.plan, self.scene)["t2"], node)
        node.SetOrigin(0.0, 0.0, 0.0)
        self.assertFalse(lies_on(node, project.plan.grids["sub-01"]))
        self.assertIsNot(scan_volumes(project.scans[0], project.plan, self.scene)["t2"], node)


class ClockTest(AnnotateCase):
    def test_time_is_counted_only_while_working(self) -> None:
        self.open()
        self.time += 10
        self.active = False
        self.section.on_timer()
        self.time += 1000
        self.active = True
        self.section.on_timer()
        self.time += 10
        self.widget.exit()
        self.time += 1000
        self.widget.enter()
        self.time += 50
        self.views["axial"].SetSliceOffset(3.0)  # the user looks around: still at work
        self.time += 50
        self.stroke("wm")
        self.time += 500  # and goes away
        self.ui.doneButton.click()
        self.assertAlmostEqual(self.panel.project.item(FIRST).seconds, 10 + 10 + 50 + 50 + 60)


class ErrorTest(AnnotateCase):
    def test_no_name(self) -> None:
        self.open(rater="")
        self.assertIn("Give your name", self.text("annotateMessageLabel"))

    def test_no_study_there(self) -> None:
        self.study = self.folder
        self.open()
        self.assertIn("Error: ", self.text("annotateMessageLabel"))
        self.assertIsNone(self.panel.project)

    def test_open_elsewhere(self) -> None:
        with AnnotationSession.open(self.study, "Anna"):
            self.open()
        self.assertIn("has this study open", self.text("annotateMessageLabel"))

    def test_scan_file_gone(self) -> None:
        (self.folder / "sub-01_T2w.nii.gz").unlink()
        self.open()
        self.assertIn("sub-01_T2w.nii.gz", self.text("annotateMessageLabel"))

    def test_scan_file_is_of_another_newborn(self) -> None:
        path = self.folder / "sub-01_T2w.nii.gz"
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image[2:, :, :], str(path))
        self.open()
        self.assertIn("another scan", self.text("annotateMessageLabel"))

    def test_a_foreign_segment(self) -> None:
        self.open()
        other = self.section.desk.shown.node.GetSegmentation().AddEmptySegment("Segment_1", "island 2")
        self.stroke(other, 0.5)
        self.ui.doneButton.click()
        self.assertIn("island 2", self.text("annotateMessageLabel"))
        self.assertEqual(self.states()[0], "in progress")

    def test_disk_trouble_at_done(self) -> None:
        """The ledger cannot be written: told, the slice and its labels stay on the screen, the next try works."""
        self.open()
        self.stroke("wm")
        ledger = self.study / "raters" / "Anna" / "ledger.jsonl"
        kept = ledger.rename(ledger.with_suffix(".away"))
        ledger.mkdir()
        self.ui.doneButton.click()
        self.assertIn("Error: ", self.text("annotateMessageLabel"))
        self.assertEqual(self.panel.key, FIRST)
        self.assertTrue((self.labels() == 3).all())
        ledger.rmdir()
        kept.rename(ledger)
        self.ui.doneButton.click()
        self.assertEqual(self.states()[0], "done")


class MakeTest(AnnotateCase):
    def setUp(self) -> None:
        super().setUp()
        self.engine.hello.say("result", **HELLO)
        self.widget.controller.on_timer()

    def start(self) -> Any:
        """Fill in the form and click; returns the request to the compute process."""
        self.ui.raterEdit.setText("Anna")
        self.ui.amountBox.setProperty("value", 3.0)
        self.ui.axisSelector.setCurrentIndex(self.ui.axisSelector.findData("coronal"))
        self.section.choose_folder = lambda title: str(self.folder / "new")
        self.ui.makeButton.click()
        join_thread("study images")
        self.section.on_timer()
        return next((r for r in self.engine.requests if r.op == "plan"), None)

    def test_refused_without_a_scan(self) -> None:
        self.assertFalse(self.ui.makeButton.isEnabled())
        self.assertIn("T1", self.ui.makeButton.property("toolTip"))

    def test_made_and_opened(self) -> None:
        add_volume(self.scene, "sub-09_T1w", False)
        t2 = add_volume(self.scene, "sub-09_T2w", True)
        self.widget.enter()
        request = self.start()
        fields = request.fields
        self.assertEqual(fields["study"], str(self.folder / "new"))
        self.assertEqual((fields["settings"]["amount"], fields["settings"]["axis"]), (3.0, "coronal"))
        (scan,) = fields["scans"]
        self.assertEqual(scan["name"], "sub-09")
        self.assertEqual(sitk.ReadImage(scan["t2"]).GetSize(), t2.GetImageData().GetDimensions())
        self.assertEqual(self.text("makeButton"), "Cancel")
        self.assertFalse(self.widget.ui.segmentButton.isEnabled(), "one compute process serves all sections")
        request.say("progress", stage="network", fraction=0.5, seconds_left=9.0)
        self.section.on_timer()
        self.assertEqual(self.ui.makingBar.property("value"), 50)
        request.say("result", study=str(self.study), slices=4, model_name="one", model_hash="1", warnings=["Mind."])
        self.section.on_timer()
        self.assertEqual(self.text("studyLabel"), "study, rater Anna")
        self.assertIn("Mind.", self.text("annotateMessageLabel"))
        self.assertNotIn(str(self.folder), t2.GetAttribute("NeonatalSeg.file"), "scenes are sent on, paths are private")

    def segmented(self) -> Any:
        """A result of Segment for the scan; returns its segmentation node."""
        add_volume(self.scene, "sub-09_T2w", True)
        self.widget.enter()
        self.widget.ui.segmentButton.click()
        join_thread("inputs")
        self.widget.controller.on_timer()
        self.engine.last.succeed()
        self.widget.controller.on_timer()
        return self.widget.controller.parameters.segmentation

    def test_a_result_that_is_there_is_not_computed_again(self) -> None:
        node = self.segmented()
        request = self.start()
        predicted = request.fields["predicted"]
        self.assertEqual(predicted["model_hash"], "1" * 64)
        file = Path(predicted["label_maps"]["sub-09"])
        labels, scan = sitk.ReadImage(str(file)), sitk.ReadImage(request.fields["scans"][0]["t2"])
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(labels), sitk.GetArrayFromImage(segments.label_map_from_segmentation(node))
        )
        self.assertEqual(labels.GetSize(), scan.GetSize())
        np.testing.assert_allclose(labels.GetOrigin(), scan.GetOrigin(), atol=1e-3)
        request.say("result", study=str(self.study), slices=4, model_name="one", model_hash="1", warnings=[])
        self.section.on_timer()
        self.assertFalse(file.exists())

    def test_the_result_of_a_volume_that_was_moved_is_computed_again(self) -> None:
        self.segmented()
        t2 = self.section.parameters.t2
        t2.SetOrigin(*[value + 5 for value in t2.GetOrigin()])
        self.assertNotIn("predicted", self.start().fields)

    def test_a_corrected_result_is_no_prediction_of_the_model(self) -> None:
        self.segmented().SetAttribute("NeonatalSeg.edited", "1")
        self.assertNotIn("predicted", self.start().fields)

    def test_cancelled_or_failed_leaves_nothing(self) -> None:
        add_volume(self.scene, "sub-09_T2w", True)
        self.widget.enter()
        for event, fields in (("cancelled", {}), ("error", {"message": "The budget is too large."})):
            with self.subTest(event=event):
                self.engine.requests.clear()
                request = self.start()
                self.assertTrue((self.folder / "new" / "scans").is_dir())
                if event == "cancelled":
                    self.ui.makeButton.click()
                    self.assertTrue(request.cancel_asked)
                request.say(event, **fields)
                self.section.on_timer()
                self.assertFalse((self.folder / "new").exists())
                self.assertEqual(self.text("makeButton"), "Make study ...")
        self.assertIn("The budget is too large.", self.text("annotateMessageLabel"))

    def test_a_full_temporary_folder_ends_the_making(self) -> None:
        add_volume(self.scene, "sub-09_T2w", True)
        self.widget.enter()
        self.engine.disk_full = True
        self.assertIsNone(self.start())
        self.assertEqual(self.text("makeButton"), "Make study ...")
        self.assertIn("No space left", self.text("annotateMessageLabel"))
        self.assertTrue(self.widget.ui.segmentButton.isEnabled())
        self.assertFalse((self.folder / "new").exists())
        self.engine.disk_full = False
        self.assertIsNotNone(self.start(), "and the next try works")

    def complete_all(self) -> None:
        """Complete the four slices; the next round is offered when none is left."""
        for _ in range(4):
            self.assertFalse(self.ui.nextRoundButton.isVisibleTo(self.ui.annotateSection))
            self.stroke("wm")
            self.ui.doneButton.click()
        self.assertTrue(self.ui.nextRoundButton.isVisibleTo(self.ui.annotateSection))

    def next_round(self) -> Any:
        """Complete the study and ask for the next round; returns the request to the compute process."""
        self.open()
        self.complete_all()
        self.section.choose_folder = lambda title: str(self.folder / "second")
        self.ui.nextRoundButton.click()
        self.section.on_timer()
        return next(r for r in self.engine.requests if r.op == "plan")

    def test_the_next_round_goes_on_from_this_one(self) -> None:
        request = self.next_round()
        fields = request.fields
        self.assertEqual((fields["earlier"], fields["model"]), ([str(self.study)], None))
        self.assertEqual((fields["settings"]["selection"], fields["settings"]["amount"]), ("uncertainty", 4))
        self.assertEqual([Path(scan["t2"]).name for scan in fields["scans"]], ["sub-01_T2w.nii.gz"])
        self.assertIsNone(self.panel.project, "the first round is closed, its slice is on disk")
        second = start_study(
            fields["study"],
            read_study(self.study).scans,
            BudgetSettings(2, "slices", axis="axial", extent="central"),
            prefill="empty",
            earlier=fields["earlier"],
        )
        request.say("result", study=str(second.folder), slices=2, model_name="", model_hash="", warnings=[])
        self.section.on_timer()
        self.assertEqual(self.text("studyLabel"), "second, rater Anna")
        self.ui.doneButton.click()
        self.assertEqual(completed_slices(str(second.folder)), (1, 2, 4))

    def test_no_next_round_while_a_fine_tuning_runs(self) -> None:
        self.open()
        self.complete_all()
        turn = self.widget.logic.runner.turn
        turn.follow("A fine-tuning", True)
        self.assertFalse(self.ui.nextRoundButton.isEnabled())
        self.assertIn("A fine-tuning is under way", self.ui.nextRoundButton.property("toolTip"))
        turn.follow("A fine-tuning", False)
        self.assertTrue(self.ui.nextRoundButton.isEnabled())

        def choose(title: str) -> str:
            turn.follow("A fine-tuning", True)  # begun meanwhile
            return str(self.folder / "second")

        self.section.choose_folder = choose
        self.ui.nextRoundButton.click()
        self.assertIn("A fine-tuning is under way", self.text("annotateMessageLabel"))
        self.assertIsNotNone(self.panel.project, "the study stays open")
        self.assertEqual(self.engine.asked("plan"), [])

    def test_the_next_round_is_by_the_model_that_the_study_names(self) -> None:
        name_for_study(self.study, find_model("neonatal-t1t2"))
        request = self.next_round()
        self.assertEqual(request.fields["model"], str(self.study))
        request.say("error", message="There is no room.")
        self.section.on_timer()
        self.assertIn("There is no room.", self.text("annotateMessageLabel"))
        self.assertFalse((self.folder / "second").exists())
        self.assertTrue((self.study / "study.json").is_file(), "the round before it stays")

    def test_a_folder_that_is_in_use(self) -> None:
        add_volume(self.scene, "sub-09_T2w", True)
        self.widget.enter()
        (self.folder / "new").mkdir()
        (self.folder / "new" / "mine.txt").write_text(json.dumps(1))
        self.assertIsNone(self.start())
        self.assertIn("not empty", self.text("annotateMessageLabel"))
        self.assertTrue((self.folder / "new" / "mine.txt").exists())


def join_thread(name: str) -> None:
    """Wait for the thread that writes images."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()


if __name__ == "__main__":
    unittest.main()
