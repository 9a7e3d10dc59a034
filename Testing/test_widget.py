"""The real widget with the real .ui file: in Slicer with its Qt, elsewhere with PySide6 made as strict as PythonQt."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import tempfile
import time
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import SimpleITK as sitk
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from scripted_engine import HELLO, ScriptedEngine
from stand_in_editor import Brush
from test_mrml_annotation import add_slice_view
from test_mrml_logic import add_volume

from NeonatalSegLib.mrml.annotate.study_volumes import remember_file
from NeonatalSegLib.mrml.scene import segments
from NeonatalSegLib.mrml.scene.volumes import image_from_volume
from NeonatalSegLib.mrml.shared import dependencies, drawing
from NeonatalSegLib.panel.segment_state import State
from NeonatalSegLib.tissues import PHYSIOLOGICAL

REAL = (dependencies.TORCH, dependencies.MONAI, dependencies.PSUTIL)
REPLACED = "NeonatalSegLib.mrml.shared.dependencies.to_segment"


class WidgetCase(unittest.TestCase):
    """A widget in an empty scene, its compute process driven by the test."""

    def setUp(self) -> None:
        slicer_qt.install()
        self.scene = slicer_scene.new_scene()
        self.engine = ScriptedEngine()
        self.widget = slicer_qt.make_widget(lambda: self.engine)
        self.addCleanup(self.widget.cleanup)
        self.ui, self.panel = self.widget.ui, self.widget.controller.panel
        self.widget.controller.confirm = self.no_dialog

    def no_dialog(self, text: str) -> bool:
        raise AssertionError(f"an unexpected dialog: {text}")

    def load_scan(self) -> tuple[Any, Any]:
        t1, t2 = add_volume(self.scene, "sub-01_T1w", False), add_volume(self.scene, "sub-01_T2w", True)
        self.widget.enter()
        return t1, t2

    def spin(self, until: Callable[[], bool], seconds: float = 10.0) -> None:
        """Let the event loop run until something is so."""
        import qt

        end = time.monotonic() + seconds
        ticking = qt.QTimer()  # so that the loop wakes even where nothing else does
        ticking.start(10)
        while not until():
            self.assertLess(time.monotonic(), end, "nothing happened")
            slicer.app.processEvents(qt.QEventLoop.WaitForMoreEvents)
        ticking.stop()

    def run_to_request(self) -> Any:
        before = len([request for request in self.engine.requests if request.op == "segment"])
        self.ui.segmentButton.click()
        self.spin(lambda: len([r for r in self.engine.requests if r.op == "segment"]) > before)
        return self.engine.last

    def run_to_result(self, **fields: Any) -> Any:
        request = self.run_to_request()
        request.succeed(**fields)
        self.spin(lambda: not self.panel.busy)
        return request

    def text(self, name: str) -> str:
        return str(getattr(self.ui, name).property("text"))


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


class ChoiceTest(WidgetCase):
    def test_devices_and_models(self) -> None:
        self.load_scan()
        self.engine.hello.say("result", **HELLO)
        self.spin(lambda: bool(self.panel.devices))
        self.assertEqual(self.text("deviceLabel"), "GPU: Made Up 9000")
        self.assertEqual(self.text("modelLabel"), "The first model.")
        self.ui.modelSelector.setCurrentIndex(self.ui.modelSelector.findData("two"))
        self.ui.deviceSelector.setCurrentIndex(self.ui.deviceSelector.findData("cpu"))
        self.assertEqual(self.text("modelLabel"), "The second model.")
        self.assertTrue(self.text("deviceLabel").startswith("CPU (2 threads)"))
        self.ui.n4Box.setChecked(True)
        fields = self.run_to_request().fields
        self.assertEqual((fields["model"], fields["device"]), ("two", "cpu"))
        self.assertEqual(fields["options"]["n4"], True)
        self.assertEqual(fields["options"]["flips"], False)

    def test_compute_process_that_does_not_start(self) -> None:
        self.load_scan()
        self.engine.hello.say("error", kind="user", message="There is no PythonSlicer.")
        self.spin(lambda: self.text("deviceLabel") == "There is no PythonSlicer.")
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def test_opacity_and_3d(self) -> None:
        self.load_scan()
        self.run_to_result()
        node = self.widget.logic.getParameterNode().segmentation
        self.ui.opacitySlider.value = 0.2
        self.assertAlmostEqual(node.GetDisplayNode().GetOpacity2DFill(), 0.2)
        self.ui.show3DBox.setChecked(True)
        self.assertTrue(segments.surfaces_shown(node))
        self.ui.show3DBox.setChecked(False)
        self.assertFalse(segments.surfaces_shown(node))

    def test_uncertainty(self) -> None:
        self.load_scan()
        self.ui.uncertaintyBox.setChecked(True)
        self.assertTrue(self.run_to_result(uncertainty=True).fields["options"]["uncertainty"])
        node = self.widget.logic.getParameterNode().uncertaintyMap
        self.assertEqual(node.GetName(), "sub-01_T2w uncertainty")


class ExportTest(WidgetCase):
    def test_all_three(self) -> None:
        self.load_scan()
        self.run_to_result()
        with tempfile.TemporaryDirectory() as folder:
            self.widget.controller.choose_folder = lambda title, start: folder
            self.ui.exportNiftiButton.click()
            self.assertIn("_dseg.nii.gz", self.text("messageLabel"))
            self.ui.exportSegButton.click()
            self.ui.exportStlButton.click()
            found = {path.name for path in Path(folder).iterdir()}
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / "sub-01_T2w_tissues_dseg.nii.gz")))
        self.assertIn("sub-01_T2w_tissues_volumes.tsv", found)
        self.assertIn("sub-01_T2w_tissues.seg.nrrd", found)
        self.assertEqual(len([name for name in found if name.endswith(".stl")]), 8)
        self.assertEqual(sorted(np.unique(labels)), list(range(10)))

    def test_no_folder_chosen(self) -> None:
        self.load_scan()
        self.run_to_result()
        before = self.text("messageLabel")
        self.widget.controller.choose_folder = lambda title, start: ""
        self.ui.exportNiftiButton.click()
        self.assertEqual(self.text("messageLabel"), before)

    def test_folder_that_cannot_be_written(self) -> None:
        self.load_scan()
        self.run_to_result()
        with tempfile.TemporaryDirectory() as folder:
            blocked = Path(folder) / "a file"
            blocked.write_text("x", encoding="utf-8")
            self.widget.controller.choose_folder = lambda title, start: str(blocked)
            self.ui.exportSegButton.click()
        self.assertEqual(self.panel.state, State.ERROR)
        self.assertIn("a file", self.text("messageLabel"))


class ResultTest(WidgetCase):
    """The result as it is looked at and corrected."""

    def result(self) -> Any:
        self.load_scan()
        self.run_to_result()
        return self.widget.controller.parameters.segmentation

    def stroke(self, node: Any, key: str) -> None:
        """All of the scan becomes one tissue, through Slicer's own editing logic."""
        volume = self.widget.controller.parameters.t2
        Brush(node, volume).paint(key, np.ones(volume.GetImageData().GetDimensions()[::-1], bool))

    def test_volumes_follow_an_edit(self) -> None:
        node = self.result()
        self.stroke(node, "csf")
        self.spin(lambda: self.ui.volumesTable.item(1, 1).text() == "0.0")
        shown = float(self.ui.volumesTable.item(0, 1).text())
        with tempfile.TemporaryDirectory() as folder:
            self.widget.controller.choose_folder = lambda title, start: folder
            self.ui.exportNiftiButton.click()
            rows = next(Path(folder).glob("*_volumes.tsv")).read_text(encoding="utf-8").splitlines()
        exported = next(float(row.split("\t")[-1]) for row in rows if row.split("\t")[0] == "1")
        self.assertAlmostEqual(shown, exported, places=1)
        table = self.widget.controller.parameters.volumes.GetTable()
        self.assertAlmostEqual(table.GetValue(0, 1).ToDouble(), exported, places=1)

    def test_an_edit_made_in_another_module_is_counted_on_coming_back(self) -> None:
        node = self.result()
        self.widget.exit()
        before = self.ui.volumesTable.item(1, 1).text()
        self.stroke(node, "csf")
        self.assertEqual(self.ui.volumesTable.item(1, 1).text(), before)
        self.widget.enter()
        self.assertEqual(self.ui.volumesTable.item(1, 1).text(), "0.0")

    def test_a_corrected_result_is_not_replaced_without_a_question(self) -> None:
        node = self.result()
        self.stroke(node, "csf")
        asked: list[str] = []
        self.widget.controller.confirm = lambda text: bool(asked.append(text))  # the user says no
        self.ui.segmentButton.click()
        self.assertEqual((len(asked), self.panel.busy), (1, False))
        self.assertIn("corrected by hand", asked[0])
        self.assertTrue(self.scene.IsNodePresent(node))
        self.widget.controller.confirm = lambda text: True
        self.run_to_result()
        self.assertFalse(self.scene.IsNodePresent(node))
        self.run_to_result()  # not corrected: no question
        self.assertEqual(self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 1)

    def test_correct_opens_the_editor_on_this_result(self) -> None:
        self.assertFalse(self.ui.correctButton.isEnabled())
        node = self.result()
        opened: list[Any] = []
        self.widget.controller.open_editor = lambda *nodes: opened.extend(nodes)
        self.ui.correctButton.click()
        self.assertEqual(opened, [node, self.widget.controller.parameters.t2])

    def test_a_row_is_a_tissue(self) -> None:
        """A click turns the views to it, a tick hides it; its colour is beside its name, the volume to the right."""
        node = self.result()
        red = add_slice_view(self.scene, "axial")
        self.ui.volumesTable.selectRow(7)
        self.ui.volumesTable.cellClicked.emit(7, 0)
        self.assertAlmostEqual(red.GetSliceOffset(), node.GetSegmentCenterRAS("hippocampus")[2])
        item = self.ui.volumesTable.item(2, 0)
        self.assertTrue(drawing.is_ticked(item))
        drawing.tick(item, False)
        self.assertFalse(node.GetDisplayNode().GetSegmentVisibility("wm"))
        self.assertTrue(node.GetDisplayNode().GetSegmentVisibility("csf"))
        import qt

        colour = self.ui.volumesTable.item(0, 0).data(qt.Qt.DecorationRole)
        self.assertEqual((colour.red(), colour.green(), colour.blue()), PHYSIOLOGICAL[0].colour)
        right = self.ui.volumesTable.item(0, 1).textAlignment()
        self.assertTrue(getattr(right, "value", right) & 2, "decimals below each other")

    @unittest.skipIf(slicer_scene.in_slicer(), "its 3D views do not count")
    def test_3d_is_centred(self) -> None:
        slicer.app.layout = slicer_qt.LayoutManager()
        self.addCleanup(setattr, slicer.app, "layout", None)
        self.result()
        self.ui.show3DBox.setChecked(True)
        self.assertEqual(slicer.app.layout.solid.centred, 1)

    def test_the_message_has_one_line_and_the_verdict_stands_first(self) -> None:
        self.load_scan()
        self.run_to_result(age_weeks=40.2)
        self.assertEqual(len(self.text("messageLabel").splitlines()), 1)
        self.run_to_result(verdict="fail", warnings=["Brain volume 640 mL."])
        lines = self.text("messageLabel").splitlines()
        self.assertTrue(lines[0].startswith("Error: Do not use this result"))
        self.assertEqual(lines[1], "Brain volume 640 mL.")

    def test_export_begins_beside_the_scan(self) -> None:
        node = self.result()
        starts: list[str] = []
        self.widget.controller.choose_folder = lambda title, start: starts.append(start) or ""
        self.ui.exportNiftiButton.click()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sub-01_T2w.nii.gz"
            file.write_bytes(b"")
            remember_file(self.widget.controller.parameters.t2, file)
            self.ui.exportNiftiButton.click()
        self.assertEqual(starts, ["", folder])
        self.assertTrue(self.scene.IsNodePresent(node))


class InstallTest(WidgetCase):
    """A package that is not there, installed by stand-ins for Slicer's packaging functions."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.to_segment = dependencies.to_segment
        self.site = tempfile.TemporaryDirectory()
        self.addCleanup(self.site.cleanup)
        needed = [dependencies.Requirement("made_up_package", "made-up-package>=1", "Made-up package, about 3 MB")]
        patch = mock.patch(REPLACED, lambda: needed)
        patch.start()
        self.addCleanup(patch.stop)
        sys.path.append(self.site.name)
        self.addCleanup(sys.path.remove, self.site.name)
        self.load_scan()

    def answer(self, yes: bool) -> None:
        def confirm(text: str) -> bool:
            self.asked.append(text)
            return yes

        self.widget.controller.confirm = confirm

    def put_package(self, *_: Any, **__: Any) -> None:
        (Path(self.site.name) / "made_up_package.py").write_text("", encoding="utf-8")
        importlib.invalidate_caches()

    def test_declined(self) -> None:
        self.answer(False)
        self.assertIn("not installed", self.text("deviceLabel"))
        self.ui.segmentButton.click()
        self.assertEqual(len(self.asked), 1)
        self.assertIn("Made-up package, about 3 MB", self.asked[0])
        self.assertEqual(self.panel.state, State.IDLE)
        self.assertIn("Nothing was installed", self.text("messageLabel"))
        self.assertEqual(self.engine.requests, [])
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def packaging(self, calls: list[Any]) -> Any:
        """``slicer.packaging`` of Slicer 5.12, with the signature that is there."""

        def pip_install(
            requirements: str,
            constraints: Any = None,
            no_deps_requirements: Any = None,
            skip_packages: Any = None,
            blocking: bool = True,
            show_progress: bool = True,
            requester: str | None = None,
            parent: Any = None,
        ) -> None:
            calls.append((requirements, requester, self.text("messageLabel")))
            self.put_package()

        made = types.ModuleType("slicer.packaging")
        made.pip_install = pip_install  # type: ignore[attr-defined]
        return mock.patch.dict(sys.modules, {"slicer.packaging": made})

    def test_one_call_for_all_without_a_question_about_a_restart(self) -> None:
        """pip once per package had Slicer ask for a restart after the first, before the others were there."""
        other = dependencies.Requirement("made_up_headless", "made-up-headless>=2", "For runs without a screen, 1 MB")
        self.answer(True)
        calls: list[Any] = []
        with mock.patch("NeonatalSegLib.mrml.shared.dependencies.HEADLESS", (other,)), self.packaging(calls):
            self.run_to_request()
        self.assertEqual(len(self.asked), 1)
        ((arguments, requester, _),) = calls
        self.assertEqual((arguments, requester), ("made-up-package>=1 made-up-headless>=2", "NeonatalSeg"))

    def test_what_runs_without_a_screen_need_is_never_asked_for_alone(self) -> None:
        self.put_package()
        other = dependencies.Requirement("made_up_headless", "made-up-headless>=2", "For runs without a screen, 1 MB")
        with mock.patch("NeonatalSegLib.mrml.shared.dependencies.HEADLESS", (other,)):
            self.run_to_request()  # no dialog

    def test_the_script_without_a_screen_needs_what_the_dialog_installs(self) -> None:
        import segment_headless

        slicers_own = {"SimpleITK", "scipy"}
        installed = {needed.module for needed in (*REAL, *dependencies.HEADLESS)}
        self.assertEqual(set(segment_headless.NEEDED) - slicers_own - installed, set())

    def test_what_is_being_installed_is_said_while_it_is(self) -> None:
        self.answer(True)
        calls: list[Any] = []
        with self.packaging(calls):
            self.run_to_request()
        self.assertIn("Installing made-up-package>=1", calls[0][2])
        self.assertNotIn("Installing", self.text("messageLabel"))

    def test_installed_before_slicer_5_12(self) -> None:
        self.answer(True)
        with (
            mock.patch.dict(sys.modules, {"slicer.packaging": None}),
            mock.patch.object(slicer.util, "pip_install", self.put_package, create=True),
        ):
            self.run_to_request()

    def test_installation_that_fails(self) -> None:
        self.answer(True)

        def fail(requirement: str) -> None:
            raise RuntimeError("no network")

        with (
            mock.patch.dict(sys.modules, {"slicer.packaging": None}),
            mock.patch.object(slicer.util, "pip_install", fail, create=True),
        ):
            self.ui.segmentButton.click()
        self.assertEqual(self.panel.state, State.ERROR)
        self.assertIn("no network", self.text("messageLabel"))
        self.assertIn("made-up-package", self.text("messageLabel"))

    def test_what_segment_needs_is_small_and_pytorch_comes_with_a_card_or_with_fine_tuning(self) -> None:
        there: set[str] = set()

        def names(*, card: bool = False, wheels: bool = True, finetuning: bool = False) -> list[str]:
            with (
                mock.patch.object(dependencies, "nvidia_card", lambda: card),
                mock.patch.object(dependencies, "has_wheels", lambda: wheels),
                mock.patch.object(dependencies, "_is_there", lambda needed: needed.module in there),
                mock.patch.object(dependencies, "to_segment", self.to_segment),
            ):
                return [needed.module for needed in dependencies.missing(finetuning=finetuning)]

        self.assertEqual(names(), ["openvino", "psutil"])
        self.assertEqual(names(card=True), ["torch", "monai", "psutil"])
        self.assertEqual(names(wheels=False), ["torch", "monai", "psutil"])
        self.assertEqual(names(finetuning=True), ["torch", "monai", "openvino", "psutil"])
        there.update(("openvino", "psutil"))
        self.assertEqual(names(), [])
        self.assertEqual(names(finetuning=True), ["torch", "monai"])
        there.clear()
        there.update(("torch", "monai", "psutil"))  # an installation from before there was a second engine
        self.assertEqual(names(), [])

    def test_torch_comes_through_its_extension(self) -> None:
        calls: list[Any] = []
        logic = types.SimpleNamespace(installTorch=lambda **given: calls.append(given))
        utils = types.ModuleType("PyTorchUtils")
        utils.PyTorchUtilsLogic = lambda: logic  # type: ignore[attr-defined]
        utils.__spec__ = importlib.machinery.ModuleSpec("PyTorchUtils", None)
        with mock.patch.dict(sys.modules, {"PyTorchUtils": utils}), self.packaging(calls):
            dependencies._install(REAL)
            self.assertNotIn("Install extensions", dependencies.question(REAL))
        self.assertEqual(calls[0], {"torchVersionRequirement": ">=2.10"})
        self.assertEqual(calls[1][0], "monai>=1.4 psutil>=5.9")

    def test_without_an_nvidia_card_the_build_for_the_cpu_is_taken(self) -> None:
        """pip's default on Linux brought 6.8 GB to a computer that could use none of it."""
        place = "NeonatalSegLib.mrml.shared.dependencies"
        with mock.patch(f"{place}.nvidia_card", lambda: False), mock.patch(f"{place}.sys.platform", "linux"):
            self.assertIn(f"--extra-index-url {dependencies.CPU_BUILDS}", dependencies.pip_arguments(REAL))
            self.assertIn("about 0.2 GB", dependencies.question(REAL))
            self.assertIn("The better way to PyTorch is the extension", dependencies.question(REAL))
        with mock.patch(f"{place}.nvidia_card", lambda: True):
            self.assertEqual(dependencies.pip_arguments(REAL), "torch>=2.10 monai>=1.4 psutil>=5.9")
            self.assertIn("2 to 4 GB", dependencies.question(REAL))

    def test_the_dialog_promises_nothing_that_pip_does_not_keep(self) -> None:
        """setuptools was updated by an installation whose dialog said that Slicer's own packages are not changed."""
        self.assertNotIn("not changed", dependencies.question(REAL))
        self.assertIn("setuptools", dependencies.question(REAL))


if __name__ == "__main__":
    unittest.main()
