"""Models as MONAI bundles on disk: found, checked, loaded and saved here.

A bundle is a folder ``<name>/`` with ``configs/metadata.json`` (what goes in, what comes out, how the network is
built, what it was trained on, figures, hash), ``models/model.pt`` (weights only), ``docs/README.md`` (model card), and
``configs/inference.json``, with which MONAI alone runs it: the same file in every bundle.
Model files are data, not programs: weights load with ``weights_only=True``, bundle expressions are not evaluated.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError, reason_of
from NeonatalSegLib.files.atomic import sha256
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.files.together import finish_left, make_staging, move_together
from NeonatalSegLib.models.facts import ModelFacts
from NeonatalSegLib.models.strangers import check_facts, check_network, check_tensors, check_torch, check_weights_file
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.resources import bundle_config
from NeonatalSegLib.tissues import TISSUES

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE, CARD_FILE, METADATA_FILE = "models/model.pt", "docs/README.md", "configs/metadata.json"
CONFIG_FILE = "configs/inference.json"
# Beside torch and MONAI, to run a bundle with that file: what it was tried with.
BUNDLE_PACKAGES = {"nibabel": "5.3.2", "pytorch-ignite": "0.5.5", "fire": "0.7.1"}
FORMAT = 1  # of the "neonatalseg" section of metadata.json; raised when an older reader would misread it


@dataclass(frozen=True)
class Model:
    """A bundle on disk whose metadata have been read; the weights are not loaded yet.

    Attributes:
        name: the bundle's folder name.
        folder: where it lies.
        metadata: ``configs/metadata.json`` as it is.
        network: how its network is built.
        facts: what the metadata say of its training, its figures and its origin.
    """

    name: str
    folder: Path
    metadata: Mapping[str, Any]
    network: NetworkSettings
    facts: ModelFacts = field(default_factory=ModelFacts)

    @property
    def description(self) -> str:
        """One line for lists."""
        return str(self.metadata.get("description", ""))

    @property
    def spacing_mm(self) -> float:
        return self.network.spacing_mm

    @property
    def hash(self) -> str:
        """SHA-256 of the weights' file, as the metadata say; checked when the weights are loaded."""
        return str(self.metadata["neonatalseg"]["sha256"])

    @property
    def ages_weeks(self) -> tuple[float, float] | None:
        """Youngest and oldest post-menstrual age in training, where stated."""
        return self.facts.ages_weeks

    def check_weights(self) -> Path:
        """The weights' file, after its hash was compared with the one that the metadata state.

        Raises:
            NeonatalSegError: the file is missing, unreadable, or another one.
        """
        file = self.folder / "models" / "model.pt"
        if not file.is_file():
            raise NeonatalSegError(f"The model {self.name} has no weights: {file} is missing. Install the model again.")
        if (found := sha256(file)) != self.hash:
            raise NeonatalSegError(
                f"{file} is not the file that the model's metadata describe (SHA-256 {found[:12]}..., expected "
                f"{self.hash[:12]}...): it is corrupt or was exchanged. Install the model again."
            )
        return file

    def load_network(self) -> nn.Module:
        """Build the network, check the hash and load the weights (float32, on the CPU, evaluation mode).

        Raises:
            NeonatalSegError: the file is missing, corrupt, holds code, or does not fit the network.
        """
        import torch

        file = self.check_weights()
        check_torch(torch.__version__, self)
        check_weights_file(file, self.network)
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise NeonatalSegError(
                f"{file} was refused: it is damaged, or holds code instead of plain weights. Use a model from a source "
                "that you trust, or install it again."
            ) from error
        network = build_network(self.network)
        try:
            check_tensors(weights, network)
            network.load_state_dict(weights)  # into the network's own float32
        except (RuntimeError, ValueError) as error:
            raise NeonatalSegError(f"The weights in {file} do not fit the network in its metadata.") from error
        return network.eval()


def read_model(folder: str | Path) -> Model:
    """Read a bundle's metadata.

    Raises:
        NeonatalSegError: not a bundle, of a newer format, or with another label table.
    """
    folder = Path(folder)
    file = folder / METADATA_FILE
    finish_left(folder)
    try:
        metadata = read_object(file, "model's description", most_bytes=4_000_000)
        ours = metadata["neonatalseg"]
        version = int(ours["format"])
        labels_there, hash_there = ours.get("labels"), ours.get("sha256")
    except (NeonatalSegError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NeonatalSegError(
            f"{folder} is not a NeonatalSeg model: expected a MONAI bundle with configs/metadata.json "
            "and its 'neonatalseg' section."
        ) from error
    if version > FORMAT:
        raise NeonatalSegError(
            f"The model in {folder} has the format {version}; this version of NeonatalSeg reads up to {FORMAT}. "
            "Update NeonatalSeg."
        )
    labels = {str(t.index): t.key for t in TISSUES}
    if labels_there != labels:
        raise NeonatalSegError(f"The model in {folder} has another label table than NeonatalSeg's ten classes.")
    if not hash_there:
        raise NeonatalSegError(f"The model in {folder} does not state the hash of its weights: it cannot be checked.")
    try:
        network = NetworkSettings.from_json(ours.get("network", {}))
        check_network(network)
    except (NeonatalSegError, TypeError, ValueError, OverflowError) as error:
        raise NeonatalSegError(f"The model in {folder} states a network that cannot be built: {error}.") from error
    try:
        check_facts(metadata)
        facts = ModelFacts.from_json(ours)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise NeonatalSegError(
            f"The model in {folder} states facts about its training that cannot be read ({error}): correct "
            "configs/metadata.json, or install the model again."
        ) from error
    name = os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119  # not a link's target, nor "." or ".."
    return Model(name, folder, metadata, network, facts)


def save_model(
    network: nn.Module,
    settings: NetworkSettings,
    folder: str | Path,
    *,
    description: str,
    card: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Model:
    """Write a bundle; weights as float16 (half the size; inference runs in 16 bit anyway).

    Args:
        folder: of the bundle; its last part is the model's name. Files of an existing one are replaced, all or none.
        card: docs/README.md.
        facts: more entries for the "neonatalseg" section: training subjects, ages, figures, command.

    Raises:
        NeonatalSegError: it could not be written; what was there stays.
    """
    try:
        return write_bundle(network, settings, Path(folder), description, card, facts or {})
    except OSError as error:
        raise NeonatalSegError(
            f"The model {folder} could not be written ({reason_of(error)}): free space or choose another folder."
        ) from error


def write_bundle(
    network: nn.Module, settings: NetworkSettings, folder: Path, description: str, card: str, facts: Mapping[str, Any]
) -> Model:
    """As :func:`save_model`; OSError where it could not be written."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    halves: dict[int, torch.Tensor] = {}  # DynUNet lists most weights under two names: one copy of each in the file
    weights = {k: halves.setdefault(v.data_ptr(), v.detach().cpu().half()) for k, v in network.state_dict().items()}
    staging = make_staging(folder)
    try:
        for part in ("configs", "models", "docs"):
            (staging / part).mkdir()
        torch.save(weights, staging / WEIGHTS_FILE)
        metadata = _metadata(folder.resolve().name, settings, description, sha256(staging / WEIGHTS_FILE), facts)
        (staging / CARD_FILE).write_text(card or f"# {folder.name}\n\n{description}\n", encoding="utf-8")
        (staging / METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(bundle_config(), staging / CONFIG_FILE)
        # A kill leaves the old model or the new one.
        move_together(staging, (WEIGHTS_FILE, CARD_FILE, CONFIG_FILE, METADATA_FILE))
    except RuntimeError as error:  # torch tells of a full disk so
        raise OSError(errno.EIO, reason_of(error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_model(folder)


def _metadata(
    name: str, settings: NetworkSettings, description: str, weights_hash: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What configs/metadata.json says, in the order of MONAI's schema."""
    import torch

    ours = {
        "format": FORMAT,
        "network": settings.to_json(),
        "labels": {str(t.index): t.key for t in TISSUES},
        "sha256": weights_hash,
        **facts,
    }
    channels = {str(t.index): t.name for t in TISSUES}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: "first version"},
        "monai_version": _version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": BUNDLE_PACKAGES,
        "name": name,
        "task": "Segmentation of the newborn brain on T1 and T2, together or either alone",
        "description": description,
        "authors": "NeonatalSeg",
        "copyright": "see docs/README.md",
        "intended_use": "Research use only, not for diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "modality": "MR", "num_channels": settings.in_channels,
                    "spatial_shape": [f"{settings.stride}*n"] * 3, "dtype": "float32", "value_range": [-5, 10],
                    "is_patch_data": True, "channel_def": {"0": "T1", "1": "T2"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "segmentation", "num_channels": settings.out_channels,
                    "spatial_shape": [f"{settings.stride}*n"] * 3, "dtype": "float32", "value_range": [0, 1],
                    "is_patch_data": True, "channel_def": channels,
                }
            },
        },
        "neonatalseg": ours,
    }  # fmt: skip


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
