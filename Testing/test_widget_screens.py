"""Pictures of the panel in each state, made with the offscreen platform.

They go to the folder that NEONATALSEG_SCREENSHOTS names (``docs/images`` for the ones in the documentation), else into
a temporary one. A test can tell that nothing is cut and that states differ; whether it looks right, a person sees.
"""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from scripted_engine import HELLO, ScriptedEngine
from test_mrml_logic import add_volume

from NeonatalSegLib.models import find_model
from NeonatalSegLib.panel import State

WIDTH = 460


@unittest.skipIf(slicer_scene.in_slicer(), "photographed by hand in Slicer")
class ScreenTest(unittest.TestCase):
    def setUp(self) -> None:
        import slicer_qt

        slicer_qt.install()
        self.scene = slicer_scene.new_scene()
        self.engine = ScriptedEngine()
        self.widget = slicer_qt.make_widget(lambda: self.engine)
        self.addCleanup(self.widget.cleanup)
        self.widget.parent.show()
        named = os.environ.get("NEONATALSEG_SCREENSHOTS")
        if named:
            self.folder = Path(named)
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            temporary = tempfile.TemporaryDirectory()
            self.addCleanup(temporary.cleanup)
            self.folder = Path(temporary.name)

    def shoot(self, name: str) -> bytes:
        """Picture of the whole panel, as high as it needs to be."""
        import slicer

        parent = self.widget.parent
        slicer.app.processEvents()
        parent.resize(WIDTH, max(parent.minimumSizeHint().height(), parent.layout().heightForWidth(WIDTH), 100))
        slicer.app.processEvents()
        path = self.folder / f"panel-{name}.png"
        self.assertTrue(parent.grab().save(str(path)))
        self.no_text_is_cut()
        return path.read_bytes()

    def no_text_is_cut(self) -> None:
        """Every button and label that is shown has room for its text."""
        import qt

        for widget in self.widget.parent.findChildren(qt.QWidget):
            kind = widget.metaObject().className()
            if not widget.isVisible() or kind not in ("QPushButton", "QCheckBox", "QLabel"):
                continue
            needed = widget.fontMetrics().horizontalAdvance(widget.property("text"))
            if kind == "QLabel" and widget.property("wordWrap"):
                self.assertGreaterEqual(widget.height, widget.heightForWidth(widget.width), widget.objectName)
            else:
                self.assertGreaterEqual(widget.width, needed, widget.objectName)

    def poll_until(self, *states: State) -> None:
        from test_mrml_logic import join_inputs

        join_inputs()
        for _ in range(5):
            self.widget.controller.on_timer()
        self.assertIn(self.widget.controller.panel.state, states)

    def test_states(self) -> None:
        pictures: dict[str, bytes] = {}
        self.widget.enter()
        self.engine.hello.say("result", **told(HELLO))
        self.widget.controller.on_timer()
        pictures["no-input"] = self.shoot("no-input")
        add_volume(self.scene, "sub-01_T1w", False)
        add_volume(self.scene, "sub-01_T2w", True)
        self.widget.enter()
        pictures["idle"] = self.shoot("idle")
        self.widget.ui.segmentButton.click()
        self.poll_until(State.RUNNING)
        self.engine.last.say("progress", stage="network", fraction=0.62, seconds_left=7.0)
        self.poll_until(State.RUNNING)
        pictures["running"] = self.shoot("running")
        self.widget.ui.segmentButton.click()
        pictures["cancelling"] = self.shoot("cancelling")
        self.engine.last.say("cancelled", forced=False)
        self.poll_until(State.IDLE)
        self.widget.ui.segmentButton.click()
        self.poll_until(State.RUNNING)
        self.widget.logic.runner._run.started -= 24.0  # or the picture would promise a second
        self.engine.last.succeed(volumes_ml=VOLUMES, model_name="neonatal-t1t2")
        self.poll_until(State.DONE)
        pictures["done"] = self.shoot("done")
        self.widget.ui.segmentButton.click()
        self.poll_until(State.RUNNING)
        self.engine.last.say(
            "error",
            kind="user",
            message="The compute process stopped unexpectedly: it was ended by signal 9 (SIGKILL, as happens when "
            "memory runs out). It is started anew for the next request.",
        )
        self.poll_until(State.ERROR)
        pictures["error"] = self.shoot("error")
        self.widget.ui.advancedSection.collapsed = False
        pictures["advanced"] = self.shoot("advanced")
        self.assertEqual(len(set(pictures.values())), len(pictures), "two states look the same")


# A newborn's volumes of the usual size, for a picture that does not mislead.
VOLUMES = {
    "csf": 76.4,
    "cortical_gm": 151.2,
    "wm": 158.9,
    "ventricles": 9.3,
    "cerebellum": 25.1,
    "deep_gm": 28.7,
    "brainstem": 6.2,
    "hippocampus": 2.1,
}


def told(hello: dict[str, Any]) -> dict[str, Any]:
    """The hello of a computer without a graphics card, with the model that is shipped."""
    shipped = find_model()
    model = {"name": shipped.name, "description": shipped.description, "hash": shipped.hash}
    cpu = [device for device in hello["devices"] if device["name"] == "cpu"]
    return {**hello, "devices": cpu, "models": [model], "default_model": "neonatal-t1t2"}


if __name__ == "__main__":
    unittest.main()
