"""Between the widgets, the state machine and the logic: what each click does, and what each change shows.

The widgets come from the .ui file and are used only in the way both Qt bindings understand; nothing of Qt is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.scene import export, results, segments
from NeonatalSegLib.mrml.scene.file_grid import file_of
from NeonatalSegLib.mrml.scene.scene_result import Judgement, Outcome, corrected_by_hand, judgement_of
from NeonatalSegLib.mrml.segment import view as segment_draw
from NeonatalSegLib.mrml.segment.result import ShownResult, scan_of
from NeonatalSegLib.mrml.segment.runner import check_inputs
from NeonatalSegLib.mrml.shared import choices, dependencies, drawing
from NeonatalSegLib.mrml.shared.parameters import segment_options
from NeonatalSegLib.mrml.shared.slot import slot
from NeonatalSegLib.panel.controls import duration
from NeonatalSegLib.panel.segment_state import SegmentState
from NeonatalSegLib.panel.segment_view import view_of
from NeonatalSegLib.tissues import PHYSIOLOGICAL

DOING = "A segmentation"
Writer = Callable[[Any, Path], list[Path]]  # from a segmentation and a folder to files


class PanelController(VTKObservationMixin):
    """Ties one panel to one logic.

    Args:
        ui: the widgets by name. logic: the module's logic (``runner``, ``models``, ``getParameterNode``).
        timer: a stopped timer; it runs while something is under way. make_item: makes a cell of the table.
        confirm: asks yes or no with a text. choose_folder: asks for a folder with a title and
            where to begin, "" for none. open_editor: opens Slicer's Segment Editor with a segmentation and its scan.
    """

    def __init__(
        self,
        ui: Any,
        logic: Any,
        timer: Any,
        make_item: Callable[[str], Any],
        confirm: Callable[[str], bool],
        choose_folder: Callable[..., str],
        open_editor: Callable[[Any, Any], None] = lambda node, volume: None,
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.logic, self.timer, self.panel = ui, logic, timer, SegmentState()
        self.confirm, self.choose_folder, self._make_item = confirm, choose_folder, make_item
        self.open_editor = open_editor
        self.result = ShownResult(self.panel, self.timer.start)
        self.parameters: Any = None
        self._gui_tag: Any = None
        self._connect()
        self.follow_scene()
        self.fill_devices()
        self.draw()

    def _connect(self) -> None:
        runner = self.logic.runner
        runner.progressed.connect(self.panel.progress)
        runner.finished.connect(self.on_finished)
        runner.failed.connect(self.panel.failed)
        runner.cancelled.connect(self.panel.cancelled)
        runner.devices_known.connect(self.on_devices_known)
        runner.devices_failed.connect(lambda message, missing: self.panel.set_device_note(message))
        self.logic.models_changed.connect(self.fill_models)
        self.timer.timeout.connect(self.on_timer)
        self.ui.segmentButton.clicked.connect(self.on_segment_button)
        self.ui.modelSelector.currentIndexChanged.connect(self.on_model_chosen)
        self.ui.deviceSelector.currentIndexChanged.connect(self.on_device_chosen)
        self.ui.volumesTable.cellClicked.connect(self.on_row_clicked)
        self.ui.volumesTable.itemChanged.connect(self.on_row_ticked)
        self.ui.correctButton.clicked.connect(self.on_correct)
        self.ui.exportNiftiButton.clicked.connect(self.on_export_nifti)
        self.ui.exportSegButton.clicked.connect(self.on_export_seg)
        self.ui.exportStlButton.clicked.connect(self.on_export_stl)
        runner.turn.changed.connect(self.on_turn)
        self.panel.changed.connect(self.draw)

    def close(self) -> None:
        """Stop everything: nothing of ours may go on, and nobody is told any more."""
        self.panel.changed.disconnect()
        self.logic.runner.turn.changed.disconnect()
        self.logic.models_changed.disconnect()
        self.timer.stop()
        self.result.close()
        self.set_parameters(None)
        self.removeObservers()
        self.logic.close()

    def draw(self) -> None:
        """Draw the state machine's view, and tell the other sections whether the compute process is free."""
        shown = segments.shown_tissues(self.result.node) if self.result.node is not None else set()
        segment_draw.draw(self.ui, view_of(self.panel), self._make_item, shown)
        self.logic.runner.turn.follow(DOING, self.panel.busy)

    def fold(self, folded: bool) -> None:
        """While a study is open, the section that annotates gets the panel; afterwards all is as it was."""
        for section in (self.ui.scanSection, self.ui.advancedSection, self.ui.resultSection):
            section.setVisible(not folded)

    def on_turn(self) -> None:
        """Another section has begun or ended something in the compute process."""
        self.panel.set_occupied(self.logic.runner.turn.why_not(DOING))

    def enter(self) -> None:
        """The module is opened."""
        self.follow_scene()
        self.ask_devices()
        self.result.enter()

    def exit(self) -> None:
        """The user goes to another module: what runs goes on."""
        self.result.entered = False

    # The parameter node and the scene

    def follow_scene(self) -> None:
        """Take the scene's parameter node; where nothing is chosen yet, offer volumes by their names."""
        if self.parameters is None:
            self.set_parameters(self.logic.getParameterNode())
        choices.choose_inputs(self.parameters, slicer.mrmlScene)

    def set_parameters(self, parameters: Any) -> None:
        """Follow another parameter node (None: none)."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.on_parameters_changed)
        self.parameters = parameters
        if parameters is not None:
            # connectGui would do the same, but some versions of Slicer return no tag from it to disconnect with.
            tied = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
            self._gui_tag = parameters.connectParametersToGui({name: tied[name] for name in tied if name})
            self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.on_parameters_changed)
            self.on_parameters_changed()

    def on_parameters_changed(self, caller: Any = None, event: Any = None) -> None:
        """A choice has changed: by the user, because a scene was loaded, or because a node was deleted."""
        parameters = self.parameters
        if parameters is None:
            return
        refusal = ""
        names = [node.GetName() if node is not None else "" for node in (parameters.t1, parameters.t2)]
        if any(names):
            try:
                check_inputs(parameters.t1, parameters.t2)
            except NeonatalSegError as error:
                refusal = str(error)
        self.panel.set_inputs(names[0], names[1], refusal)
        self.panel.choose_device(parameters.device)
        self.fill_models()
        self.fill_devices()
        has_result = parameters.segmentation is not None and parameters.volumes is not None
        node = parameters.segmentation if has_result else None
        other = node is not self.result.node or has_result != self.panel.has_result
        self.result.follow(node, parameters.volumes)
        if other:
            rows = results.rows_from_table(parameters.volumes) if node is not None else None
            judged = judgement_of(node) if node is not None else Judgement()
            self.panel.show_result(rows, judged.warnings, judged.verdict)
        self.show_result()

    def scene_closes(self) -> None:
        """Stop before the nodes go; nothing is written into the next scene."""
        self.logic.runner.scene_closed()
        self.result.close()
        self.set_parameters(None)
        self.panel.scene_closed()

    def node_removed(self) -> None:
        """Perhaps it was the scan that is being segmented, or the result."""
        self.logic.runner.nodes_removed()
        self.on_parameters_changed()

    @slot
    def show_result(self) -> None:
        """Bring 3D and opacity to what is chosen."""
        if self.parameters is not None:
            self.result.look(bool(self.parameters.show3D), float(self.parameters.opacity))

    @slot
    def on_row_clicked(self) -> None:
        """A click on a tissue: the slice views turn to it."""
        if (row := self.ui.volumesTable.currentRow()) < len(PHYSIOLOGICAL):
            self.result.go_to(PHYSIOLOGICAL[row].key)

    @slot
    def on_row_ticked(self) -> None:
        """Tissues are shown and hidden by their ticks."""
        if self.result.node is not None:
            segments.show_tissues(self.result.node, segment_draw.ticked(self.ui.volumesTable))

    @slot
    def on_correct(self) -> None:
        """Slicer's own editor, with this result and the scan behind it."""
        if self.result.node is not None:
            self.open_editor(self.result.node, scan_of(self.result.node))

    # Segmenting

    @slot
    def on_segment_button(self) -> None:
        """Start; while running, cancel."""
        if self.panel.busy:
            self.panel.cancel()
            self.logic.runner.cancel()
            return
        self.follow_scene()
        if not dependencies.ensure(self.confirm, say=self.panel.notice):
            self.panel.notice(dependencies.DECLINED, "warning")
            return
        self.ask_devices()
        if self.panel.can_start and not self._may_replace():
            return
        if not self.panel.start():
            return
        self.logic.runner.start(
            self.parameters.t1,
            self.parameters.t2,
            model=choices.model_of_scene(self.parameters.model),
            device=choices.usable_device(self.parameters.device, self.panel.devices),
            options=segment_options(self.parameters),
        )
        self.timer.start()

    def _may_replace(self) -> bool:
        """A new result takes the place of this scan's last one: asked where that was corrected by hand."""
        reference = self.parameters.t2 or self.parameters.t1
        names = corrected_by_hand(reference)
        return not names or bool(
            self.confirm(
                _(
                    "{name} was corrected by hand. A new segmentation of {scan} takes its place, and the corrections "
                    "are lost. Export it first, or clone it in the Data module, where they are still needed.\n\n"
                    "Replace it?"
                ).format(name=names[0], scan=reference.GetName())
            )
        )

    @slot
    def on_timer(self) -> None:
        """Ten times a second while something is under way."""
        try:
            self.logic.runner.poll()
        except Exception:
            self.logic.runner.abandon("Stopped.")  # or the next click would find it running for ever
            raise
        self.result.work()
        if not (self.logic.runner.waiting or self.result.waiting):
            self.timer.stop()

    def on_finished(self, outcome: Outcome) -> None:
        """The result is in the scene: show it, and remember it with the parameters."""
        used = [device.name for device in self.panel.devices if device.text == outcome.device]
        self.panel.seconds_on.update(dict.fromkeys(used, outcome.seconds))  # not the chosen one, where it fell back
        self.parameters.volumes = outcome.table
        self.parameters.segmentation = outcome.segmentation
        self.parameters.uncertaintyMap = outcome.uncertainty
        facts = [outcome.device, _("model {model}").format(model=outcome.model)]
        if outcome.age_weeks is not None:
            facts.append(_("age by the model {weeks} weeks").format(weeks=f"{outcome.age_weeks:.1f}"))
        elif outcome.volumes_age_weeks is not None:
            facts.append(_("age by volumes {weeks} weeks").format(weeks=f"{outcome.volumes_age_weeks:.1f}"))
        summary = _("Done in {time}: {facts}.").format(time=duration(outcome.seconds), facts=", ".join(facts))
        self.panel.finished(outcome.rows, outcome.warnings, summary, outcome.verdict)
        self.show_result()

    # Devices and models

    def ask_devices(self) -> None:
        """Start the compute process where that is possible, and learn which devices and models there are."""
        if self.panel.devices:
            return
        if dependencies.missing():
            self.panel.set_device_note(
                _("Some packages are not installed yet: Segment asks before it installs anything.")
            )
            return
        self.panel.set_device_note(_("Starting the compute process ..."))
        self.logic.runner.ask_devices()
        self.timer.start()

    def on_devices_known(self, hello: dict[str, Any]) -> None:
        """The compute process has told its devices and models."""
        self.panel.cpu_seconds = choices.cpu_seconds(hello)
        self.panel.set_devices(choices.devices(hello))
        self.logic.models = choices.models(hello)
        self.fill_devices()
        self.fill_models()

    def fill_models(self) -> None:
        """The model selector and the line below it."""
        models = self.logic.models
        chosen = (self.parameters.model if self.parameters is not None else "") or choices.default_model(models)
        drawing.choices(self.ui.modelSelector, [(name, name) for name in models], chosen)
        self.panel.set_model(models.get(chosen, "") if models else _("No model is installed."))

    def fill_devices(self) -> None:
        """The device selector: automatic, then those on which a real kernel ran."""
        working = [(device.text, device.name) for device in self.panel.devices if device.works]
        chosen = self.parameters.device if self.parameters is not None else "auto"
        drawing.choices(self.ui.deviceSelector, [(_("Automatic"), "auto"), *working], chosen)

    @slot
    def on_model_chosen(self) -> None:
        """The user chooses a model."""
        if self.parameters is not None:
            self.parameters.model = drawing.chosen(self.ui.modelSelector)

    @slot
    def on_device_chosen(self) -> None:
        """The user chooses a device."""
        if self.parameters is not None:
            self.parameters.device = drawing.chosen(self.ui.deviceSelector) or "auto"

    # Files

    @slot
    def on_export_nifti(self) -> None:
        """Label map and volumes."""
        self._export(
            lambda node, folder: list(export.export_label_map(node, folder).values()),
            lambda node, folder: list(export.label_map_files(node, folder).values()),
        )

    @slot
    def on_export_seg(self) -> None:
        """Slicer's own format."""
        self._export(
            lambda node, folder: [export.export_seg_nrrd(node, folder)],
            lambda node, folder: [export.seg_nrrd_file(node, folder)],
        )

    @slot
    def on_export_stl(self) -> None:
        """Surfaces for printing and simulation."""
        self._export(export.export_surfaces, export.surface_files)

    def _export(self, write: Writer, files: Writer) -> None:
        """Ask for a folder, write, and say which files came of it; ``files`` tells before which they may be."""
        node = self.parameters.segmentation if self.parameters is not None else None
        if node is None:
            return
        scan = scan_of(node)
        beside = file_of(scan) if scan is not None else None
        folder = self.choose_folder(_("Folder for the exported files"), str(beside.parent) if beside else "")
        if folder and self._may_write(files(node, Path(folder)), folder):
            names = [path.name for path in write(node, Path(folder))]
            more = _(" and {number} more").format(number=len(names) - 1) if len(names) > 1 else ""
            self.panel.notice(_("Written: {name}{more}, in {folder}").format(name=names[0], more=more, folder=folder))

    def _may_write(self, files: list[Path], folder: str) -> bool:
        """Files that are there, perhaps of a corrected result, are replaced where the user says so."""
        there = [path.name for path in files if os.path.lexists(path)]
        question = _("{folder} holds already:\n\n{names}\n\nReplace?")
        return not there or bool(self.confirm(question.format(folder=folder, names="\n".join(there))))
