"""Between the widgets of the Annotate section, its state machine, the study on disk and the nodes of the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from NeonatalSegLib.annotation.new_study import needs_model
from NeonatalSegLib.annotation.trust import LeavesStudyError, trust
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.for_study import NAMED
from NeonatalSegLib.mrml.annotate import view as annotate_draw
from NeonatalSegLib.mrml.annotate.caption import SliceCaption
from NeonatalSegLib.mrml.annotate.drafts import Drafts
from NeonatalSegLib.mrml.annotate.editing import editing_calls
from NeonatalSegLib.mrml.annotate.keys import Keys
from NeonatalSegLib.mrml.annotate.slice_tools import SliceTools
from NeonatalSegLib.mrml.annotate.slice_workspace import SliceWorkspace
from NeonatalSegLib.mrml.annotate.study_maker import StudyMaker
from NeonatalSegLib.mrml.annotate.window import LAYOUTS
from NeonatalSegLib.mrml.segment.runner import check_inputs
from NeonatalSegLib.mrml.shared import choices, dependencies
from NeonatalSegLib.mrml.shared.drawing import chosen
from NeonatalSegLib.mrml.shared.host import Host
from NeonatalSegLib.mrml.shared.slot import slot
from NeonatalSegLib.panel.annotate_state import AnnotateState
from NeonatalSegLib.panel.annotate_view import caption_of, view_of
from NeonatalSegLib.tissues import TISSUES

DOING = "Planning a study"
MOST_PATHS = 5  # that the question about images outside a study shows
OUTSIDE = (
    "This study reads images or studies outside its own folder. If it came from somebody else, open it only if you "
    "trust them:\n\n{paths}\n\nRead them? You will not be asked for them again."
)
DECLINED = "Nothing was installed. Planning slices with the model needs PyTorch; start from nothing to do without."


class AnnotateController(VTKObservationMixin):
    """Ties the section to the rest.

    Args:
        ui: the widgets of Annotate.ui by name. host: what the module file gives to its sections.
    """

    def __init__(self, ui: Any, host: Host) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.host, self.panel = ui, host, AnnotateState()
        self.choose_folder, self.confirm, self.is_active = host.choose_folder, host.confirm, host.is_active
        self.desk = SliceWorkspace(ui.segmentEditor, self.panel.clock.touch)
        self.drafts = Drafts(self.panel, self.desk, lambda text: self.confirm(text))
        self.maker = StudyMaker(host.logic.runner.engine)
        self.caption = SliceCaption()
        self.tools = SliceTools(ui, self.panel, self.desk)
        self.timer = host.make_timer()
        ui.raterEdit.setText(host.read_setting("rater"))
        self.panel.set_recent(host.read_setting("studies").split("\n"))
        self.parameters: Any = None
        self._entered, self._study_of_scene = False, ""
        annotate_draw.fill_choices(ui)
        calls = {name: getattr(self, f"on_{name}") for name in annotate_draw.BUTTONS}
        calls |= {"fill": ui.fillBox.toggle, "outline": ui.outlineBox.toggle, "opacity": self.tools.on_opacity_key}
        calls |= editing_calls(self.panel, self.desk)
        self.keys = Keys(host.make_shortcut, calls)
        self._connect()
        self.follow_scene()
        self.draw()

    def _connect(self) -> None:
        ui = self.ui
        self.timer.timeout.connect(self.on_timer)
        self.ui.raterEdit.editingFinished.connect(self.on_rater)
        self.ui.openButton.clicked.connect(self.on_open)
        self.ui.resumeButton.clicked.connect(self.on_resume)
        self.ui.recentSelector.currentIndexChanged.connect(self.on_recent_chosen)
        self.ui.closeButton.clicked.connect(self.on_close)
        self.ui.makeButton.clicked.connect(self.on_make)
        self.ui.nextRoundButton.clicked.connect(self.on_next_round)
        self.ui.slicesTable.itemSelectionChanged.connect(self.on_row_chosen)
        self.ui.slicesTable.cellClicked.connect(self.on_row_clicked)
        self.ui.annotateSection.contentsCollapsed.connect(self.draw)  # folded, no key completes a slice unseen
        self.ui.noteEdit.returnPressed.connect(self.on_flag)
        for name in ("done", "next", "previous", "skip", "flag", "reopen"):
            getattr(ui, f"{name}Button").clicked.connect(getattr(self, f"on_{name}"))
        self.maker.progressed.connect(self.panel.progress)
        self.maker.finished.connect(self.on_made)
        self.maker.failed.connect(lambda message: self.panel.made(message, "error"))
        self.maker.cancelled.connect(lambda: self.panel.made(_("Cancelled. Nothing was left behind.")))
        self.host.logic.runner.turn.changed.connect(self.refresh)
        self.panel.changed.connect(self.draw)

    def draw(self) -> None:
        """Draw the state machine's view; the keys work where their buttons do, and while the module is open."""
        view = view_of(self.panel)
        annotate_draw.draw(self.ui, view, self.host.make_item)
        self.keys.follow(view, self._entered and not self.ui.annotateSection.property("collapsed"))
        self.host.logic.runner.turn.follow(DOING, self.panel.making)
        self.draw_caption()

    def draw_caption(self) -> None:
        """Which slice this is and what is painted, in the slice view: there the eye is."""
        item, shown = self.panel.item, self.desk.shown
        if item is None or shown is None or not self.desk.window.taken:
            self.caption.hide()
            return
        tissue = next((t.name for t in TISSUES if t.key == self.desk.editor.selected), "")
        self.caption.show(LAYOUTS[item.slice.axis], caption_of(self.panel, tissue))

    # The section's life

    def enter(self) -> None:
        """The user opens the module: the editor gets its keys, and the clock may run."""
        self._entered = True
        self.desk.enter()
        if self.panel.project is not None:  # perhaps opened meanwhile: a study that was being made
            self.host.panel.fold(True)
        self.panel.clock.set_entered(True)
        self.timer.start()
        self.refresh()
        self.draw()

    def exit(self) -> None:
        """The user goes to another module: no effect and no key stays active, and what was changed is kept."""
        self._entered = False
        self.desk.exit()
        self.panel.clock.set_entered(False)
        self.drafts.keep()
        if not self.panel.making:
            self.timer.stop()
        self.draw()

    def follow_scene(self) -> None:
        """Follow the parameters of the scene, which may be another one."""
        parameters = self.host.panel.parameters
        if parameters is None or parameters is self.parameters:
            return
        if self.parameters is not None:
            self.removeObserver(self.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self.parameters = parameters
        self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        if parameters.rater and not self._rater():
            self.ui.raterEdit.setText(parameters.rater)
        elif parameters.rater and parameters.rater != self._rater():  # a colleague's scene is no reason to be renamed
            text = _("This scene was saved by {other}. Slices go on being kept as those of {own}, the name given here.")
            self.panel.report(text.format(other=parameters.rater, own=self._rater()), "warning")
        self.desk.follow_scene()
        self.refresh()

    def scene_closes(self) -> None:
        """Keep what was changed and close the study before the nodes go."""
        if self.panel.making:
            self.maker.abandon()
            self.panel.made(_("The scene was closed, so no study was made."))
        self._leave_study(ask=False)
        self.desk.release()
        self.removeObservers()
        self.parameters = None

    def node_removed(self) -> None:
        """Perhaps it was the segmentation or the scan that is being annotated."""
        key = self.panel.key
        if self.desk.gone and self.drafts.keep():
            self.desk.forget()
            self.panel.leave()
            self.panel.report(
                _("A node of the slice {key} was deleted. What was changed is kept; choose it again.").format(key=key),
                "warning",
            )

    def close(self) -> None:
        """The module is closed: keep what was changed, and nobody is told any more."""
        self.panel.changed.disconnect()
        self.timer.stop()
        self.maker.abandon()
        self._leave_study(ask=False)
        self.desk.close()
        self.keys.close()
        self.removeObservers()

    @slot
    def on_timer(self) -> None:
        """Ten times a second while the module is open or a study is being made."""
        self.panel.clock.set_active(bool(self.is_active()))
        self.desk.keep()
        self.desk.fit()
        self.draw_caption()
        self.drafts.keep_now_and_then()
        try:
            self.maker.poll()
        except Exception:
            self.maker.abandon()
            if self.panel.making:  # or no section could ever start anything again
                self.panel.made(_("No study was made, because of an error."), "error")
            raise
        if not self._entered and not self.panel.making:
            self.timer.stop()

    def refresh(self, caller: Any = None, event: Any = None) -> None:
        """Why no study can be made for the scan above, if so; and which study was open last."""
        parameters, refusal = self.parameters, str(self.host.logic.runner.turn.why_not(DOING))
        self.panel.set_occupied(refusal)
        if parameters is None:
            return
        if parameters.studyFolder and parameters.studyFolder != self._study_of_scene:
            self._study_of_scene = parameters.studyFolder
            self.panel.remember(parameters.studyFolder)
        if not refusal:
            try:
                check_inputs(parameters.t1, parameters.t2)
            except NeonatalSegError as error:
                refusal = str(error)
        self.panel.set_scan(refusal)

    # Studies

    @slot
    def on_rater(self) -> None:
        """The user has typed a name."""
        if self.parameters is not None:
            self.parameters.rater = self._rater()

    @slot
    def on_open(self) -> None:
        """Open a study that is there."""
        if folder := self.choose_folder(_("Folder of the study")):
            self.open_study(Path(folder))

    @slot
    def on_resume(self) -> None:
        """Open the study that is chosen among the last ones."""
        self.open_study(Path(self.panel.remembered))

    @slot
    def on_recent_chosen(self) -> None:
        """The user chooses one of the last studies."""
        if folder := chosen(self.ui.recentSelector):
            self.panel.remember(folder)

    @slot
    def on_close(self) -> None:
        """Close the study."""
        self._leave_study()

    def open_study(self, folder: Path, message: str = "") -> None:
        """Open a study and show the first slice that is left to do.

        Raises:
            NeonatalSegError: it cannot be opened, or its scan cannot be shown.
        """
        if not self._leave_study():
            return
        try:
            self.panel.open(folder, self._rater())
        except LeavesStudyError as error:
            if not self.confirm(_(OUTSIDE).format(paths="\n".join(map(str, error.paths[:MOST_PATHS])))):
                raise
            trust(error.paths)
            self.panel.open(folder, self._rater())
        if self.parameters is not None:
            self.parameters.studyFolder = str(folder)
        self.host.write_setting("rater", self._rater())
        self.host.write_setting("studies", "\n".join(self.panel.recent))
        if self._entered:
            self.host.panel.fold(True)
        notices = [text for text in (message, *self.panel.project.warnings) if text]  # type: ignore[union-attr]
        if key := self.panel.next_key():
            self.show(key)
        self.panel.report("\n".join(notices), "warning" if notices else "info")

    @slot
    def on_make(self) -> None:
        """Make a study for the scan above; while one is being made, cancel."""
        if self.panel.making:
            self.maker.cancel()
            return
        if not self._rater():
            raise NeonatalSegError(_("Give your name first: every rater's slices are kept apart."))
        budget, prefill = annotate_draw.settings(self.ui), chosen(self.ui.startFromSelector)
        folder = self.choose_folder(_("Empty folder for the new study"))
        if not folder:
            return
        if needs_model(budget, prefill) and not dependencies.ensure(self.confirm, say=self.panel.report):
            self.panel.report(_(DECLINED), "warning")
            return
        parameters = self.parameters
        self.maker.start(
            Path(folder),
            parameters.t1,
            parameters.t2,
            budget,
            model=choices.model_of_scene(parameters.model),
            device=self._device(),
            prefill=prefill,
            result=parameters.segmentation,
        )
        self.panel.make()
        self.timer.start()

    @slot
    def on_next_round(self) -> None:
        """Make the study that goes on from the one that is open: by the model that this one names, where it does."""
        if self.panel.project is None:
            return
        before = self.panel.project.study
        folder = self.choose_folder(_("Empty folder for the next round"))
        if not folder:
            return
        if not dependencies.ensure(self.confirm, say=self.panel.report):
            self.panel.report(_(DECLINED), "warning")
            return
        if occupied := self.host.logic.runner.turn.why_not(DOING):
            raise NeonatalSegError(occupied)
        if not self._leave_study():
            return
        named = (before.folder / NAMED).is_file()
        model = str(before.folder) if named else choices.model_of_scene(self.parameters.model)
        self.maker.start_round(Path(folder), before, model=model, device=self._device())
        self.panel.make()
        self.timer.start()

    def _device(self) -> str:
        return choices.usable_device(self.parameters.device, self.host.panel.panel.devices)

    def on_made(self, result: dict[str, Any]) -> None:
        """The study is there: open it."""
        self.panel.made()
        self.open_study(Path(result["study"]), "\n".join(str(warning) for warning in result.get("warnings") or []))

    def _rater(self) -> str:
        return str(self.ui.raterEdit.property("text")).strip()

    def _leave_study(self, *, ask: bool = True) -> bool:
        """Close the study; False where the user stays, because what was changed cannot be kept."""
        kept = self.drafts.may_leave() if ask else self.drafts.keep()
        if ask and not kept:
            return False
        try:
            self.desk.forget()
            self.caption.hide()
            if self.panel.project is not None:
                self.host.panel.fold(False)
        finally:  # or nobody could open the study under this name until the application ends
            self.panel.close()
        if not kept:
            self.panel.failed(self.drafts.why_not)
        return True

    # Slices

    def show(self, key: str) -> None:
        """Show a slice and let it be edited, if it is left to do.

        Raises:
            NeonatalSegError: the study cannot be read or written: what was shown stays. Its scan cannot be loaded: no
                slice is shown then.
        """
        if not self.drafts.may_leave():
            self.draw()  # the list goes back to the slice that is shown
            return
        assert self.panel.project is not None
        planned = self.panel.project.item(key).slice
        try:
            labels = self.panel.go(key)
        except Exception:
            if not self.panel.editable:  # it was just completed: what is painted now would be lost
                self.desk.let_edit(False)
            raise
        try:
            nodes = self.desk.take_scan(self.panel.project, planned.scan)
            if nodes and self.parameters is not None:  # what is annotated is what Segment would take
                self.parameters.t1, self.parameters.t2 = nodes.get("t1"), nodes.get("t2")
            self.desk.show(planned, labels, editable=self.panel.editable, within=self.tools.within())
        except Exception:  # half a slice would be one that can neither be worked on nor left
            self.desk.forget()
            self.panel.leave()
            raise
        self.tools.show_difference()
        self.tools.on_look()

    @slot
    def on_row_chosen(self) -> None:
        """The user chooses a slice in the list."""
        project, row = self.panel.project, self.ui.slicesTable.currentRow()
        if project is not None and 0 <= row < len(project.items) and project.items[row].slice.key != self.panel.key:
            self.show(project.items[row].slice.key)

    @slot
    def on_row_clicked(self) -> None:
        """A click on the slice that is shown: back to it, after the view was scrolled."""
        project, row, shown = self.panel.project, self.ui.slicesTable.currentRow(), self.desk.shown
        if project is not None and shown is not None and project.items[row].slice.key == self.panel.key:
            shown.turn_view()

    @slot
    def on_next(self) -> None:
        """To the next slice that is left."""
        self._go_on(self.panel.next_key())

    @slot
    def on_previous(self) -> None:
        """To the slice before."""
        self._go_on(self.panel.previous_key())

    @slot
    def on_done(self) -> None:
        """Save the slice as it is now and go on."""
        if self.desk.shown is not None and self.panel.editable:
            following = self.panel.complete(self.desk.shown.read())
            told = self.panel.message, self.panel.kind
            self.host.logic.slices_changed.emit()
            self._go_on(following)
            if told[1] == "warning":  # about the slice before; ``show`` has told of the next one
                self.panel.report("\n".join(text for text in (told[0], self.panel.message) if text), "warning")

    @slot
    def on_skip(self) -> None:
        """Leave the slice out."""
        if self.panel.editable and self.drafts.may_leave():
            self._go_on(self.panel.skip())

    @slot
    def on_flag(self) -> None:
        """Put the slice aside with a note."""
        if self.panel.editable and self.drafts.may_leave():
            following = self.panel.flag(str(self.ui.noteEdit.property("text")).strip())
            self.ui.noteEdit.clear()
            self._go_on(following)

    @slot
    def on_reopen(self) -> None:
        """Take a slice back."""
        if self.panel.item is not None and not self.panel.editable:
            self.panel.reopen()
            self.host.logic.slices_changed.emit()
            self.show(self.panel.key)

    def _go_on(self, key: str) -> None:
        if key:
            self.show(key)
        else:
            self.desk.let_edit(False)
            self.draw()
