"""The model that a study names for its own scans: it is used where somebody gives the study's folder as the model.

A model that was fine-tuned "for this scanner" may be worse than before on scans of others, so it does not become the
one that is used everywhere. ``--model STUDY`` (or ``find_model("path/to/study")``) means the model named here; nothing
takes it without being told so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.models.bundle import Model

STUDY, NAMED = "study.json", "model.json"


class Named(NamedTuple):
    """An installed model by its name and the hash of its weights."""

    name: str
    sha256: str


def is_study(folder: str | Path) -> bool:
    """Whether a folder is that of an annotation study."""
    return (Path(folder) / STUDY).is_file()


def name_for_study(study: str | Path, model: Model) -> None:
    """Let a study name a model; what it named before is replaced.

    Raises:
        NeonatalSegError: the folder is no study, or cannot be written.
    """
    if not is_study(study):
        raise NeonatalSegError(f"{study} holds no study: there is no {STUDY} in it.")
    try:
        write_text(Path(study) / NAMED, json.dumps({"model": model.name, "sha256": model.hash}, indent=1) + "\n")
    except OSError as error:
        raise NeonatalSegError(f"{Path(study) / NAMED} could not be written ({error.strerror}).") from error


def named_by_study(study: str | Path) -> Named:
    """The model that a study names. Only a name is read: a study's text can point to no other place.

    Raises:
        NeonatalSegError: it names none, or its text is not understood.
    """
    file = Path(study) / NAMED
    if not file.is_file():
        raise NeonatalSegError(
            f"The study {study} names no model: `neonatalseg models use NAME --study {study}` lets it name one."
        )
    text = read_object(file, "name of a study's model")
    name, sha256 = text.get("model"), text.get("sha256")
    if not isinstance(name, str) or not isinstance(sha256, str):
        raise NeonatalSegError(f'{file} does not say which model it means: expected "model" and "sha256".')
    return Named(name, sha256)
