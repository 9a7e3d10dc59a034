"""The Fine-tune section and the store of models, and the section with the real compute process."""

from __future__ import annotations

import os
import sys
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from test_widget_tune import HAVE_TORCH, TINY, WAIT_S, TuneCase, add_candidate, make_study

from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.models.for_study import name_for_study
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
from NeonatalSegLib.mrml.finetune.charts import LOSS
from NeonatalSegLib.mrml.shared.compute import start_engine
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.panel.finetune_state import State


@unittest.skipUnless(HAVE_TORCH, "PyTorch and MONAI are not installed")
class StoreTest(TuneCase):
    def setUp(self) -> None:
        super().setUp()
        self.name = add_candidate()
        self.open()

    def test_accept_and_roll_back(self) -> None:
        self.parameters.model = DEFAULT_MODEL  # chosen by name: Accept takes over all the same, and says so
        self.tune_ui.acceptButton.click()
        self.assertEqual(store.current_name(), self.name)
        self.assertEqual(self.said("currentModelLabel"), self.name)
        self.assertIn(
            f"{self.name} is the current model now, in place of {DEFAULT_MODEL}", self.said("tuneMessageLabel")
        )
        self.assertEqual(self.ui.modelSelector.property("currentText"), self.name)
        self.assertEqual(self.run_to_request().fields["model"], None)  # the current one, whichever it is
        self.engine.last.succeed()
        self.spin(lambda: not self.panel.busy)
        self.assertFalse(self.tune_ui.acceptButton.isEnabled() or self.tune_ui.discardButton.isEnabled())
        self.assertEqual(self.start().fields["model"], self.name)
        self.end(self.engine.asked("finetune")[-1])
        self.tune_ui.rollBackButton.click()
        self.assertEqual((store.current_name(), store.status(self.name)), (DEFAULT_MODEL, "candidate"))
        self.assertIn(f"{DEFAULT_MODEL} is the current model again", self.said("tuneMessageLabel"))
        self.assertEqual(self.ui.modelSelector.property("currentText"), DEFAULT_MODEL)
        self.assertFalse(self.tune_ui.rollBackButton.isEnabled())

    def test_a_model_for_scans_like_these_becomes_its_studys(self) -> None:
        name = add_candidate("scanner")
        self.tune.read_store()
        self.tuning.choose_version(name)
        self.tune_ui.acceptButton.click()
        self.assertEqual(store.current_name(), DEFAULT_MODEL)
        self.assertEqual(find_model(Path(self.parameters.studyFolder)).name, name)
        self.assertIn(f"names {name} now", self.said("tuneMessageLabel"))
        self.assertIn(name, self.shown(self.ui.modelSelector))

    def test_what_the_open_study_names_is_neither_replaced_nor_removed_without_a_word(self) -> None:
        study, asked, answers = Path(self.parameters.studyFolder), [], [False, True, False]
        self.tune.store_buttons.confirm = lambda text: bool(asked.append(text)) or answers.pop(0)
        old, new = add_candidate("scanner"), add_candidate("scanner")
        name_for_study(study, find_model(old))
        self.tune.read_store()
        self.tuning.choose_version(new)
        self.tune_ui.acceptButton.click()
        self.assertEqual(find_model(study).name, old)
        self.assertIn(f"names the model {old} for its scans", asked[-1])
        self.tune_ui.acceptButton.click()
        self.assertEqual(find_model(study).name, new)
        self.tune_ui.acceptButton.click()  # it names this one already: no question
        self.assertEqual(len(asked), 2)
        self.tune_ui.discardButton.click()
        self.assertIn("names it for its scans", asked[-1])
        self.assertEqual(find_model(study).name, new)

    def test_discard_asks_first(self) -> None:
        answers, asked = iter([False, True]), []

        def confirm(text: str) -> bool:
            asked.append(text)
            return next(answers)

        self.tune.store_buttons.confirm = confirm
        self.parameters.model = self.name
        self.tune_ui.discardButton.click()
        self.assertEqual(store.status(self.name), "candidate")
        self.tune_ui.discardButton.click()
        self.assertIn("cannot be undone", asked[1])
        self.assertFalse((self.folder / "models" / self.name).exists())
        self.assertNotIn(self.name, self.shown(self.ui.modelSelector))
        self.assertEqual(self.parameters.model, "")
        self.assertIn(f"Segment, where {self.name} was chosen, uses {DEFAULT_MODEL}", self.said("tuneMessageLabel"))
        self.assertFalse(self.tune_ui.discardButton.isEnabled())

    def test_export_and_import_on_another_computer(self) -> None:
        self.tune.store_buttons.choose_folder = lambda title: str(self.folder)
        self.tune_ui.exportModelButton.click()
        file = self.folder / f"{self.name}.zip"
        self.assertTrue(file.is_file())
        self.assertIn(str(file), self.said("tuneMessageLabel"))
        with mock.patch.dict(os.environ, {"NEONATALSEG_MODELS": str(self.folder / "elsewhere")}):
            self.widget.enter()
            self.assertEqual(self.shown(self.tune_ui.versionSelector), ["none yet"])
            self.tune.store_buttons.choose_file = lambda title, kinds: str(file)
            self.tune_ui.importModelButton.click()
            self.assertEqual(store.status(self.name), "candidate")
            self.assertEqual(self.shown(self.tune_ui.versionSelector), [f"{self.name} (candidate)"])
            self.assertIn(f"The current model is still {DEFAULT_MODEL}", self.said("tuneMessageLabel"))
            self.assertEqual(self.tune_ui.scoresTable.item(8, 2).text(), "0.820")

    def test_dialogs_that_are_closed_change_nothing(self) -> None:
        before = self.said("tuneMessageLabel")
        self.tune.store_buttons.choose_folder = lambda title: ""
        self.tune.store_buttons.choose_file = lambda title, kinds: ""
        self.tune_ui.exportModelButton.click()
        self.tune_ui.importModelButton.click()
        self.assertEqual(self.said("tuneMessageLabel"), before)

    def test_a_file_that_is_no_model(self) -> None:
        file = self.folder / "holiday.zip"
        file.write_bytes(b"not a zip")
        self.tune.store_buttons.choose_file = lambda title, kinds: str(file)
        self.tune_ui.importModelButton.click()
        self.assertEqual(self.tuning.state, State.ERROR)
        self.assertIn("holiday.zip", self.said("tuneMessageLabel"))

    def test_an_accepted_model_that_is_gone_is_told(self) -> None:
        self.tune_ui.acceptButton.click()
        (self.folder / "models" / self.name / "models" / "model.pt").unlink()
        self.widget.enter()
        self.assertTrue(self.said("currentModelLabel").startswith(f"{DEFAULT_MODEL}\n"))
        self.assertIn(f"The accepted model {self.name} is missing", self.said("currentModelLabel"))

    def test_looking_at_another_version(self) -> None:
        second = add_candidate()
        self.widget.enter()
        self.tune_ui.versionSelector.setCurrentIndex(self.tune_ui.versionSelector.findData(second))
        self.assertIn(second, self.said("scoresLabel"))
        self.assertEqual(store.current_name(), DEFAULT_MODEL)


@unittest.skipUnless(HAVE_TORCH, "PyTorch and MONAI are not installed")
class RealEngineTest(TuneCase):
    """A tiny network of random weights, trained by the real compute process until Stop is clicked."""

    def setUp(self) -> None:
        super().setUp()
        save_model(build_network(TINY), TINY, self.folder / "models" / "tiny", description="Random weights")
        store.accept("tiny")
        self.widget.cleanup()
        self.scene = slicer_scene.new_scene()
        self.widget = slicer_qt.make_widget(start_engine)
        self.addCleanup(self.widget.cleanup)
        self.ui, self.panel = self.widget.ui, self.widget.controller.panel
        self.tune = self.widget.sections["FineTune"]
        self.tuning, self.tune_ui = self.tune.panel, self.tune.ui
        self.parameters = self.widget.logic.getParameterNode()

    def test_train_stop_accept_and_segment_with_it(self) -> None:
        study = make_study(self.folder / "study", self.newborn, done=5)
        self.parameters.studyFolder, self.parameters.device = str(study), "cpu"
        self.parameters.tuneSteps, self.parameters.tuneRehearsal = 100_000, False
        self.parameters.tuneStrategy = "shallow"
        self.widget.enter()
        self.tune_ui.fineTuneSection.collapsed = False
        self.spin(lambda: "% trained" in self.shown(self.tune_ui.strategySelector)[1], WAIT_S)
        self.tune_ui.startButton.click()
        self.spin(lambda: not self.tuning.busy or len(self.tune.chart.points(LOSS)) > 2, WAIT_S)
        self.assertEqual(self.tuning.state, State.RUNNING, self.said("tuneMessageLabel"))
        self.tune_ui.startButton.click()
        self.spin(lambda: not self.tuning.busy, WAIT_S)
        self.assertEqual(self.tuning.state, State.CANDIDATE, self.said("tuneMessageLabel"))
        self.assertIn("Stopped early; the best so far was taken. tiny-ft001 is ready", self.said("tuneMessageLabel"))
        self.assertEqual(store.status("tiny-ft001"), "candidate")
        self.assertEqual(self.tune_ui.scoresTable.property("rowCount"), 9)
        self.assertGreater(len(self.tune.chart.points(LOSS)), 2)
        self.tune_ui.acceptButton.click()
        self.assertEqual(self.ui.modelSelector.property("currentText"), "tiny-ft001")
        self.assertEqual(store.current_name(), "tiny-ft001")
