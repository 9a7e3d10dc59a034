"""Between the widgets of the Fine-tune section, its state machine, the compute process and the model store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.registry import current_model
from NeonatalSegLib.models.versions import list_versions
from NeonatalSegLib.mrml.finetune import view as tune_view
from NeonatalSegLib.mrml.finetune.charts import FineTuneChart
from NeonatalSegLib.mrml.finetune.store_buttons import StoreButtons
from NeonatalSegLib.mrml.shared import choices, dependencies, drawing
from NeonatalSegLib.mrml.shared.engine_task import EngineTask
from NeonatalSegLib.mrml.shared.host import Host
from NeonatalSegLib.mrml.shared.slot import slot
from NeonatalSegLib.panel.finetune_state import FineTuneState, Strategy
from NeonatalSegLib.panel.finetune_view import view_of

DOING = "A fine-tuning"
DECLINED = "Nothing was installed. Fine-tuning needs PyTorch."


class FineTuneController(VTKObservationMixin):
    """Ties the section to the rest. The model that is trained further is the current one of the store.

    Args:
        ui: the widgets of FineTune.ui by name. host: what the module file gives to its sections.
    """

    def __init__(self, ui: Any, host: Host) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.host, self.panel = ui, host, FineTuneState()
        self.confirm = host.confirm
        self._folder = ""
        self.store_buttons = StoreButtons(
            ui, host, self.panel, self.read_store, self._use_default, lambda: self._folder
        )
        self.chart = FineTuneChart(slicer.mrmlScene)
        self.timer = host.make_timer()
        self.parameters: Any = None
        self._gui_tag: Any = None
        self._run: EngineTask | None = None
        self._counting: EngineTask | None = None
        self._left_over: list[EngineTask] = []
        self._counted_for, self._last_step, self._plot_shown = "", -1, False
        self._plot_wanted = True
        self._connect()
        self.follow_scene()
        self.draw()

    def _connect(self) -> None:
        self.timer.timeout.connect(self.on_timer)
        self.ui.fineTuneSection.contentsCollapsed.connect(self.refresh)
        self.ui.strategySelector.currentIndexChanged.connect(self.on_strategy_chosen)
        self.ui.keepSelector.currentIndexChanged.connect(self.on_keep_chosen)
        self.ui.versionSelector.currentIndexChanged.connect(self.on_version_chosen)
        self.ui.startButton.clicked.connect(self.on_start_button)
        self.host.logic.runner.turn.changed.connect(self.on_turn)
        self.host.logic.slices_changed.connect(self.on_slices_changed)
        self.host.logic.runner.devices_known.connect(self.on_devices_known)
        self.panel.changed.connect(self.draw)

    def draw(self) -> None:
        """Draw the state machine's view, and tell the other sections whether the compute process is free."""
        tune_view.draw(self.ui, view_of(self.panel), self.host.make_item)
        self.host.logic.runner.turn.follow(DOING, self.panel.busy or bool(self._left_over))

    # The section's life

    def enter(self) -> None:
        """The module was opened: models and slices may have changed meanwhile."""
        self.refresh()

    def exit(self) -> None:
        """The user goes to another module: what runs goes on."""

    def follow_scene(self) -> None:
        """Take the parameters that the first section follows."""
        self._set_parameters(self.host.panel.parameters)

    def scene_closes(self) -> None:
        """Stop and discard what runs; the chart goes with the scene."""
        self._abandon()
        self.chart.hide()
        self._set_parameters(None)
        self.panel.scene_closed()

    def node_removed(self) -> None:
        """Nothing of this section hangs on a node: a chart that was deleted is made again."""

    def close(self) -> None:
        """The module is closed: stop, discard, let go of everything."""
        self.timer.stop()
        self._abandon()
        self._sweep()
        self.panel.changed.disconnect()
        self.host.logic.runner.turn.changed.disconnect(self.on_turn)
        self.host.logic.slices_changed.disconnect(self.on_slices_changed)
        self.host.logic.runner.devices_known.disconnect(self.on_devices_known)
        self._set_parameters(None)
        self.removeObservers()
        self.chart.remove()

    def _set_parameters(self, parameters: Any) -> None:
        if parameters is self.parameters:
            return
        if self.parameters is not None:
            self.parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.on_parameters_changed)
        self.parameters = parameters
        if parameters is not None:
            tied = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
            self._gui_tag = parameters.connectParametersToGui({name: tied[name] for name in tied if name})
            self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.on_parameters_changed)
            self.refresh()
            self.on_parameters_changed()

    def on_parameters_changed(self, caller: Any = None, event: Any = None) -> None:
        """A choice has changed: by the user, by the Annotate section, or because a scene was loaded."""
        self.panel.choose_strategy(self.parameters.tuneStrategy)
        self.panel.choose_keep(self.parameters.tuneKeep)
        if self.parameters.studyFolder != self._folder:
            self.read_study()
        wanted = bool(self.parameters.tunePlot)
        if wanted != self._plot_wanted:
            self._plot_wanted = wanted
            if wanted:
                self._show_plot()
            else:
                self._hide_plot()

    # What is there

    @slot
    def refresh(self) -> None:
        """Read the study and the model store, where the section is open."""
        if self.ui.fineTuneSection.property("collapsed"):
            return
        self.read_study()
        self.read_store()
        self.draw()  # unfolded, everything was shown

    def on_slices_changed(self) -> None:
        """A slice was completed or reopened in the Annotate section."""
        if not self.ui.fineTuneSection.property("collapsed"):
            self.read_study()

    def read_study(self) -> None:
        """How many slices of the study are completed."""
        self._folder = folder = self.parameters.studyFolder if self.parameters is not None else ""
        if not folder:
            self.panel.set_study("")
            return
        try:
            self.panel.set_study(Path(folder).name, *choices.completed_slices(folder))
        except (NeonatalSegError, OSError) as error:  # a network drive may be gone
            self.panel.set_study(Path(folder).name, refusal=str(error))

    def read_store(self) -> None:
        """Which models there are, and which is current; the Segment section's list follows."""
        name, warnings = current_model()
        self.panel.set_store(name, list_versions(), store.previous_name() or "", warnings)
        known = choices.known_models()
        if list(known.items()) != list(self.host.logic.models.items()):
            self.host.logic.models = known
            self.host.logic.models_changed.emit()
        self.count_parameters()

    def on_devices_known(self, hello: Any) -> None:
        """The compute process is up: it can count now."""
        if not self.ui.fineTuneSection.property("collapsed"):
            self.count_parameters()

    def count_parameters(self) -> None:
        """Ask what each strategy trains in the current model, where that is not known and the process is up."""
        name = self.panel.current
        idle = self._counting is None and not self.panel.busy and self.host.panel.panel.devices
        if idle and name and name != self._counted_for:
            self._counting = EngineTask(
                self.host.logic.runner.engine().request("strategies", model=name),
                on_result=self._on_counted,
                on_error=lambda message, fields: self._on_not_counted(),
                on_cancelled=self._on_not_counted,
            )
            self._counted_for = name
            self.timer.start()

    def _on_counted(self, fields: dict[str, Any]) -> None:
        keys = ("name", "text", "trained", "total", "percent")
        self.panel.set_strategies([Strategy(*(entry[key] for key in keys)) for entry in fields.get("strategies", [])])

    def _on_not_counted(self) -> None:
        """What is wrong with the model is told when it is used."""
        self._counted_for = ""

    def on_turn(self) -> None:
        """Another section has begun or ended something in the compute process."""
        self.panel.set_occupied(self.host.logic.runner.turn.why_not(DOING))

    @slot
    def on_strategy_chosen(self) -> None:
        """The user chooses a strategy."""
        if self.parameters is not None and (name := drawing.chosen(self.ui.strategySelector)):
            self.parameters.tuneStrategy = name

    @slot
    def on_keep_chosen(self) -> None:
        """The user chooses what the new model is to be good for."""
        if self.parameters is not None and (name := drawing.chosen(self.ui.keepSelector)):
            self.parameters.tuneKeep = name

    @slot
    def on_version_chosen(self) -> None:
        """The user chooses one of the fine-tuned models, to look at its scores; nothing else changes."""
        self.panel.choose_version(drawing.chosen(self.ui.versionSelector))

    # Training

    @slot
    def on_start_button(self) -> None:
        """Start; while running, stop and keep the best so far."""
        if self.panel.busy:
            self.panel.stop()
            if self._run is not None:
                self._run.stop()
            return
        if not dependencies.ensure(self.confirm, finetuning=True, say=self.panel.notice):
            self.panel.notice(_(DECLINED), "warning")
            return
        self.host.panel.ask_devices()
        self.read_study()
        self.read_store()
        if not self.panel.start():
            return
        try:
            self._begin()
        except Exception:
            self.panel.ended("The fine-tuning could not be started.")
            raise

    def _begin(self) -> None:
        """Ask the compute process for it, with all that is chosen."""
        self._last_step, self._plot_shown = -1, False
        self.chart.start(f"Fine-tuning of {self.panel.current}, strategy {self.panel.strategy}")
        device = choices.usable_device(self.parameters.device, self.host.panel.panel.devices)
        request = self.host.logic.runner.engine().request(
            "finetune",
            study=self.parameters.studyFolder,
            raters=None,
            model=self.panel.current,
            settings=self._settings(),
            device=device,
        )
        self._run = EngineTask(
            request,
            on_progress=self._on_progress,
            on_result=self._on_result,
            on_error=lambda message, fields: self.panel.ended(message),
            on_cancelled=lambda: self.panel.cancelled(_("The fine-tuning was stopped and discarded.")),
        )
        self.timer.start()

    def _settings(self) -> dict[str, Any]:
        """Fields of FineTuningSettings; what is automatic is left out."""
        settings: dict[str, Any] = {"strategy": self.panel.strategy, "keep": self.panel.keep}
        if self.parameters.tuneSteps:
            settings["steps"] = self.parameters.tuneSteps
        if not self.parameters.tuneRehearsal:
            settings["rehearsal"] = 0.0
        return settings

    @slot
    def on_timer(self) -> None:
        """Ten times a second while something is under way."""
        try:
            if self._counting is not None and self._counting.poll():
                self._counting = None
            if self._run is not None and self._run.poll():
                self._run = None
                self._hide_plot()
            self._sweep()
        except Exception:
            if self.panel.busy:
                self.panel.ended("The fine-tuning was stopped after an error.")
            self._abandon()  # or the next click would find it running for ever
            raise
        if self._run is None and self._counting is None and not self._left_over:
            self.timer.stop()

    def _on_progress(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self._plot(steps)
        held = [step["held_out_dsc"] for step in steps if step.get("held_out_dsc") is not None]
        self.panel.progress({**steps[-1], **({"held_out_dsc": held[-1]} if held else {})})

    def _on_result(self, fields: dict[str, Any]) -> None:
        self._run = None
        if history := fields.get("history"):
            self.chart.restart()
            self.chart.add([tuple(point) for point in history])
        self.read_store()
        self.panel.finished(fields)

    def _plot(self, steps: Sequence[Mapping[str, Any]]) -> None:
        for told in steps:
            if (step := told.get("step")) is not None:
                if step < self._last_step:  # begun anew, with smaller patches
                    self.chart.restart()
                self._last_step = step
                self.chart.expect(int(told.get("steps") or 0))
                self.chart.add([(step, told.get("loss"), told.get("held_out_dsc"))])
        if self.parameters.tunePlot and not self._plot_shown:
            self._show_plot()

    def _show_plot(self) -> None:
        if self.chart.chart is not None:
            self._plot_shown = True
            self.chart.show()

    def _hide_plot(self) -> None:
        """The views are the user's again: after a run, or where the plot is not wanted."""
        self._plot_shown = False
        self.chart.hide()

    def _abandon(self) -> None:
        """Stop what runs and want nothing of it, not even a model that is ready at this moment."""
        run, self._run = self._run, None
        if run is not None and not run.ended:
            run.abandon(on_result=_discard_model)
            self._left_over.append(run)

    def _sweep(self) -> None:
        """Look after requests that nobody wants any more: files go, and so does a model that was made nevertheless."""
        for task in list(self._left_over):
            if task.poll():
                self._left_over.remove(task)
                self.draw()

    def _use_default(self, name: str) -> bool:
        """Segment uses the current model, where it would use ``name`` ("": whatever it would use)."""
        if name and self.parameters.model != name:
            return False
        self.parameters.model = ""
        return True


def _discard_model(fields: dict[str, Any]) -> None:
    if fields.get("model"):
        store.discard(str(fields["model"]))
