"""The Fine-tune section with its real .ui file, a real study and a real model store; training itself is scripted,
except in the last class, where the real compute process trains a tiny network."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene
from scripted_engine import HELLO
from widget_case import REPLACED, WidgetCase

from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.annotation.session import AnnotationSession, create_study
from NeonatalSegLib.annotation.slice_selection import ScanToPlan
from NeonatalSegLib.annotation.study import StudyScan
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.models import store
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
from NeonatalSegLib.mrml.finetune.charts import DICE, LOSS
from NeonatalSegLib.mrml.shared import dependencies
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.panel.finetune_state import State
from NeonatalSegLib.scans.grid import Grid, plane
from NeonatalSegLib.tissues import PHYSIOLOGICAL

HAVE_TORCH = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("monai") is not None
WAIT_S = 240.0  # generous: two busy cores
TINY = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=1)
SCORES: dict[str, Any] = {
    "strategy": "full",
    "before": {t.key: 0.70 for t in PHYSIOLOGICAL},
    "after": {t.key: 0.82 for t in PHYSIOLOGICAL},
    "before_mean": 0.70,
    "after_mean": 0.82,
}
STRATEGIES = [
    {"name": name, "text": f"what {name} trains", "trained": trained, "total": 5_630_000, "percent": trained / 56_300}
    for name, trained in (("none", 0), ("shallow", 3_100_000), ("full", 5_630_000))
]


def make_study(folder: Path, newborn: Phantom, done: int, planned: int = 8) -> Path:
    """Study of one newborn with ``planned`` axial slices, the first ``done`` of them completed; returns its folder."""
    files = {}
    for key in ("t1", "t2"):
        files[key] = folder.parent / f"newborn_{key}.nii.gz"
        sitk.WriteImage(getattr(newborn, key), str(files[key]))
    labels = sitk.GetArrayFromImage(newborn.labels)
    scan = ScanToPlan("newborn", Grid.of(newborn.t2), labels > 0)
    plan = plan_slices([scan], BudgetSettings(planned, "slices"))
    create_study(folder, plan, [StudyScan("newborn", files["t1"], files["t2"], 40.0)])
    complete(folder, newborn, done)
    return folder


def complete(folder: Path, newborn: Phantom, number: int) -> None:
    """Complete the next ``number`` slices with the true labels."""
    labels = sitk.GetArrayFromImage(newborn.labels)
    with AnnotationSession.open(folder, "Anna") as project:
        for _ in range(number):
            key = project.next_key()
            assert key is not None
            planned = project.item(key).slice
            project.start(key)
            grid = project.plan.grids[planned.scan]
            project.complete(key, labels[plane(grid, planned.axis, planned.index)], seconds=30.0)


def add_candidate(keep: str = "everything") -> str:
    """A candidate in the store as a fine-tuning leaves it; returns its name."""
    lineage = {
        **SCORES,
        "settings": {"keep": keep},
        "slices": ["newborn/axial/3"],
        "held_out_slices": ["newborn/axial/5"],
    }
    return store.add_version(build_network(TINY), TINY, find_model(), lineage).name


class TuneCase(WidgetCase):
    """The section unfolded, over a study of which three of eight slices are completed."""

    newborn: Phantom

    @classmethod
    def setUpClass(cls) -> None:
        cls.newborn = draw_newborn(40.0, seed=0, spacing_mm=3.0)

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        patch = mock.patch.dict(os.environ, {"NEONATALSEG_MODELS": str(self.folder / "models")})
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()
        self.tune = self.widget.sections["FineTune"]
        self.tuning, self.tune_ui = self.tune.panel, self.tune.ui
        self.parameters = self.widget.logic.getParameterNode()

    def open(self, done: int = 3) -> Path:
        """Open the module and the section, with a study; returns the study's folder."""
        study = make_study(self.folder / "study", self.newborn, done)
        self.parameters.studyFolder = str(study)
        self.load_scan()
        self.engine.hello.say("result", **HELLO)
        self.spin(lambda: bool(self.panel.devices))
        self.tune_ui.fineTuneSection.collapsed = False
        return study

    def start(self) -> Any:
        self.tune_ui.startButton.click()
        self.assertEqual(self.tuning.state, State.RUNNING, self.said("tuneMessageLabel"))
        return self.engine.asked("finetune")[-1]

    def end(self, request: Any, **fields: Any) -> None:
        """The result of a request, as the operation gives it."""
        history = [[0, 1.2, 0.70], [50, 0.6, None], [100, 0.4, 0.82]]
        told = {**SCORES, "model": None, "held_out_slices": 1, "history": history, "warnings": [], "seconds": 100.0}
        request.say("result", **{**told, **fields})
        self.spin(lambda: not self.tuning.busy)

    def said(self, name: str) -> str:
        return str(getattr(self.tune_ui, name).property("text"))

    def shown(self, combo: Any) -> list[str]:
        return [combo.itemText(i) for i in range(combo.property("count"))]

    def charts(self) -> int:
        return int(self.scene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode"))


class StudyTest(TuneCase):
    def test_folded_it_asks_for_nothing(self) -> None:
        self.load_scan()
        self.engine.hello.say("result", **HELLO)
        self.spin(lambda: bool(self.panel.devices))
        self.assertEqual(self.engine.asked("strategies"), [])
        self.tune_ui.fineTuneSection.collapsed = False
        (request,) = self.engine.asked("strategies")
        self.assertEqual(request.fields, {"model": DEFAULT_MODEL})

    def test_strategies_with_what_they_train(self) -> None:
        self.open()
        self.assertEqual(len(self.shown(self.tune_ui.strategySelector)), 6)  # known before they are counted
        self.engine.asked("strategies")[0].say("result", model_name=DEFAULT_MODEL, strategies=STRATEGIES)
        self.spin(lambda: "%" in self.shown(self.tune_ui.strategySelector)[0])
        labels = self.shown(self.tune_ui.strategySelector)
        self.assertIn("shallow: 55.1 % trained", labels)
        self.tune_ui.strategySelector.setCurrentIndex(1)
        self.assertEqual(self.parameters.tuneStrategy, "shallow")
        self.assertEqual(self.said("strategyLabel"), "Trains what shallow trains: 3.10 of 5.63 million parameters.")

    def test_no_study(self) -> None:
        self.widget.enter()
        self.tune_ui.fineTuneSection.collapsed = False
        self.assertEqual(self.said("studyLabel"), "none chosen")
        self.assertFalse(self.tune_ui.startButton.isEnabled())
        self.assertIn("Annotate section", self.tune_ui.startButton.property("toolTip"))
        self.assertEqual(self.said("currentModelLabel"), DEFAULT_MODEL)

    def test_completed_slices_are_counted_anew(self) -> None:
        study = self.open(done=0)
        self.assertEqual(self.said("studyLabel"), "study: 0 of 8 slices completed")
        self.assertIn("No slice", self.said("tuneMessageLabel"))
        complete(study, self.newborn, 2)
        self.widget.enter()
        self.assertEqual(self.said("studyLabel"), "study: 2 of 8 slices completed")
        self.assertTrue(self.tune_ui.startButton.isEnabled())
        complete(study, self.newborn, 1)
        self.start()  # and at the latest here
        self.assertEqual(self.said("studyLabel"), "study: 3 of 8 slices completed")

    @unittest.skipIf(slicer_scene.in_slicer(), "the Annotate section's editor is a stand-in's here")
    def test_a_slice_done_in_the_annotate_section_counts_at_once(self) -> None:
        study = self.open()
        annotate = self.widget.sections["Annotate"]
        annotate.ui.raterEdit.setText("Anna")
        annotate.choose_folder = lambda title: str(study)
        annotate.ui.openButton.click()
        annotate.ui.doneButton.click()
        self.assertEqual(self.said("studyLabel"), "study: 4 of 8 slices completed")

    def test_a_folder_that_is_no_study(self) -> None:
        self.open()
        self.parameters.studyFolder = str(self.folder)
        self.assertTrue(self.said("tuneMessageLabel").startswith("Notice: "))
        self.assertIn(str(self.folder), self.said("tuneMessageLabel"))
        self.assertFalse(self.tune_ui.startButton.isEnabled())
        self.parameters.studyFolder = ""
        self.assertEqual(self.said("studyLabel"), "none chosen")

    def test_choices_come_back_with_the_scene(self) -> None:
        self.open()
        self.parameters.tuneStrategy, self.parameters.tuneSteps = "deep", 300
        self.parameters.tuneRehearsal = False
        self.assertEqual(self.tune_ui.stepsBox.value, 300)
        self.assertFalse(self.tune_ui.rehearsalBox.isChecked())
        self.tune_ui.stepsBox.setValue(150)
        self.assertEqual(self.parameters.tuneSteps, 150)
        self.scene.SetSaveToXMLString(1)
        self.scene.Commit()
        xml = self.scene.GetSceneXMLString()
        self.scene.Clear(False)
        self.scene.SetLoadFromXMLString(1)
        self.scene.SetSceneXMLString(xml)
        self.scene.Import()
        self.assertEqual((self.tuning.strategy, self.tune_ui.stepsBox.value), ("deep", 150))
        self.assertEqual(self.said("studyLabel"), "study: 3 of 8 slices completed")

    def test_packages_are_asked_for_at_the_first_start(self) -> None:
        self.open()
        asked: list[str] = []
        self.tune.confirm = lambda text: bool(asked.append(text))
        needed = [dependencies.Requirement("made_up_package", "made-up-package>=1", "Made-up package, about 3 MB")]
        with mock.patch(REPLACED.replace("to_segment", "to_finetune"), lambda: needed):
            self.tune_ui.startButton.click()
        self.assertIn("Made-up package, about 3 MB", asked[0])
        self.assertIn("Nothing was installed", self.said("tuneMessageLabel"))
        self.assertEqual(self.engine.asked("finetune"), [])


class RunTest(TuneCase):
    def test_what_is_asked_for(self) -> None:
        study = self.open()
        fields = self.start().fields
        self.assertEqual(
            fields,
            {"study": str(study), "raters": None, "model": DEFAULT_MODEL, "device": "auto",
             "settings": {"strategy": "full", "keep": "everything"}},
        )  # fmt: skip

    def test_advanced_settings_and_the_device_of_the_segment_section(self) -> None:
        self.open()
        self.ui.deviceSelector.setCurrentIndex(self.ui.deviceSelector.findData("cpu"))
        self.tune_ui.stepsBox.setValue(40)
        self.tune_ui.rehearsalBox.setChecked(False)
        self.tune_ui.strategySelector.setCurrentIndex(self.tune_ui.strategySelector.findData("shallow"))
        self.tune_ui.keepSelector.setCurrentIndex(self.tune_ui.keepSelector.findData("scanner"))
        fields = self.start().fields
        self.assertEqual(fields["settings"], {"strategy": "shallow", "keep": "scanner", "steps": 40, "rehearsal": 0.0})
        self.assertEqual(fields["device"], "cpu")

    def test_progress_and_live_plot(self) -> None:
        self.open()
        request = self.start()
        self.assertFalse(self.tune_ui.strategySelector.isEnabled())
        for step, loss, dice in ((1, 1.0, 0.5), (2, 0.8, None)):
            request.say("progress", stage="train", fraction=0.25, seconds_left=60.0, step=step, steps=8, loss=loss,
                        held_out_dsc=dice)  # fmt: skip
        self.spin(lambda: self.tune_ui.tuneProgressBar.property("value") == 25)
        self.assertEqual(
            self.said("tuneProgressLabel"), "Training, step 2 of 8; loss 0.800; held-out DSC 0.500; 1 min left"
        )
        self.assertEqual(self.tune.chart.points(LOSS), [(1.0, 1.0), (2.0, 0.8)])
        self.assertEqual(self.tune.chart.points(DICE), [(1.0, 0.5)])
        # memory ran out: from the beginning with smaller patches
        request.say("progress", stage="train", fraction=0.1, step=1, steps=8, loss=0.9, held_out_dsc=None)
        self.spin(lambda: self.tune.chart.points(LOSS) == [(1.0, 0.9)])
        self.end(request)
        self.assertEqual(self.tune.chart.points(LOSS), [(0.0, 1.2), (50.0, 0.6), (100.0, 0.4)])
        self.assertEqual(self.tune.chart.points(DICE), [(0.0, 0.70), (100.0, 0.82)])
        self.assertEqual(self.charts(), 1)
        self.engine.asked("strategies")[0].say("result", strategies=STRATEGIES)
        self.spin(lambda: not self.widget.sections["FineTune"].timer.isActive())

    @unittest.skipUnless(HAVE_TORCH, "PyTorch and MONAI are not installed")
    def test_a_candidate_is_shown_and_nothing_is_switched(self) -> None:
        self.open()
        self.widget.logic.getParameterNode().model = DEFAULT_MODEL
        request = self.start()
        name = add_candidate()
        self.end(request, model=name)
        self.assertEqual(self.tuning.state, State.CANDIDATE)
        self.assertIn(f"{name} is ready", self.said("tuneMessageLabel"))
        self.assertEqual(self.said("currentModelLabel"), DEFAULT_MODEL)
        self.assertEqual((store.current_name(), store.status(name)), (DEFAULT_MODEL, "candidate"))
        table = self.tune_ui.scoresTable
        self.assertEqual(table.property("rowCount"), 9)
        self.assertEqual([table.item(8, column).text() for column in range(4)], ["Mean", "0.700", "0.820", "+0.120"])
        self.assertIn(name, self.shown(self.ui.modelSelector))
        self.assertEqual(self.ui.modelSelector.property("currentText"), DEFAULT_MODEL)
        self.assertEqual(self.parameters.model, DEFAULT_MODEL)

    def test_a_full_temporary_folder_is_no_run(self) -> None:
        self.open()
        self.engine.disk_full = True
        self.tune_ui.startButton.click()
        self.assertEqual(self.tuning.state, State.ERROR)
        self.assertIn("No space left", self.said("tuneMessageLabel"))
        self.assertTrue(self.ui.segmentButton.isEnabled(), "the compute process is free")
        self.engine.disk_full = False
        self.end(self.start(), strategy="none")

    def test_strategy_that_trains_nothing(self) -> None:
        self.open()
        self.parameters.tuneStrategy = "none"
        self.end(self.start(), strategy="none")
        self.assertIn("Nothing was trained", self.said("tuneMessageLabel"))
        self.assertEqual(self.tune_ui.scoresTable.property("rowCount"), 9)
        self.assertFalse(self.tune_ui.acceptButton.isEnabled())

    def test_stop_before_the_first_step(self) -> None:
        self.open()
        request = self.start()
        self.assertEqual(self.said("startButton"), "Stop")
        self.tune_ui.startButton.click()
        self.assertEqual((request.stop_asked, request.cancel_asked), (True, False))
        self.assertFalse(self.tune_ui.startButton.isEnabled())
        self.end(request, stopped_early=True)
        self.assertIn("Stopped before the first step", self.said("tuneMessageLabel"))
        self.assertEqual(self.said("startButton"), "Start")

    def test_error_and_again(self) -> None:
        self.open()
        request = self.start()
        request.say("error", kind="user", message="Only one class was annotated: annotate others as well.")
        self.spin(lambda: self.tuning.state is State.ERROR)
        self.assertTrue(self.said("tuneMessageLabel").startswith("Error: Only one class"))
        self.assertTrue(request.released)
        self.start()

    def test_segment_says_that_the_compute_process_is_busy(self) -> None:
        self.open()
        self.assertTrue(self.ui.segmentButton.isEnabled())
        request = self.start()
        self.assertFalse(self.ui.segmentButton.isEnabled())
        self.assertIn("A fine-tuning is under way", self.text("messageLabel"))
        self.assertIn("A fine-tuning is under way", self.ui.segmentButton.property("toolTip"))
        self.end(request)
        self.assertTrue(self.ui.segmentButton.isEnabled())
        self.assertEqual(self.text("messageLabel"), "")

    def test_no_fine_tuning_while_a_segmentation_runs(self) -> None:
        self.open()
        request = self.run_to_request()
        self.assertFalse(self.tune_ui.startButton.isEnabled())
        self.assertIn("A segmentation is under way", self.said("tuneMessageLabel"))
        request.succeed()
        self.spin(lambda: not self.panel.busy)
        self.assertTrue(self.tune_ui.startButton.isEnabled())

    def test_scene_closed_while_running(self) -> None:
        self.open()
        request = self.start()
        request.say("progress", stage="train", fraction=0.5, step=1, steps=2, loss=1.0, held_out_dsc=None)
        self.spin(lambda: self.charts() == 1)
        self.scene.Clear(False)
        self.assertTrue(request.cancel_asked)
        self.assertEqual((self.tuning.state, self.charts()), (State.NO_STUDY, 0))
        self.assertIn("stopped and discarded", self.said("tuneMessageLabel"))
        self.load_scan()
        self.assertFalse(self.ui.segmentButton.isEnabled())  # the process has not said yet that it is free
        request.say("cancelled", forced=False)
        self.spin(lambda: request.released)
        self.assertTrue(self.ui.segmentButton.isEnabled())
        self.assertEqual((self.charts(), self.engine.files()), (0, []))

    @unittest.skipUnless(HAVE_TORCH, "PyTorch and MONAI are not installed")
    def test_a_model_that_was_ready_when_the_scene_closed_is_discarded(self) -> None:
        self.open()
        request = self.start()
        name = add_candidate()
        request.say("result", **{**SCORES, "model": name, "history": [], "held_out_slices": 1})
        self.scene.Clear(False)
        self.spin(lambda: request.released)
        self.assertEqual(list((self.folder / "models").glob("*/configs")), [])

    def test_module_closed_while_running(self) -> None:
        self.open()
        request = self.start()
        request.say("progress", stage="train", fraction=0.5, step=1, steps=2, loss=1.0, held_out_dsc=None)
        self.spin(lambda: self.charts() == 1)
        self.widget.cleanup()
        self.assertTrue(request.cancel_asked and self.engine.closed)
        self.assertEqual((self.charts(), self.tune.timer.isActive(), self.tune.Observations), (0, False, []))
        self.scene.Clear(False)  # nobody listens any more


if __name__ == "__main__":
    unittest.main()
