"""Pictures of the panel in each state, made with the offscreen platform.

They go to the folder that NEONATALSEG_SCREENSHOTS names (``docs/images`` for the ones in the documentation), else into
a temporary one. A test can tell that nothing is cut and that states differ; whether it looks right, a person sees.
"""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from scripted_engine import HELLO
from small_studies import make_study
from test_mrml_logic import add_volume
from widget_case import WidgetCase

from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.models.scores import Scores
from NeonatalSegLib.models.versions import Version
from NeonatalSegLib.networks.strategies import STRATEGIES as TEXTS
from NeonatalSegLib.panel.segment_state import State
from NeonatalSegLib.tissues import PHYSIOLOGICAL

WIDTH = 460
KEYS = [tissue.key for tissue in PHYSIOLOGICAL]


@unittest.skipIf(slicer_scene.in_slicer(), "photographed by hand in Slicer")
class ScreenTest(WidgetCase):
    def setUp(self) -> None:
        super().setUp()
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
        import qt
        import slicer

        parent = self.widget.parent
        for box in parent.findChildren(qt.QWidget):
            if hasattr(box, "_fold") and box.collapsed:
                box._fold()  # CTK keeps hidden what is shown in a folded box
        slicer.app.processEvents()
        parent.resize(WIDTH, max(parent.minimumSizeHint().height(), parent.layout().heightForWidth(WIDTH), 100))
        slicer.app.processEvents()
        self.assertEqual(parent.width, WIDTH, f"a text makes the panel wider than it is: {name}")
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
            needed = max(widget.fontMetrics().horizontalAdvance(line) for line in widget.property("text").split("\n"))
            if kind == "QLabel" and widget.property("wordWrap"):
                self.assertGreaterEqual(widget.height, widget.heightForWidth(widget.width), widget.objectName)
                continue
            if kind == "QCheckBox":  # the box itself needs room as well
                needed = widget.minimumSizeHint().width()
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
        self.engine.last.succeed(volumes_ml=VOLUMES, model_name="neonatal-v2")
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

    def test_annotate(self) -> None:
        """Before a study, while one is being made, and at work. The Segment Editor's part is a stand-in's."""
        section, folder = self.widget.sections["Annotate"], tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        study = make_study(Path(folder.name) / "sub-01", "LAS")
        ui = section.ui
        section.choose_folder = lambda title: str(study)
        self.widget.enter()
        for other in (self.widget.ui.scanSection, self.widget.sections["FineTune"].ui.fineTuneSection):
            other.parentWidget().hide()
        ui.annotateSection.collapsed = False
        add_volume(self.scene, "sub-01_T2w", True)
        self.widget.enter()
        ui.raterEdit.setText("Anna")
        pictures = {self.shoot("annotate-new")}
        section.panel.make()
        section.panel.progress("network", 0.62, 7.0)
        pictures.add(self.shoot("annotate-making"))
        section.panel.made()
        ui.openButton.click()
        section.panel.clock.start(412.0)
        ui.doneButton.click()
        ui.noteEdit.setText("motion")
        ui.flagButton.click()
        pictures.add(self.shoot("annotate"))
        ui.doneButton.click()
        ui.doneButton.click()
        pictures.add(self.shoot("annotate-all-done"))
        self.assertEqual(len(pictures), 4, "two states look the same")

    def test_fine_tune(self) -> None:
        """Nothing to learn from, while training, with a candidate to decide about, and after it was accepted."""
        section = self.widget.sections["FineTune"]
        self.widget.enter()
        self.widget.ui.resultSection.collapsed = True
        self.engine.hello.say("result", **told(HELLO))
        self.widget.controller.on_timer()
        section.ui.fineTuneSection.collapsed = False
        pictures = {self.shoot("fine-tune-no-study")}
        section.panel.set_study("preterm-2026", 11, 33)
        self.engine.asked("strategies")[0].say("result", strategies=STRATEGIES)
        section.on_timer()
        self.assertTrue(section.panel.start())
        step = {"step": 100, "steps": 200, "loss": 0.387, "held_out_dsc": 0.781}
        section.panel.progress({"stage": "train", "fraction": 0.475, "seconds_left": 130.0, **step})
        pictures.add(self.shoot("fine-tune-running"))
        new = Version("neonatal-v2-ft001", "candidate", "full", "neonatal-v2", Scores.of(SCORES))
        section.panel.set_store("neonatal-v2", [new])
        section.panel.finished(
            {**SCORES, "model": new.name, "held_out_slices": 2, "seconds": 246.0, "device": "the CPU"}
        )
        pictures.add(self.shoot("fine-tune-candidate"))
        section.panel.set_store(new.name, [replace(new, state="accepted")], "neonatal-v2")
        self.widget.logic.models = {new.name: "neonatal-v2 after fine-tuning (full) on 11 slices of 1 scan."}
        self.widget.logic.models_changed.emit()
        section.panel.notice(f"{new.name} is the current model now, in place of neonatal-v2; Segment uses it.")
        pictures.add(self.shoot("fine-tune-accepted"))
        self.assertEqual(len(pictures), 4, "two states look the same")


# Made-up figures, for pictures.
SCORES = {
    "before": dict(zip(KEYS, (0.71, 0.74, 0.79, 0.66, 0.88, 0.83, 0.85, 0.58), strict=True)),
    "after": dict(zip(KEYS, (0.80, 0.83, 0.86, 0.79, 0.92, 0.88, 0.89, 0.70), strict=True)),
    "before_mean": 0.755,
    "after_mean": 0.834,
    "source_before": 1.0,
    "source_after": 0.993,
}
STRATEGIES = [  # the counts of the shipped model
    {"name": name, "text": text, "trained": trained, "total": 5_692_254, "percent": trained / 56_922.54}
    for (name, text), trained in zip(
        TEXTS.items(), (0, 4_951_764, 5_517_652, 5_659_284, 5_692_254, 5_692_254), strict=True
    )
]

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
    return {**hello, "devices": cpu, "models": [model], "default_model": "neonatal-v2"}


if __name__ == "__main__":
    unittest.main()
