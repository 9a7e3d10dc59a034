"""A widget in an empty scene, for the tests of the panel."""

from __future__ import annotations

import sys
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from scripted_engine import ScriptedEngine
from test_mrml_logic import add_volume

REPLACED = "NeonatalSegLib.mrml.shared.dependencies.to_segment"  # for mock.patch


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
