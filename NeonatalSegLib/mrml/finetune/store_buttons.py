"""The buttons of the model store: accept, roll back, discard, export, import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.for_study import name_for_study, named_by_study
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.mrml.shared.host import Host
from NeonatalSegLib.mrml.shared.slot import slot
from NeonatalSegLib.panel.finetune_state import FineTuneState


class StoreButtons:
    """What each button of the store does.

    Args:
        ui: the widgets of FineTune.ui by name. host: asks the user. panel: the section's state.
        read_store: reads the store anew into the state. use_default: Segment uses the current model from now on, and
            not one of this name ("" for whatever was chosen there); True where that changed its choice. study: the
            folder of the chosen study.
    """

    def __init__(
        self,
        ui: Any,
        host: Host,
        panel: FineTuneState,
        read_store: Callable[[], None],
        use_default: Callable[[str], bool],
        study: Callable[[], str],
    ) -> None:
        self.panel, self.read_store, self.use_default, self.study = panel, read_store, use_default, study
        self.confirm, self.choose_folder, self.choose_file = host.confirm, host.choose_folder, host.choose_file
        ui.acceptButton.clicked.connect(self.on_accept)
        ui.discardButton.clicked.connect(self.on_discard)
        ui.rollBackButton.clicked.connect(self.on_roll_back)
        ui.exportModelButton.clicked.connect(self.on_export)
        ui.importModelButton.clicked.connect(self.on_import)

    @slot
    def on_accept(self) -> None:
        """The chosen version becomes the current model; one that was made for a study's scans, the study's."""
        version = self.panel.chosen_version
        if version is not None and version.keep == "scanner":
            named = self._named()
            text = _("{study} names the model {old} for its scans. Let it name {new} in its place?")
            if named not in ("", version.name) and not self.confirm(
                text.format(study=self.panel.study, old=named, new=version.name)
            ):
                return
            name_for_study(self.study(), find_model(version.name))
            text = _("{study} names {new} now: choose it as the model of Segment for such scans. {old} stays current.")
            self.panel.notice(text.format(study=self.panel.study, new=version.name, old=self.panel.current))
            return
        before = self.panel.current
        model = store.accept(self.panel.version)
        self._took_over(
            _("{new} is the current model now, in place of {old}; Segment uses it. Roll back returns to {old}.").format(
                new=model.name, old=before
            )
        )

    def _named(self) -> str:
        """Name of the model that the open study names; "" where it names none, or in a text that is not understood."""
        try:
            return named_by_study(self.study()).name if self.study() else ""
        except NeonatalSegError:
            return ""

    @slot
    def on_roll_back(self) -> None:
        """The model before the current one becomes current again."""
        before = self.panel.current
        model = store.roll_back()
        self._took_over(
            _("{new} is the current model again; Segment uses it. {old} is kept as a candidate.").format(
                new=model.name, old=before
            )
        )

    def _took_over(self, message: str) -> None:
        """Another model is current: Segment uses the current one, whatever was chosen there."""
        self.use_default("")
        self.read_store()
        self.panel.notice(message)

    @slot
    def on_discard(self) -> None:
        """The chosen version is removed, after a question: it cannot be brought back."""
        name = self.panel.version
        question = _("Remove the model {name} from this computer? This cannot be undone.").format(name=name)
        if self._named() == name:
            text = _("The study {study} names it for its scans, and would name a model that is gone.")
            question += " " + text.format(study=self.panel.study)
        if not self.confirm(question):
            return
        store.discard(name)
        message = _("{name} was removed. {current} is the current model.")
        if self.use_default(name):
            message += " " + _("Segment, where {name} was chosen, uses {current}.")
        self.read_store()
        self.panel.notice(message.format(name=name, current=self.panel.current))

    @slot
    def on_export(self) -> None:
        """The chosen version as one file."""
        folder = self.choose_folder(_("Folder for the exported model"))
        if folder:
            file = Path(folder) / f"{self.panel.version}.zip"
            if file.exists() and not self.confirm(_("Replace {file}?").format(file=file)):
                return
            store.export_model(self.panel.version, file, force=True)  # the user was asked
            self.panel.notice(_("Written: {file}").format(file=file))

    @slot
    def on_import(self) -> None:
        """A model from a file becomes a candidate."""
        file = self.choose_file(_("Exported model"), _("Models (*.zip)"))
        if file:
            model = store.import_model(file, rename=True)
            self.read_store()
            self.panel.choose_version(model.name)
            self.panel.notice(
                _("{name} was imported as a candidate. The current model is still {current}.").format(
                    name=model.name, current=self.panel.current
                )
            )
