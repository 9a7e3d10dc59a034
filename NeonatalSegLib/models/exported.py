"""The export in a bundle: ``models/openvino.zip``, one network for OpenVINO that was made from the bundle's weights.

One file, replaced whole: two processes that export at once leave one of the two, and a kill the old one. It holds
``network.xml`` and ``network.bin`` (OpenVINO's own format: data, not a program) and ``export.json``: which weights it
was made of, the hashes of both files, the precision, and what int8 was calibrated on.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError, reason_of
from NeonatalSegLib.files.atomic import write_file
from NeonatalSegLib.files.settings import parse_object
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import is_shipped
from NeonatalSegLib.models.strangers import MOST_XML, check_export, most_bytes

EXPORT_FILE = "models/openvino.zip"
PRECISIONS = ("int8", "fp32")
FORMAT = 1
_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # the same export gives the same bytes


@dataclass(frozen=True)
class Export:
    """An export that has been read and checked.

    Attributes:
        xml, weights: the network as OpenVINO reads it.
        precision: "int8" or "fp32".
        facts: more of ``export.json``: versions, calibration.
    """

    xml: bytes
    weights: bytes
    precision: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_export(model: Model) -> Export | None:
    """The export of a bundle; None where it has none.

    Raises:
        NeonatalSegError: it is damaged, of a newer format, or was made from other weights.
    """
    file = model.folder / EXPORT_FILE
    if not file.is_file():
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > most_bytes(model.network) + MOST_XML:
                raise ValueError("it is larger than the model's network can be")
            facts = parse_object(archive.read("export.json"))
            xml, weights = archive.read("network.xml"), archive.read("network.bin")
        version, precision, hashes, of = (facts[k] for k in ("format", "precision", "sha256", "weights_sha256"))
        if not is_shipped(model):
            check_export(xml, weights, model)
        whole = [hashes["network.xml"], hashes["network.bin"]] == [_sha256(xml), _sha256(weights)]
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise NeonatalSegError(f"{file} is damaged ({error}): make it again, {_how(model)}.") from error
    if version != FORMAT or precision not in PRECISIONS:
        raise NeonatalSegError(f"{file} has another format than this version reads: make it again, {_how(model)}.")
    if not whole:
        raise NeonatalSegError(f"{file} does not hold what its export.json says: make it again, {_how(model)}.")
    if of != model.hash:
        raise NeonatalSegError(f"{file} was made from other weights than {model.name}'s: make it again, {_how(model)}.")
    return Export(xml, weights, precision, facts)


def export_bytes(model: Model, xml: bytes, weights: bytes, precision: str, facts: Mapping[str, Any]) -> bytes:
    """The zip of an export; the same export gives the same bytes."""
    told = {
        "format": FORMAT,
        "precision": precision,
        "weights_sha256": model.hash,
        "sha256": {"network.xml": _sha256(xml), "network.bin": _sha256(weights)},
        **facts,
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        members = {"export.json": json.dumps(told, indent=1).encode(), "network.xml": xml, "network.bin": weights}
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, _SAME_DATE)
            # The weights hardly shrink, and are read at every start: stored.
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".bin") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return stream.getvalue()


def write_export(model: Model, xml: bytes, weights: bytes, precision: str, facts: Mapping[str, Any]) -> Path:
    """Put an export into a bundle, over the one that is there.

    Raises:
        NeonatalSegError: the bundle's folder cannot be written.
    """
    content = export_bytes(model, xml, weights, precision, facts)
    file = model.folder / EXPORT_FILE
    try:
        write_file(file, lambda part: part.write_bytes(content))
    except OSError as error:
        raise NeonatalSegError(
            f"{file} could not be written ({reason_of(error)}): copy the model's folder to where you may write and "
            "export it there (give that folder in place of the model's name)."
        ) from error
    return file


def export_model(model: Model, windows: list[Any] | None = None, calibration: Mapping[str, Any] | None = None) -> Path:
    """Make the export from the bundle's weights: int8 where calibration ``windows`` are given, else fp32.

    Raises:
        NeonatalSegError: as :meth:`Model.load_network`, ``openvino_export.exported`` and :func:`write_export`.
    """
    from NeonatalSegLib.networks.openvino_export import exported

    xml, weights = exported(model.load_network(), model.network, windows)
    if windows is None:
        return write_export(model, xml, weights, "fp32", {"made_with": _versions("openvino")})
    facts = {"made_with": _versions("openvino", "nncf"), "calibration": calibration}
    return write_export(model, xml, weights, "int8", facts)


def export_where_possible(model: Model) -> str:
    """Make the fp32 export of a model that has just been saved; why that failed, in words, or "".

    Without it the model works as well, through PyTorch: nothing that goes wrong here may cost a fine-tuned network.
    """
    try:
        export_model(model)
    except Exception as error:  # OpenVINO's converter fails in many ways
        return (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return ""


def _how(model: Model) -> str:
    return f"neonatalseg models openvino {model.name}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}
