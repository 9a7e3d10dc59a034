"""Bundles that a stranger may have made: what they state is checked before it is used, and before memory is taken.

Gates: the types of what metadata.json states, the size of the network that it describes, the version of torch that is
to open the weights, the shapes of the weights, and the text of an export for OpenVINO.
"""

from __future__ import annotations

import itertools
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.network import NetworkSettings

if TYPE_CHECKING:
    from torch import nn

    from NeonatalSegLib.models.bundle import Model

# torch before 2.6 runs code in weights in spite of weights_only=True (CVE-2025-32434); before 2.10 such a file can
# write outside its memory (CVE-2026-24747).
SAFE_TORCH = (2, 10)
MOST_PARAMETERS = 60_000_000  # the paper's larger network has 31.4 million
MOST_FILTERS, MOST_LEVELS, MOST_PATCH = 1024, 8, 320
MOST_TEXT, MOST_XML = 20_000, 20_000_000
_LOOPS = (b"TensorIterator", b"Loop", b"If")
_FILE_BYTES_PER_PARAMETER, _FILE_BYTES_BESIDE = 8, 10_000_000  # float32 twice, names and structure


def check_torch(version: str, model: Model) -> None:
    """Refuse to open a model that did not come with NeonatalSeg where this torch is not safe for strangers' files.

    Raises:
        NeonatalSegError: it is too old.
    """
    from NeonatalSegLib.resources import shipped_models

    numbers = re.match(r"(\d+)\.(\d+)", version)
    if model.folder.parent == shipped_models() or (numbers and (int(numbers[1]), int(numbers[2])) >= SAFE_TORCH):
        return
    raise NeonatalSegError(
        f"The model {model.name} was not opened: a prepared model file can make this PyTorch ({version}) run code, or "
        f"write where it may not. Update it to {SAFE_TORCH[0]}.{SAFE_TORCH[1]} or later (pip install -U torch, in "
        "Slicer the PyTorch extension); the models that came with NeonatalSeg work as before."
    )


def check_network(settings: NetworkSettings) -> None:
    """Refuse a network that is larger than any for newborns' scans; nothing was built yet.

    Raises:
        ValueError: it is; in words.
    """
    filters = settings.filters
    if len(filters) > MOST_LEVELS or max(filters) > MOST_FILTERS or max(settings.patch) > MOST_PATCH:
        raise ValueError(f"filters {filters} with a patch of {settings.patch} voxels are more than any model here has")
    if (settings.in_channels, settings.out_channels) != (2, 10):
        raise ValueError(f"{settings.in_channels} inputs and {settings.out_channels} classes; expected 2 and 10")
    if (number := _parameters(settings)) > MOST_PARAMETERS:
        raise ValueError(
            f"about {number / 1e6:.0f} million parameters, and at most {MOST_PARAMETERS / 1e6:.0f} are read"
        )


def most_bytes(settings: NetworkSettings) -> int:
    """The most that a file with a network's weights may take."""
    return _FILE_BYTES_PER_PARAMETER * _parameters(settings) + _FILE_BYTES_BESIDE


def check_weights_file(file: Path, settings: NetworkSettings) -> None:
    """Refuse weights that unpack to more than the network can hold, or that are no zip as torch writes it.

    Raises:
        NeonatalSegError: so it is.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise NeonatalSegError(
            f"{file} was refused: it is damaged, or holds code instead of plain weights. Use a model from a source "
            "that you trust, or install it again."
        ) from error
    most = most_bytes(settings)
    if size > most:
        raise NeonatalSegError(
            f"{file} was refused: it unpacks to {size / 1e6:.0f} MB, and the network in the model's metadata takes "
            f"{most / 1e6:.0f} at most."
        )


def check_tensors(weights: Any, network: nn.Module) -> None:
    """Make sure that weights are the network's, name by name, before they are copied into it.

    Raises:
        ValueError: they are not.
    """
    import torch

    expected = {name: value.shape for name, value in network.state_dict().items()}
    if not isinstance(weights, Mapping) or set(weights) != set(expected):
        raise ValueError("other names of weights than the network's")
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.shape != expected[name]:
            raise ValueError(f"{name} is not of the network's shape")


def check_export(xml: bytes, weights: bytes, model: Model) -> None:
    """Refuse an export that OpenVINO should not be given: what it reads is data, but sizes in it ask for memory.

    Raises:
        ValueError: too large for the network, not plain XML, a layer of another library's, a loop, or sizes that do not
            fit; in words.
    """
    if len(xml) > MOST_XML or len(weights) > most_bytes(model.network):
        raise ValueError("it is larger than the model's network can be")
    if re.search(rb"<!|<\?(?!xml )", xml):
        raise ValueError("its network.xml is not plain XML")
    for layer in re.finditer(rb"<layer ([^>]*)>", xml):
        kind, version = (re.search(rb' %s="([^"]*)"' % name, b" " + layer[1]) for name in (b"type", b"version"))
        if kind is None or version is None or not re.fullmatch(rb"opset\d+", version[1]) or kind[1] in _LOOPS:
            raise ValueError(f"it holds a layer that no network here has ({layer[0][:80]!r})")
    for offset, size in re.findall(rb'offset="(\d+)" size="(\d+)"', xml):
        if int(offset) + int(size) > len(weights):
            raise ValueError("its network.xml asks for weights that its network.bin does not have")
    if any(len(number) > 5 for number in re.findall(rb"<dim>-?(\d+)</dim>", xml)):
        raise ValueError("its network.xml states a size that no network here has")


def check_facts(metadata: Mapping[str, Any]) -> None:
    """Make sure that what is shown of a model, and reckoned with, has the types that it should have.

    Raises:
        ValueError: an entry has not; it is named.
    """
    for key in ("description", "name"):
        _check(metadata, key, _text, "metadata")
    ours = metadata["neonatalseg"]
    if not re.fullmatch(r"[0-9a-f]{64}", str(ours.get("sha256"))):
        raise ValueError("sha256 is not the hash of a file")
    for key in ("training_subjects", "validation_subjects", "test_subjects"):
        _check(ours, key, _list_of(_text), "neonatalseg")
    _check(ours, "ages_weeks", _ages, "neonatalseg")
    _check(ours, "figures", _dict_of(_dict_of(_anything)), "neonatalseg")
    for inputs, figure in (ours.get("figures") or {}).items():
        for key in ("mean_dsc_no_bg", "subjects"):
            if not _number(figure.get(key)):
                raise ValueError(f"the figure {inputs!r} has no number {key!r}")
    _check(ours, "lineage", _dict_of(_anything), "neonatalseg")
    for key, kind in _LINEAGE.items():
        _check(ours.get("lineage") or {}, key, kind, "lineage")


def check_no_expressions(metadata: Any, where: str = "its metadata") -> None:
    """Refuse metadata that MONAI would run or fetch as a program; it never is by us, but a bundle is made to be run.

    Raises:
        ValueError: an entry is an expression ("$"), a macro ("%") or an object to be made ("_target_").
    """
    if isinstance(metadata, Mapping):
        for key, value in metadata.items():
            if key == "_target_":
                raise ValueError(f"{where} hold a program for MONAI ({key!r}: {str(value)[:60]!r})")
            check_no_expressions(value, where)
    elif isinstance(metadata, list):
        for value in metadata:
            check_no_expressions(value, where)
    elif isinstance(metadata, str) and metadata.startswith(("$", "%")):
        raise ValueError(f"{where} hold a program for MONAI ({metadata[:60]!r})")


def _check(entries: Mapping[str, Any], key: str, kind: Callable[[Any], bool], where: str) -> None:
    value = entries.get(key)
    if value is not None and not kind(value):
        raise ValueError(f"its {where} states a {key!r} of the wrong type or size")


def _anything(_: Any) -> bool:
    return True


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _maybe_number(value: Any) -> bool:
    return value is None or _number(value)


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _dict_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _ages(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (0, 2) and all(map(_number, value))


def _scan(value: Any) -> bool:
    if isinstance(value, dict):
        return _text(value.get("name")) and _maybe_number(value.get("age_weeks"))
    return _text(value)


_LINEAGE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("parent", "parent_sha256", "date", "strategy", "device"), _text),
    **dict.fromkeys(("slices", "held_out_slices", "raters"), _list_of(_text)),
    **dict.fromkeys(("before", "after"), _dict_of(_maybe_number)),
    **dict.fromkeys(("before_mean", "after_mean", "source_before", "source_after", "mix", "seconds"), _maybe_number),
    **dict.fromkeys(("parameters_trained", "parameters_total"), _maybe_number),
    "scans": _list_of(_scan),
    "settings": _dict_of(_anything),
}


def _parameters(settings: NetworkSettings) -> int:
    """Roughly how many numbers a network has: two 3x3x3 convolutions in every block, down and up, 1x1x1 beside them."""
    filters = settings.filters
    down = sum(28 * a * b + 27 * b * b for a, b in zip((settings.in_channels, *filters), filters, strict=False))
    up = sum(8 * a * b + 55 * a * a + 27 * a * a for a, b in itertools.pairwise(filters))
    return down + up
