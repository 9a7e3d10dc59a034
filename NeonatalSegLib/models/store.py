"""The user's own models: fine-tuned versions with their lineage, accepted, rolled back, discarded, passed on.

    >>> from NeonatalSegLib.models import store
    >>> store.current_name()  # what is used where no model is named
    'neonatal-v5'

A version is a bundle (models/bundle.py) in the user's folder. It is written beside its place and appears by one rename,
so a killed process leaves no half model, and two that end at once give two. What is current follows from the history of
events (models/history.py); nothing becomes current without :func:`accept`. Shipped models are only read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import leftovers
from NeonatalSegLib.files.atomic import now
from NeonatalSegLib.files.names import check_name
from NeonatalSegLib.models import history as log
from NeonatalSegLib.models.archive import name_in_zip, read_zip, write_zip
from NeonatalSegLib.models.bundle import METADATA_FILE, WEIGHTS_FILE, Model, read_model, write_bundle
from NeonatalSegLib.models.card import version_card, version_description
from NeonatalSegLib.models.codes import coded
from NeonatalSegLib.models.facts import Lineage, ModelFacts
from NeonatalSegLib.models.history import Event, user_folder
from NeonatalSegLib.models.registry import (
    DEFAULT_MODEL,
    current_model,
    default_model_name,
    find_model,
    installed_model,
    is_name,
    is_there,
)
from NeonatalSegLib.models.store_folder import (
    NEW,
    appear,
    claim_version,
    delete,
    is_bundle,
    removed_at_end,
    store_lock,
    sweep,
)
from NeonatalSegLib.models.strangers import check_no_expressions
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.resources import shipped_models

if TYPE_CHECKING:
    from torch import nn

SHIPPED, CANDIDATE, ACCEPTED = "shipped", "candidate", "accepted"

__all__ = [
    "accept",
    "add_version",
    "current_name",
    "discard",
    "export_model",
    "history",
    "import_model",
    "previous_name",
    "roll_back",
    "state_of",
    "status",
    "user_folder",
]


def add_version(
    network: nn.Module,
    settings: NetworkSettings,
    parent: Model,
    lineage: Mapping[str, Any],
    *,
    description: str = "",
    card: str = "",
    licence: str = "",
) -> Model:
    """Keep a fine-tuned network as a new candidate ``<root>-ft001``, ``-ft002`` ...; numbers are not used again.

    Args:
        settings: how the network is built.
        parent: the model that it came from; its subjects, ages and licence notice are inherited.
        lineage: JSON values for metadata.json: strategy, settings, slices, held_out_slices, scans (names, or {"name",
            "age_weeks"}), raters, before and after {tissue key: DSC or None}, before_mean, after_mean, mix, seconds,
            device, stopped_early. ``parent``, ``parent_sha256`` and ``date`` are added.
        description: one line for lists; default: from the lineage.
        card: a section Notes of the model card.
        licence: the section Licence of the parent's card, read when the fine-tuning began; default: read now.

    Raises:
        NeonatalSegError: the models' folder cannot be written; nothing is left behind.
    """
    lineage = {"date": now(), **_plain(lineage), "parent": parent.name, "parent_sha256": parent.hash}
    origin = Lineage.from_json(lineage)
    description = description or version_description(parent.name, origin)
    facts = {**_inherited(parent, origin), "lineage": lineage}
    try:
        while True:
            folder = claim_version(_root_name(parent.name))
            with removed_at_end(folder.parent):
                text = version_card(folder.name, parent, origin, description, card, licence)
                write_bundle(network, settings, folder, description, text, facts)
                if appear(folder):
                    return read_model(user_folder() / folder.name)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
        raise NeonatalSegError(log.why_not_written(user_folder(), error)) from error


def status(name: str) -> str:
    """ "shipped", "candidate" or "accepted" (also one that was current earlier and was not rolled back)."""
    return state_of(installed_model(name))


def state_of(model: Model) -> str:
    """As :func:`status`, for a model that was read already."""
    if model.folder.parent == shipped_models():
        return SHIPPED
    return ACCEPTED if (model.name, model.hash) in log.accepted_order(log.read_events()) else CANDIDATE


def current_name() -> str:
    """Name of the model that is used where none is named; see registry.current_model for its warnings."""
    return default_model_name()


def accept(name: str) -> Model:
    """Make a model the current one, after its weights were compared with their hash.

    Raises:
        NeonatalSegError: there is no such model, or it is broken; what was current stays so.
    """
    with store_lock():  # or it could be discarded between the look and the entry
        model = installed_model(name)
        model.check_weights()

        def decide(events: Sequence[Event]) -> Event | None:
            return None if current_model(events)[0] == name else Event(log.ACCEPT, name, model.hash)

        log.add_event(decide)
    return model


def roll_back() -> Model:
    """Take the last acceptance back: the model that was current before is so again.

    Raises:
        NeonatalSegError: the shipped model is current, and nothing was before it.
    """

    def decide(events: Sequence[Event]) -> Event:
        before = _before(events)
        if before is None:
            raise NeonatalSegError(f"There is nothing to roll back: {current_model(events)[0]} is the first model.")
        return Event(log.ROLL_BACK, *before)

    event = log.add_event(decide)
    assert event is not None
    return find_model(event.name)


def previous_name() -> str | None:
    """The model that :func:`roll_back` would bring back; None where there is none."""
    before = _before(log.read_events())
    return before[0] if before else None


def discard(name: str) -> None:
    """Delete one of the user's models, whole or broken; it is renamed first, so that no half model is ever listed.

    Raises:
        NeonatalSegError: it is shipped, current, not there, or in use by another program (Windows).
    """
    if _is_shipped(name):
        raise NeonatalSegError(f"{name} came with NeonatalSeg and cannot be discarded.")
    folder = user_folder() / name

    def decide(events: Sequence[Event]) -> Event:
        if not there and name not in [known for known, _ in log.accepted_order(events)]:
            raise NeonatalSegError(f"There is no model named {name!r} in {user_folder()}.")
        if current_model(events)[0] == name:
            raise NeonatalSegError(
                f"{name} is the current model: accept another one or roll back first, then discard it."
            )
        return Event(log.DISCARD, name, "")

    with store_lock():
        there = is_name(name) and folder.is_dir()
        if there and not is_bundle(folder):
            raise NeonatalSegError(
                f"{folder} was not deleted: it is not a model (it has neither {METADATA_FILE} nor {WEIGHTS_FILE}): "
                "remove it by hand if you want."
            )
        log.add_event(decide)
        if there:
            delete(folder)


def history() -> list[Event]:
    """What was accepted, rolled back and discarded, the oldest first."""
    return log.read_events()


def export_model(name: str, zip_file: str | Path, *, names: bool = False, force: bool = False) -> Path:
    """Write a model into one zip file (into that folder, where ``zip_file`` is one).

    Args:
        names: with the names of scans and raters that it was fine-tuned with; else codes stand for them, and file names
            for paths (see :mod:`NeonatalSegLib.models.codes`).
        force: replace a file that is no export of this model; such an export is always replaced.

    Returns:
        The file.

    Raises:
        NeonatalSegError: no such model, its weights are not those of its hash, or the file cannot be written.
    """
    model, file = find_model(name), Path(zip_file)
    model.check_weights()
    file = file / f"{model.name}.zip" if file.is_dir() else file
    if file.exists() and not force and not _is_export_of(model.name, file):
        raise NeonatalSegError(
            f"{file} was not replaced: it is not an export of {model.name}. Choose another name, or give --force."
        )
    try:
        write_zip(model.folder, check_name(model.name, "model", plain=True), file, {} if names else coded(model))
    except OSError as error:
        raise NeonatalSegError(
            f"{file} could not be written ({error.strerror}): free space or choose another place."
        ) from error
    return file


def import_model(zip_file: str | Path, name: str = "", *, rename: bool = False) -> Model:
    """Take over a model that :func:`export_model` wrote elsewhere, as a candidate. The zip is not trusted.

    Args:
        name: under another name than its own.
        rename: where other weights have that name here, take the model over with the start of its hash behind its name.

    Raises:
        NeonatalSegError: not an exported model, or one that is damaged, dangerous, of a newer format or with other
            labels; or other weights have that name here and ``rename`` is off. Nothing is left behind.
    """
    file = Path(zip_file)
    name = check_name(name or name_in_zip(file), "model", plain=True)
    try:
        user_folder().mkdir(parents=True, exist_ok=True)
        sweep(user_folder())
        staging = user_folder() / f"{NEW}{leftovers.mark()}"
        with removed_at_end(staging):
            read_zip(file, staging / name)
            try:
                model = read_model(staging / name)
                model.check_weights()
                _check_data_only(model)
            except NeonatalSegError as error:  # the user knows the zip, not the folder that it was unpacked into
                raise NeonatalSegError(str(error).replace(str(staging / name), str(file))) from error
            if rename and _taken(name, model.hash):
                (staging / name).rename(staging / (name := f"{name}-{model.hash[:6]}"))
            with store_lock():
                return _existing(name, model.hash) or _moved_in(staging / name) or _must_be(name, model.hash)
    except OSError as error:
        raise NeonatalSegError(log.why_not_written(user_folder(), error)) from error


def _check_data_only(model: Model) -> None:
    try:
        check_no_expressions(model.metadata)
    except ValueError as error:
        raise NeonatalSegError(
            f"The model in {model.folder} was refused: {error}. Use a model from a source that you trust."
        ) from error


def _taken(name: str, weights_hash: str) -> bool:
    """True where other weights have that name here."""
    try:
        _existing(name, weights_hash)
    except NeonatalSegError:
        return True
    return False


def _existing(name: str, weights_hash: str) -> Model | None:
    """The model of that name that is here already with the same weights; NeonatalSegError with others."""
    same = [p for parent in (shipped_models(), user_folder()) if parent.is_dir() for p in parent.iterdir()]
    for folder in same:
        if folder.name.casefold() == name.casefold() and folder.is_dir():  # some systems do not tell cases apart
            with suppress(NeonatalSegError):
                if (there := read_model(folder)).hash == weights_hash:
                    return there
            raise NeonatalSegError(
                f"There is a model {folder.name} already, with other weights: import this one under a new name "
                "(neonatalseg models import FILE --name NAME)."
            )
    return None


def _moved_in(folder: Path) -> Model | None:
    return read_model(user_folder() / folder.name) if appear(folder) else None


def _must_be(name: str, weights_hash: str) -> Model:
    """Another process was quicker with this name: then its model is evaluated like any that was here before."""
    there = _existing(name, weights_hash)
    assert there is not None
    return there


def _is_export_of(name: str, file: Path) -> bool:
    try:
        return name_in_zip(file) == name
    except NeonatalSegError:
        return False


def _is_shipped(name: str) -> bool:
    return is_name(name) and (shipped_models() / name).is_dir()


def _before(events: Sequence[Event]) -> tuple[str, str] | None:
    """Name and hash of what a roll-back brings; models that are gone do not count, the shipped one is before all."""
    order: list[tuple[str, str]] = [(DEFAULT_MODEL, "")]
    for entry in log.accepted_order(events):
        if entry[0] == order[-1][0]:
            order[-1] = entry
        elif is_there(*entry):
            order.append(entry)
    return order[-2] if len(order) > 1 else None


def _root_name(parent: str) -> str:
    """The name that the versions of a family share, fit for a folder."""
    root = re.sub(r"-ft\d+$", "", parent)
    return re.sub(r"[^A-Za-z0-9._-]", "-", root).strip(".-_")[:60] or "model"


def _inherited(parent: Model, lineage: Lineage) -> dict[str, Any]:
    """Facts of the new model: what it has seen is what its parent has seen, and the scans of this fine-tuning."""
    before = ModelFacts() if lineage.strategy == "scratch" else parent.facts
    facts: dict[str, Any] = {"training_subjects": list(dict.fromkeys([*before.training_subjects, *lineage.scans]))}
    for key, held_out in (
        ("validation_subjects", before.validation_subjects),
        ("test_subjects", before.test_subjects),
    ):
        if held_out:  # what was learned from now is held out no more
            facts[key] = [subject for subject in held_out if subject not in lineage.scans]
    if ages := sorted([*lineage.scan_ages_weeks.values(), *(before.ages_weeks or ())]):
        facts["ages_weeks"] = [ages[0], ages[-1]]
    return facts


def _plain(value: Any) -> Any:
    """JSON has no NaN, no tuples and no numbers of numpy."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else json.loads(json.dumps(value))
