"""Which models there are: the shipped ones and the user's, by name or folder, and which is used where none is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model, read_model
from NeonatalSegLib.models.for_study import is_study, named_by_study
from NeonatalSegLib.models.history import Event, accepted_order, read_events, user_folder
from NeonatalSegLib.resources import shipped_models

DEFAULT_MODEL = "neonatal-v5"


def list_models() -> list[Model]:
    """The shipped models, then the user's, each sorted by name; what is not a whole bundle is passed over."""
    return installed_models()[0]


def installed_models() -> tuple[list[Model], list[str]]:
    """The models of :func:`list_models`, and in words why each other folder beside them was passed over."""
    models: list[Model] = []
    reasons: list[str] = []
    for folder in sorted(shipped_models().glob("*/configs/metadata.json")):
        _add_model(folder.parent.parent, models, reasons)
    shipped = {model.name for model in models}
    try:
        there = sorted(p for p in user_folder().iterdir() if not p.name.startswith("."))
    except FileNotFoundError:
        there = []
    except (OSError, NeonatalSegError) as error:
        return models, [*reasons, f"The user's models could not be listed: {error}"]
    for path in there:
        if path.suffix.lower() == ".zip":
            reasons.append(f"{path} is packed: take it over with neonatalseg models import, which also checks it.")
        elif path.name in shipped:
            reasons.append(f"{path} has the name of a shipped model: give the folder another name.")
        elif path.is_dir():
            _add_model(path, models, reasons)
    return models, reasons


def find_model(name_or_path: str | Path | None = None) -> Model:
    """A model by its name, by the path of its bundle folder or of a study that names one; None: the user's default.

    A name means an installed model, whatever lies in the working directory: a folder there is ``./NAME``.

    Raises:
        NeonatalSegError: there is none of that name (it lists what there is), or it is broken (it says how).

    Example:
        >>> find_model("neonatal-v5").spacing_mm
        0.8
    """
    if name_or_path is None:
        return installed_model(default_model_name())
    if isinstance(name_or_path, str) and is_name(name_or_path):
        return installed_model(name_or_path)
    if is_study(path := Path(name_or_path)):
        return _model_of_study(path)
    if path.is_dir():
        return read_model(path)
    raise NeonatalSegError(f"{path} is not a model: expected the name of a model or a bundle folder.")


def _model_of_study(study: Path) -> Model:
    """NeonatalSegError where the study names none, or one that is not here with the same weights."""
    named = named_by_study(study)
    model = installed_model(named.name)
    if model.hash != named.sha256:
        raise NeonatalSegError(
            f"The study {study} names the model {named.name} with other weights than those of that name here "
            f"({named.sha256[:12]} and {model.hash[:12]}): import the model that is meant (neonatalseg models import), "
            f"or name another (neonatalseg models use NAME --study {study})."
        )
    return model


def is_name(text: str) -> bool:
    """Whether this can be the name of an installed model, and is no path."""
    return bool(text) and not text.startswith(".") and not text.endswith(".pt") and not re.search(r"[/\\:\0]", text)


def as_option(folder: str | Path) -> str:
    """A folder as ``--model`` takes it: a bare word would mean an installed model, and pathlib drops a ``./``.

    Example:
        >>> as_option(Path("./second"))
        './second'
    """
    return f"./{folder}" if is_name(str(folder)) else str(folder)


def installed_model(name: str) -> Model:
    """A model of that name in the folders of NeonatalSeg and of the user, and nowhere else.

    Raises:
        NeonatalSegError: a path, none of that name (it lists what there is), or a broken one (it says how).
    """
    if not is_name(name):
        raise NeonatalSegError(f"{name!r} is not the name of an installed model. Import it first.")
    for parent in (shipped_models(), user_folder()):
        if (parent / name).is_dir():
            return read_model(parent / name)
    names = ", ".join(m.name for m in list_models()) or "none"
    hint = f" The folder of that name here is ./{name}." if Path(name).is_dir() else ""
    raise NeonatalSegError(f"There is no model named {name!r}. Installed models: {names}.{hint}")


def is_shipped(model: Model) -> bool:
    """Whether a model lies where those lie that came with NeonatalSeg."""
    return model.folder.parent == shipped_models()


def default_model_name() -> str:
    """Name of the model that is used where none is named: the accepted current one, else the shipped one."""
    return current_model()[0]


def current_model(events: Sequence[Event] | None = None) -> tuple[str, list[str]]:
    """Name of the user's default model, and warnings: which accepted ones are gone, so that an earlier one is used.

    Args:
        events: the history; default: as it is on disk.
    """
    warnings = []
    try:
        order = accepted_order(read_events() if events is None else events)
    except NeonatalSegError:  # no home folder: then nothing was accepted either
        order = []
    for name, accepted_hash in reversed(order):
        if is_there(name, accepted_hash):
            break
        warnings.append(f"The accepted model {name} is missing, broken or not the one that was accepted")
    else:
        name = DEFAULT_MODEL
    advice = f": {name} is used instead. Import it again, or accept another model (neonatalseg models accept NAME)."
    return name, [warning + advice for warning in warnings]


def is_there(name: str, accepted_hash: str) -> bool:
    """Whether an accepted model is still here; a shipped one in any version."""
    if (shipped_models() / name).is_dir():
        return True
    try:
        folder = user_folder() / name
        return read_model(folder).hash == accepted_hash and (folder / "models" / "model.pt").is_file()
    except NeonatalSegError:
        return False


def _add_model(folder: Path, models: list[Model], reasons: list[str]) -> None:
    try:
        models.append(read_model(folder))
    except NeonatalSegError as error:
        reasons.append(str(error))
