"""The real widget with the real .ui file: in Slicer with its Qt, elsewhere with PySide6 made as strict as PythonQt."""

from __future__ import annotations

import sys
import tempfile
import unittest
from pathlib import Path

import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from scripted_engine import HELLO
from widget_case import WidgetCase

from NeonatalSegLib.mrml.scene.volumes import image_from_volume
from NeonatalSegLib.panel.segment_state import State


class StateTest(WidgetCase):
    def test_no_input(self) -> None:
        self.widget.enter()
        self.assertEqual(self.panel.state, State.NO_INPUT)
        self.assertFalse(self.ui.segmentButton.isEnabled())
        self.assertIn("T1", self.ui.segmentButton.property("toolTip"))
        for button in (self.ui.exportNiftiButton, self.ui.exportSegButton, self.ui.exportStlButton):
            self.assertFalse(button.isEnabled())
            self.assertIn("Segment first", button.property("toolTip"))
        self.assertEqual(self.text("researchLabel"), "Research use only, not for diagnosis.")

    def test_nothing_is_started_before_the_module_is_opened(self) -> None:
        self.assertEqual(self.engine.requests, [])

    def test_volumes_are_offered_by_their_names(self) -> None:
        t1, t2 = self.load_scan()
        self.assertIs(self.ui.t1Selector.currentNode(), t1)
        self.assertIs(self.ui.t2Selector.currentNode(), t2)
        self.assertEqual(self.panel.state, State.IDLE)
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def test_selectors_and_parameters_follow_each_other(self) -> None:
        t1, _ = self.load_scan()
        self.ui.t2Selector.setCurrentNode(None)
        parameters = self.widget.logic.getParameterNode()
        self.assertIsNone(parameters.t2)
        parameters.t1 = None
        self.assertIsNone(self.ui.t1Selector.currentNode())
        self.assertEqual(self.panel.state, State.NO_INPUT)
        parameters.t1 = t1
        self.assertEqual(self.panel.state, State.IDLE)

    def test_segment_progress_and_result(self) -> None:
        self.load_scan()
        self.engine.hello.say("result", **HELLO)
        request = self.run_to_request()
        self.assertEqual(self.text("segmentButton"), "Cancel")
        self.assertFalse(self.ui.t1Selector.isEnabled())
        request.say("progress", stage="network", fraction=0.5, seconds_left=9.0)
        self.spin(lambda: self.ui.progressBar.property("value") == 50)
        self.assertEqual(self.text("progressLabel"), "Segmenting, 9 s left")
        request.succeed()
        self.spin(lambda: self.panel.state is State.DONE)
        self.assertEqual(self.text("segmentButton"), "Segment")
        self.assertEqual(self.ui.volumesTable.property("rowCount"), 10)
        self.assertEqual(self.ui.volumesTable.item(0, 0).text(), "CSF")
        self.assertGreater(float(self.ui.volumesTable.item(0, 1).text()), 0.0)
        parameters = self.widget.logic.getParameterNode()
        self.assertEqual(parameters.segmentation.GetName(), "sub-01_T2w tissues")
        self.assertFalse(self.widget.timer.isActive())
        self.assertIn("model one", self.text("messageLabel"))

    def test_age_by_the_model(self) -> None:
        self.load_scan()
        self.run_to_result()
        self.assertNotIn("ge by the model", self.text("messageLabel"))
        self.run_to_result(age_weeks=39.42, warnings=["The age given is 34.0 weeks."])
        self.assertIn("The age given is 34.0 weeks.", self.text("messageLabel"))
        self.assertIn("age by the model 39.4 weeks", self.text("messageLabel").splitlines()[-1])

    def test_age_by_volumes(self) -> None:
        self.load_scan()
        self.run_to_result(volumes_age_weeks=36.18)
        self.assertIn("age by volumes 36.2 weeks", self.text("messageLabel").splitlines()[-1])

    def test_cancel(self) -> None:
        self.load_scan()
        request = self.run_to_request()
        self.ui.segmentButton.click()
        self.assertTrue(request.cancel_asked)
        self.assertFalse(self.ui.segmentButton.isEnabled())
        request.say("cancelled", forced=False)
        self.spin(lambda: self.panel.state is State.IDLE)
        self.assertEqual(self.text("segmentButton"), "Segment")
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def test_error(self) -> None:
        self.load_scan()
        self.run_to_request().say("error", kind="user", message="The brain is upside down: turn it.")
        self.spin(lambda: self.panel.state is State.ERROR)
        self.assertEqual(self.text("messageLabel"), "Error: The brain is upside down: turn it.")
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def test_unusable_input_is_refused_at_the_button(self) -> None:
        self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        self.widget.enter()
        self.ui.t2Selector.setCurrentNode(self.scene.GetFirstNodeByName("Empty"))
        self.assertFalse(self.ui.segmentButton.isEnabled())
        self.assertIn("no image data", self.ui.segmentButton.property("toolTip"))

    def test_input_that_turned_bad_after_it_was_chosen(self) -> None:
        _, t2 = self.load_scan()
        t2.SetAndObserveImageData(None)
        self.ui.segmentButton.click()
        self.assertEqual(self.panel.state, State.ERROR)
        self.assertIn("no image data", self.text("messageLabel"))
        self.assertFalse(self.widget.logic.runner.running)

    def test_disk_full(self) -> None:
        self.load_scan()
        self.engine.disk_full = True
        self.ui.segmentButton.click()
        self.assertEqual(self.panel.state, State.ERROR)
        self.assertIn("space", self.text("messageLabel"))

    def test_a_doubt_about_the_input_is_shown(self) -> None:
        _, t2 = self.load_scan()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sub-01_T2w.mha"
            sitk.WriteImage(image_from_volume(t2), str(path), useCompression=False)
            lines = path.read_bytes().split(b"\n")
            path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"TransformMatrix")))
            t2.AddDefaultStorageNode()
            t2.GetStorageNode().SetFileName(str(path))
            self.run_to_result()
        self.assertIn("Notice: sub-01_T2w: sub-01_T2w.mha does not say how it is oriented", self.text("messageLabel"))


class SceneTest(WidgetCase):
    def nodes(self) -> int:
        return int(self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))

    def test_scene_closed_while_running(self) -> None:
        self.load_scan()
        request = self.run_to_request()
        heard: list[str] = []
        self.widget.logic.runner.cancelled.connect(heard.append)
        self.scene.Clear(False)
        self.assertEqual(heard, ["The scene was closed, so the segmentation was stopped."])
        self.assertTrue(request.cancel_asked)
        self.assertEqual(self.panel.state, State.NO_INPUT)
        request.succeed()
        self.spin(lambda: request.released)
        self.assertEqual((self.nodes(), self.engine.files()), (0, []))
        self.load_scan()
        self.run_to_result()
        self.assertEqual(self.nodes(), 1)

    def test_input_deleted_while_running(self) -> None:
        _, t2 = self.load_scan()
        request = self.run_to_request()
        self.scene.RemoveNode(t2)
        self.assertTrue(request.cancel_asked)
        self.assertIn("sub-01_T2w was deleted", self.text("messageLabel"))
        self.assertEqual(self.panel.state, State.IDLE)  # the T1 is still there
        request.say("cancelled", forced=True)
        self.spin(lambda: request.released)
        self.assertEqual((self.nodes(), self.engine.files()), (0, []))

    def test_result_deleted(self) -> None:
        self.load_scan()
        self.run_to_result()
        self.scene.RemoveNode(self.widget.logic.getParameterNode().segmentation)
        self.assertFalse(self.ui.exportNiftiButton.isEnabled())

    def test_module_left_and_opened_again_while_running(self) -> None:
        self.load_scan()
        request = self.run_to_request()
        self.widget.exit()
        self.widget.enter()
        self.assertEqual(self.panel.state, State.RUNNING)
        request.succeed()
        self.spin(lambda: self.panel.state is State.DONE)

    def test_reload_while_running(self) -> None:
        self.load_scan()
        self.run_to_request()
        self.widget.cleanup()
        self.assertTrue(self.engine.closed)
        self.assertFalse(self.widget.timer.isActive())
        self.assertEqual((self.widget.Observations, self.widget.controller.Observations), ([], []))
        self.scene.Clear(False)  # nobody listens any more

    def saved(self) -> str:
        """The scene as the text of its .mrml file."""
        self.scene.SetSaveToXMLString(1)
        self.scene.Commit()
        return str(self.scene.GetSceneXMLString())

    def load(self, xml: str) -> None:
        """As "Load scene" does it, into what is there."""
        self.scene.SetLoadFromXMLString(1)
        self.scene.SetSceneXMLString(xml)
        self.scene.Import()

    def test_parameters_come_back_with_the_scene(self) -> None:
        self.load_scan()
        parameters = self.widget.logic.getParameterNode()
        parameters.n4, parameters.opacity, parameters.device, parameters.model = True, 0.25, "cpu", "two"
        xml = self.saved()
        self.scene.Clear(False)
        self.assertFalse(self.widget.logic.getParameterNode().n4)
        self.load(xml)
        again = self.widget.logic.getParameterNode()
        self.assertEqual((again.n4, again.opacity, again.device, again.model), (True, 0.25, "cpu", "two"))
        self.assertTrue(self.ui.n4Box.isChecked())

    def test_the_verdict_comes_back_with_a_saved_scene(self) -> None:
        self.load_scan()
        self.run_to_result(verdict="fail", warnings=["The labels; are: scattered, \u00e4."])
        xml = self.saved()
        self.scene.Clear(False)
        self.assertNotIn("Do not use this result", self.text("messageLabel"))
        self.load(xml)
        self.assertIn("Do not use this result", self.text("messageLabel"))
        self.assertIn("The labels; are: scattered, \u00e4.", self.text("messageLabel"))

    @unittest.skipIf(slicer_scene.in_slicer(), "without storage nodes Slicer brings no voxels back")
    def test_a_saved_scene_comes_back_with_scan_and_result(self) -> None:
        """Loaded after a new start, with the module open: inputs, table and exports are there."""
        self.load_scan()
        self.run_to_result()
        xml = self.saved()
        self.scene.Clear(False)
        self.assertEqual(self.ui.volumesTable.property("rowCount"), 0)
        self.load(xml)
        parameters = self.widget.controller.parameters
        self.assertEqual((parameters.t1.GetName(), parameters.t2.GetName()), ("sub-01_T1w", "sub-01_T2w"))
        self.assertEqual(self.ui.t2Selector.currentNode().GetName(), "sub-01_T2w")
        self.assertEqual(parameters.segmentation.GetName(), "sub-01_T2w tissues")
        self.assertTrue(self.ui.exportNiftiButton.isEnabled())

    def test_undeclared_and_out_of_range_parameters(self) -> None:
        parameters = self.widget.logic.getParameterNode()
        with self.assertRaises(ValueError):
            parameters.opacity = 1.5


if __name__ == "__main__":
    unittest.main()
