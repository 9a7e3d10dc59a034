"""What is offered for choice: volumes by their names, models, devices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.panel.segment_state import Device


def choose_inputs(parameters: Any, scene: Any) -> None:
    """Where neither T1 nor T2 is chosen, take the first volumes whose names say what they are."""
    if parameters.t1 is not None or parameters.t2 is not None:
        return
    nodes = [
        scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
    ]
    nodes = [node for node in nodes if node.GetClassName() == "vtkMRMLScalarVolumeNode" and node.GetImageData()]
    for key in ("t1", "t2"):
        found = next((node for node in nodes if named(node.GetName(), key)), None)
        if found is not None:
            setattr(parameters, key, found)


def named(name: str, modality: str) -> bool:
    """True where a volume's name says "t1" or "t2" as a word of its own ("sub-01_T2w"), and is not a result of ours."""
    if re.search(r"(tissues|uncertainty|volumes)( \d+)?$|(tissues|uncertainty)_\d+$", name):
        return False
    return re.search(rf"(^|[^a-z0-9]){modality}(w|[^a-z0-9]|$)", name.lower()) is not None


def devices(hello: Mapping[str, Any]) -> list[Device]:
    """The devices that the compute process told of."""
    return [
        Device(str(found["name"]), str(found["text"]), bool(found["works"]), str(found.get("reason") or ""))
        for found in hello.get("devices", ())
    ]


def usable_device(wanted: str, known: Sequence[Device]) -> str:
    """The device to ask for: "auto" where the wanted one, from a scene of another computer perhaps, is not here."""
    return wanted if not known or any(device.works and device.name == wanted for device in known) else "auto"


def cpu_seconds(hello: Mapping[str, Any]) -> float | None:
    """What a segmentation will take on this CPU, roughly, before one was timed; None where the threads are not told.

    Measured with the shipped network on newborns at 0.86 mm: 20 s of one thread with PyTorch, 3 s with OpenVINO, shared
    by all, and 3 s that are not.
    """
    for device in hello.get("devices", ()):
        if device["name"] == "cpu" and (threads := re.search(r"(\d+) thread", str(device["text"]))):
            shared = 3.0 if device.get("engine") == "openvino" else 20.0
            return 3.0 + shared / max(1, int(threads[1]))
    return None


def models(hello: Mapping[str, Any]) -> dict[str, str]:
    """Name and one-line description of each model, the default first."""
    default = hello.get("default_model")
    told = sorted(hello.get("models", ()), key=lambda model: (model["name"] != default, model["name"]))
    return {str(model["name"]): str(model["description"]) for model in told}


def known_models() -> dict[str, str]:
    """As ``models``, read here: before the compute process was started, or after a model came or went."""
    from NeonatalSegLib.models.registry import default_model_name, list_models

    found = [{"name": model.name, "description": model.description} for model in list_models()]
    return models({"models": found, "default_model": default_model_name()})


def model_of_scene(name: str) -> str:
    """The name of a model that a scene's parameters hold; a scene may be a stranger's, and carry a path instead.

    Raises:
        NeonatalSegError: it is a path.
    """
    from NeonatalSegLib.models.registry import is_name

    if name and not is_name(name):
        raise NeonatalSegError(
            f"This scene names its model by a path ({name}), which is not followed. Choose an installed model."
        )
    return name


def default_model(known: Mapping[str, str]) -> str:
    """The model that is used where none is chosen; "" where there is none."""
    return next(iter(known), "")


def completed_slices(study: str) -> tuple[int, int, int]:
    """How many slices of a study any rater has completed, how many are planned, and how many earlier rounds add.

    Raises:
        NeonatalSegError: no study, or an earlier round that is gone.
    """
    from NeonatalSegLib.annotation.completed import all_rounds, every_completed_key
    from NeonatalSegLib.annotation.study import read_study

    found = read_study(study)
    done = every_completed_key(found)
    before = {key for one in all_rounds([study])[:-1] for key in every_completed_key(read_study(one))}
    return len(done), len(found.plan.slices), len(before - set(done))
