"""From volume nodes through the real compute process into segments: a tiny network of random weights, a coarse newborn.

What the network has learned does not matter here; that the process is started, polled, cancelled and killed does.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from test_mrml_logic import Heard, join_inputs

from NeonatalSegLib.datasets.phantom import draw_newborn
from NeonatalSegLib.mrml.scene import segments, volumes
from NeonatalSegLib.mrml.segment.runner import SegmentationLogic, start_engine

WAIT_S = 240.0  # generous: two busy cores
HAVE_TORCH = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("monai") is not None


@unittest.skipUnless(HAVE_TORCH, "PyTorch and MONAI are not installed")
class RealEngineTest(unittest.TestCase):
    folder: tempfile.TemporaryDirectory[str]
    logic: SegmentationLogic

    @classmethod
    def setUpClass(cls) -> None:
        import torch

        from NeonatalSegLib.models.bundle import save_model
        from NeonatalSegLib.networks.network import NetworkSettings, build_network

        cls.folder = tempfile.TemporaryDirectory()
        cls.model = Path(cls.folder.name) / "tiny"
        torch.manual_seed(1)
        settings = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0)
        save_model(build_network(settings), settings, cls.model, description="Random weights")
        cls.newborn = draw_newborn(40.0, seed=0, spacing_mm=3.0, orientation="LAS")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.folder.cleanup()

    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        self.logic = SegmentationLogic(self.scene, self.make_engine)
        self.addCleanup(self.logic.close)
        self.heard = Heard(self.logic)
        self.t1 = volumes.volume_from_image(self.newborn.t1, "T1", self.scene)
        self.t2 = volumes.volume_from_image(self.newborn.t2, "T2", self.scene)

    def make_engine(self) -> Any:
        self.client: Any = start_engine()
        return self.client

    def start(self) -> None:
        self.logic.start(self.t1, self.t2, model=str(self.model), device="cpu", options={"uncertainty": True})
        join_inputs()
        self.logic.poll()

    def wait(self, until: Any) -> None:
        end = time.monotonic() + WAIT_S
        while not until():
            self.assertLess(time.monotonic(), end, "nothing happened")
            if self.logic._run is not None and self.logic._run.task is not None:
                self.logic._run.task.request.wait(0.05)
            self.logic.poll()

    def test_result_on_the_grid_of_the_scan_and_warm_again(self) -> None:
        transform = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Move")
        move = np.eye(4)
        move[:3, 3] = (12, -7, 4)
        transform.SetMatrixTransformToParent(volumes.array_to_matrix(move))
        for node in (self.t1, self.t2):
            node.SetAndObserveTransformNodeID(transform.GetID())
        self.start()
        self.wait(lambda: self.heard.ends)
        self.assertEqual(self.heard.failed, [])
        (outcome,) = self.heard.finished
        back = segments.label_map_from_segmentation(outcome.segmentation)
        self.assertEqual(back.GetSize(), self.newborn.t2.GetSize())
        np.testing.assert_allclose(volumes.ras_affine(back), volumes.world_affine(self.t2), atol=1e-4)
        self.assertGreater(len(np.unique(sitk.GetArrayViewFromImage(back))), 1)
        self.assertIsNotNone(outcome.uncertainty)
        self.assertFalse(outcome.warm)
        self.start()
        self.wait(lambda: self.heard.ends == 2)
        self.assertTrue(self.heard.finished[1].warm)
        self.assertEqual(outcome.warnings, self.heard.finished[1].warnings)
        left = [path for path in Path(self.client._folder).rglob("*") if path.is_file()]
        self.assertEqual(left, [])

    def test_cancel(self) -> None:
        self.start()
        self.wait(lambda: any(stage != "start" and fraction for stage, fraction, _ in self.heard.progress))
        clicked = time.monotonic()
        self.logic.cancel()
        self.wait(lambda: self.heard.ends)
        self.assertEqual(len(self.heard.cancelled), 1)
        self.assertLess(time.monotonic() - clicked, 8.0)  # 1.5 s of grace; the rest is for a busy machine

    def test_worker_killed_in_the_middle(self) -> None:
        import psutil

        self.start()
        self.wait(lambda: len(self.heard.progress) > 2)
        psutil.Process(self.client.worker_pid).kill()
        self.wait(lambda: self.heard.ends)
        self.assertIn("stopped unexpectedly", self.heard.failed[0])
        self.assertEqual(self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)
        self.start()
        self.wait(lambda: self.heard.ends == 2)
        self.assertEqual(len(self.heard.finished), 1)

    def test_devices_are_told(self) -> None:
        self.logic.ask_devices()
        self.wait(lambda: self.heard.devices or self.heard.no_devices)
        self.assertEqual(self.heard.no_devices, [])
        self.assertEqual(self.heard.devices[0]["devices"][-1]["name"], "cpu")

    def test_model_that_is_not_there(self) -> None:
        self.logic.start(self.t1, None, model="no-such-model", device="cpu")
        join_inputs()
        self.wait(lambda: self.heard.ends)
        self.assertIn("no-such-model", self.heard.failed[0])

    def test_close_ends_the_process(self) -> None:
        import psutil

        self.start()
        self.wait(lambda: self.client.worker_pid is not None)
        pid, folder = self.client.worker_pid, Path(self.client._folder)
        self.logic.close()
        self.assertFalse(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        self.assertFalse(folder.exists())

    def test_worker_that_cannot_start(self) -> None:
        from NeonatalSegLib.engine import Client

        broken = Client(python=Path(self.folder.name) / f"no-python-{os.getpid()}")
        logic = SegmentationLogic(self.scene, lambda: broken)
        self.addCleanup(logic.close)
        heard = Heard(logic)
        logic.start(self.t1, None)
        join_inputs()
        logic.poll()
        logic.poll()
        self.assertEqual(len(heard.failed), 1)
        self.assertIn("could not be started", heard.failed[0])


if __name__ == "__main__":
    unittest.main()
