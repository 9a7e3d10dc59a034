"""The logic between the Segment button and the compute process, on the real MRML scene.

The compute process is a scripted one, so that each event comes at the moment that a test is about; the last class
runs the real one.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from scripted_engine import HELLO, ScriptedEngine

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.scene import segments, volumes
from NeonatalSegLib.mrml.segment import runner as logic_module
from NeonatalSegLib.mrml.shared import choices
from NeonatalSegLib.panel.segment_state import Device
from NeonatalSegLib.tissues import PHYSIOLOGICAL


def blob(bright_fluid: bool) -> np.ndarray:
    """A head of two tissues with fluid in and around the brain: bright as in T2, or dark as in T1."""
    z, y, x = np.indices((40, 48, 44)) - np.array([20, 24, 22]).reshape(3, 1, 1, 1)
    radius = np.sqrt(x**2 + y**2 + z**2)
    array = np.where(radius < 19, 100.0, 0.0)
    array[radius < 12] = 130.0 if not bright_fluid else 90.0
    fluid = ((radius > 16) & (radius < 18)) | (radius < 4)
    array[fluid & (radius < 19)] = 400.0 if bright_fluid else 40.0
    return (array + np.random.default_rng(0).normal(0, 3, array.shape)).astype(np.int16)


def add_volume(scene: Any, name: str, bright_fluid: bool) -> Any:
    image = sitk.GetImageFromArray(blob(bright_fluid))
    image.SetSpacing((2.5, 2.5, 2.5))
    return volumes.volume_from_image(image, name, scene)


def join_inputs() -> None:
    """Wait for the thread that writes the inputs (there is none where it has ended)."""
    for thread in threading.enumerate():
        if thread.name == "inputs":
            thread.join(10)


class Heard:
    """Notes what the logic says."""

    def __init__(self, logic: logic_module.SegmentationLogic) -> None:
        self.progress: list[tuple[Any, ...]] = []
        self.finished: list[Any] = []
        self.failed: list[str] = []
        self.cancelled: list[str] = []
        self.devices: list[dict[str, Any]] = []
        self.no_devices: list[tuple[str, str]] = []
        logic.progressed.connect(lambda *a: self.progress.append(a))
        logic.finished.connect(self.finished.append)
        logic.failed.connect(self.failed.append)
        logic.cancelled.connect(self.cancelled.append)
        logic.devices_known.connect(self.devices.append)
        logic.devices_failed.connect(lambda *a: self.no_devices.append(a))

    @property
    def ends(self) -> int:
        return len(self.finished) + len(self.failed) + len(self.cancelled)


class LogicTest(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        self.engine = ScriptedEngine()
        self.logic = logic_module.SegmentationLogic(self.scene, lambda: self.engine)
        self.addCleanup(self.logic.close)
        self.heard = Heard(self.logic)
        self.t1 = add_volume(self.scene, "T1", bright_fluid=False)
        self.t2 = add_volume(self.scene, "T2", bright_fluid=True)

    def asked(self, **fields: Any) -> Any:
        """Start a segmentation and bring it to where the compute process has been asked."""
        self.logic.start(fields.pop("t1", self.t1), fields.pop("t2", self.t2), **fields)
        join_inputs()
        self.logic.poll()
        return self.engine.last

    def nodes(self, kind: str) -> int:
        return int(self.scene.GetNumberOfNodesByClass(kind))

    def test_request_carries_the_scan_and_the_choices(self) -> None:
        request = self.asked(model="two", device="cpu", options={"n4": True, "uncertainty": False})
        self.assertEqual(request.fields["model"], "two")
        self.assertEqual(request.fields["device"], "cpu")
        self.assertEqual(request.fields["options"], {"n4": True, "uncertainty": False})
        sent = sitk.ReadImage(str(request.fields["t1"]))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sent), blob(False))
        np.testing.assert_allclose(volumes.ras_affine(sent), volumes.world_affine(self.t1))

    def test_result_comes_into_the_scene(self) -> None:
        request = self.asked()
        request.say("progress", stage="network", fraction=0.4, seconds_left=7.0)
        label_map = request.succeed(uncertainty=True, warnings=["The scan is old."])
        self.logic.poll()
        (outcome,) = self.heard.finished
        back = sitk.GetArrayFromImage(segments.label_map_from_segmentation(outcome.segmentation))
        expected = sitk.GetArrayFromImage(label_map)
        np.testing.assert_array_equal(back, expected)
        self.assertEqual(outcome.segmentation.GetName(), "T2 tissues")
        self.assertEqual([row[0] for row in outcome.rows][:8], [tissue.name for tissue in PHYSIOLOGICAL])
        self.assertIsNotNone(outcome.uncertainty)
        self.assertEqual(outcome.warnings, ["The scan is old."])
        self.assertIn(("network", 0.4, 7.0), self.heard.progress)
        self.assertEqual(outcome.segmentation.GetAttribute("NeonatalSeg.model_name"), "one")
        self.assertLessEqual({"transfer", "network", "display", "total"}, set(outcome.times_s))
        self.assertEqual(self.engine.files(), [])
        self.assertFalse(self.logic.waiting)

    def test_one_image_alone(self) -> None:
        self.asked(t2=None).succeed()
        self.logic.poll()
        self.assertEqual(self.heard.finished[0].segmentation.GetName(), "T1 tissues")
        self.assertEqual(self.engine.last.fields["t2"], None)
        self.assertEqual(self.heard.finished[0].warnings, [])

    def test_a_second_run_takes_the_place_of_the_first(self) -> None:
        """A hidden twin was what the Segment Editor opened afterwards."""
        kinds = ("vtkMRMLSegmentationNode", "vtkMRMLTableNode", "vtkMRMLScalarVolumeNode")
        self.asked().succeed(uncertainty=True)
        self.logic.poll()
        before = [self.scene.GetNumberOfNodesByClass(kind) for kind in kinds]
        self.asked().succeed(uncertainty=True)
        self.logic.poll()
        first, second = (outcome.segmentation for outcome in self.heard.finished)
        self.assertEqual([self.scene.GetNumberOfNodesByClass(kind) for kind in kinds], before)
        self.assertFalse(self.scene.IsNodePresent(first))
        self.assertEqual(second.GetName(), "T2 tissues")

    def test_a_volume_s_file_that_does_not_say_its_orientation_is_noticed(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "T2.nrrd"
            sitk.WriteImage(volumes.image_from_volume(self.t2), str(path))
            self.t2.AddDefaultStorageNode()
            self.t2.GetStorageNode().SetFileName(str(path))
            self.asked().succeed()
            self.logic.poll()
            path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", b"space dimension: 3"))
            self.asked().succeed()
            self.logic.poll()
        first, second = (outcome.warnings for outcome in self.heard.finished)
        self.assertEqual(first, [])
        self.assertIn("T2: T2.nrrd does not say how it is oriented", second[0])

    def test_input_moved_while_running(self) -> None:
        transform = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Move")
        self.t2.SetAndObserveTransformNodeID(transform.GetID())
        request = self.asked()
        move = np.eye(4)
        move[:3, 3] = (10, 20, 30)
        transform.SetMatrixTransformToParent(volumes.array_to_matrix(move))
        request.succeed()
        self.logic.poll()
        back = segments.label_map_from_segmentation(self.heard.finished[0].segmentation)
        np.testing.assert_allclose(volumes.ras_affine(back), volumes.world_affine(self.t2), atol=1e-6)

    def test_cancel_while_computing(self) -> None:
        request = self.asked()
        self.logic.cancel()
        self.assertTrue(request.cancel_asked)
        self.assertEqual(self.heard.ends, 0)
        request.say("cancelled", forced=False)
        self.logic.poll()
        self.assertEqual(len(self.heard.cancelled), 1)
        self.assertEqual(self.nodes("vtkMRMLSegmentationNode"), 0)
        self.assertEqual(self.engine.files(), [])

    def test_cancel_before_the_request_is_sent(self) -> None:
        self.logic.start(self.t1, self.t2)
        self.logic.cancel()
        join_inputs()
        self.logic.poll()
        self.assertEqual(len(self.heard.cancelled), 1)
        self.assertEqual(self.engine.requests, [])
        self.assertEqual(self.engine.files(), [])

    def test_result_that_crosses_a_cancel_is_not_shown(self) -> None:
        request = self.asked()
        self.logic.cancel()
        request.succeed()
        self.logic.poll()
        self.assertEqual((len(self.heard.cancelled), self.heard.ends), (1, 1))
        self.assertEqual(self.nodes("vtkMRMLSegmentationNode"), 0)

    def test_error_is_told_in_its_own_words(self) -> None:
        self.asked().say("error", kind="user", message="The scan is empty: choose another.")
        self.logic.poll()
        self.assertEqual(self.heard.failed, ["The scan is empty: choose another."])
        self.assertFalse(self.logic.running)
        self.assertEqual(self.engine.files(), [])

    def test_scene_closed_while_running(self) -> None:
        request = self.asked()
        self.logic.scene_closed()
        self.scene.Clear(False)
        self.assertTrue(request.cancel_asked)
        self.assertEqual(len(self.heard.cancelled), 1)
        request.succeed()  # it was ready at that moment
        self.logic.poll()
        self.assertEqual(self.heard.ends, 1)
        self.assertEqual(self.nodes("vtkMRMLSegmentationNode"), 0)
        self.assertEqual(self.engine.files(), [])
        self.assertFalse(self.logic.waiting)

    def test_input_deleted_while_running(self) -> None:
        request = self.asked()
        other = add_volume(self.scene, "other", True)
        self.scene.RemoveNode(other)
        self.logic.nodes_removed()
        self.assertEqual(self.heard.ends, 0)
        self.scene.RemoveNode(self.t1)
        self.logic.nodes_removed()
        self.assertTrue(request.cancel_asked)
        self.assertIn("T1 was deleted", self.heard.cancelled[0])

    def test_input_deleted_while_it_is_being_written(self) -> None:
        self.logic.start(self.t1, self.t2)
        self.scene.RemoveNode(self.t2)
        self.logic.nodes_removed()
        self.assertIn("T2 was deleted", self.heard.cancelled[0])
        self.logic.poll()
        self.assertEqual(self.engine.requests, [])
        self.assertEqual(self.engine.files(), [])

    def test_label_map_that_cannot_be_read(self) -> None:
        request = self.asked()
        request.succeed()
        (request.folder / "labels.nrrd").write_bytes(b"NRRD0004\n")
        self.logic.poll()
        self.assertEqual(len(self.heard.failed), 1)
        self.assertEqual(self.nodes("vtkMRMLSegmentationNode"), 0)

    def test_disk_full(self) -> None:
        self.engine.disk_full = True
        with self.assertRaisesRegex(NeonatalSegError, "space"):
            self.logic.start(self.t1, self.t2)
        self.assertFalse(self.logic.running)

    def test_folder_that_cannot_be_written(self) -> None:
        self.engine.new_folder = lambda: self.engine.root / "went" / "away"  # type: ignore[method-assign]
        self.logic.start(self.t1, None)
        join_inputs()
        self.logic.poll()
        self.assertEqual((len(self.heard.failed), self.heard.ends), (1, 1))
        self.assertIn("temporary folder", self.heard.failed[0])
        self.assertFalse(self.logic.running)

    def test_bad_inputs(self) -> None:
        for t1, t2, words in ((None, None, "nothing to segment"), (self.t2, self.t2, "as T1 and as T2")):
            with self.assertRaisesRegex(NeonatalSegError, words):
                self.logic.start(t1, t2)
        empty = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        with self.assertRaisesRegex(NeonatalSegError, "Empty holds no image data"):
            self.logic.start(self.t1, empty)
        self.assertEqual(self.engine.files(), [])

    def test_two_at_once_are_refused(self) -> None:
        self.asked()
        with self.assertRaisesRegex(NeonatalSegError, "running already"):
            self.logic.start(self.t1, self.t2)

    def test_devices(self) -> None:
        self.logic.ask_devices()
        self.logic.ask_devices()
        self.assertEqual(len(self.engine.requests), 1)
        self.engine.hello.say("progress", stage="import", fraction=0.0)
        self.engine.hello.say("result", **HELLO)
        self.logic.poll()
        self.assertEqual(self.heard.devices[0]["default_model"], "one")
        self.assertFalse(self.logic.waiting)

    def test_devices_without_torch(self) -> None:
        self.logic.ask_devices()
        self.engine.hello.say("error", kind="user", message="no package 'torch'", missing="torch")
        self.logic.poll()
        self.assertEqual(self.heard.no_devices, [("no package 'torch'", "torch")])

    def test_close_while_running(self) -> None:
        self.asked()
        self.logic.close()
        self.assertTrue(self.engine.closed)
        self.assertEqual(len(self.heard.cancelled), 1)
        self.logic.close()


class ChoosingTest(unittest.TestCase):
    def test_contrast_by_name(self) -> None:
        for name in ("sub-01_T2w", "T2", "t2 head", "2: T2_TSE", "ses-1-T2w_1"):
            self.assertTrue(choices.named(name, "t2"), name)
        for name in ("sub-01_T1w", "AT20", "t21", "T2 tissues", "T2 uncertainty_1", "MRHead"):
            self.assertFalse(choices.named(name, "t2"), name)

    def test_chosen_inputs_are_left_alone(self) -> None:
        scene = slicer_scene.new_scene()
        add_volume(scene, "T1", False)
        t2, other = add_volume(scene, "T2", True), add_volume(scene, "other", True)
        parameters = SimpleNamespace(t1=None, t2=other)
        choices.choose_inputs(parameters, scene)
        self.assertEqual((parameters.t1, parameters.t2), (None, other))
        parameters.t2 = None
        choices.choose_inputs(parameters, scene)
        self.assertEqual((parameters.t1.GetName(), parameters.t2), ("T1", t2))

    def test_device_of_another_computer(self) -> None:
        known = [Device("cuda", "GPU: Old", False, "too old"), Device("cpu", "CPU (8 threads)")]
        self.assertEqual(choices.usable_device("cpu", known), "cpu")
        self.assertEqual(choices.usable_device("cuda", known), "auto")
        self.assertEqual(choices.usable_device("mps", known), "auto")
        self.assertEqual(choices.usable_device("mps", []), "mps")

    def test_seconds_on_this_cpu(self) -> None:
        self.assertEqual(choices.cpu_seconds(HELLO), 13.0)
        self.assertIsNone(choices.cpu_seconds({"devices": []}))

    def test_default_model_comes_first(self) -> None:
        hello = {**HELLO, "default_model": "two"}
        self.assertEqual(list(choices.models(hello)), ["two", "one"])
        self.assertEqual(choices.default_model({}), "")


if __name__ == "__main__":
    unittest.main()
