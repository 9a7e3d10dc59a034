"""Models as MONAI bundles on disk: found, checked, loaded and saved here.

A bundle is a folder ``<name>/`` with ``configs/metadata.json`` (what goes in, what comes out, how the network is
built, what it was trained on, figures, hash), ``models/model.pt`` (weights only) and ``docs/README.md`` (model card).
Model files are data, not programs: weights load with ``weights_only=True``, bundle expressions are not evaluated.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.network import NetworkSettings, build_network
from NeonatalSegLib.tissues import TISSUES

if TYPE_CHECKING:
    from torch import nn

DEFAULT_MODEL = "neonatal-t1t2"
FORMAT = 1  # of the "neonatalseg" section of metadata.json; raised when an older reader would misread it
_PACKAGE = Path(__file__).resolve().parent
# Beside the package in a checkout and in Slicer, inside it when installed by pip.
_MODEL_FOLDERS = (_PACKAGE.parent / "Resources" / "Models", _PACKAGE / "Resources" / "Models")


@dataclass(frozen=True)
class Model:
    """A bundle on disk whose metadata have been read; the weights are not loaded yet.

    Attributes:
        name: the bundle's folder name.
        folder: where it lies.
        metadata: ``configs/metadata.json`` as it is.
        network: how its network is built.
    """

    name: str
    folder: Path
    metadata: Mapping[str, Any]
    network: NetworkSettings

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
        ages = self.metadata["neonatalseg"].get("ages_weeks")
        return (float(ages[0]), float(ages[1])) if ages else None

    def load_network(self) -> nn.Module:
        """Build the network, check the hash and load the weights (float32, on the CPU, evaluation mode).

        Raises:
            NeonatalSegError: the file is missing, corrupt, holds code, or does not fit the network.
        """
        import torch

        file = self.folder / "models" / "model.pt"
        if not file.is_file():
            raise NeonatalSegError(f"The model {self.name} has no weights: {file} is missing. Install the model again.")
        if (found := sha256(file)) != self.hash:
            raise NeonatalSegError(
                f"{file} is not the file that the model's metadata describe (SHA-256 {found[:12]}..., expected "
                f"{self.hash[:12]}...): it is corrupt or was exchanged. Install the model again."
            )
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise NeonatalSegError(
                f"{file} was refused: it is damaged, or holds code instead of plain weights. Use a model from a source "
                "that you trust, or install it again."
            ) from error
        network = build_network(self.network)
        try:
            network.load_state_dict({k: v.float() for k, v in weights.items()})
        except (RuntimeError, AttributeError) as error:
            raise NeonatalSegError(f"The weights in {file} do not fit the network in its metadata.") from error
        return network.eval()


def list_models() -> list[Model]:
    """All models that are shipped, sorted by name; folders that are no bundle are passed over."""
    models: list[Model] = []
    for folder in _MODEL_FOLDERS:
        if folder.is_dir():
            models += [read_model(p) for p in sorted(folder.iterdir()) if (p / "configs" / "metadata.json").is_file()]
            break
    return models


def find_model(name_or_path: str | Path = DEFAULT_MODEL) -> Model:
    """A model by its name, or by the path of its bundle folder; NeonatalSegError lists what there is."""
    path = Path(name_or_path)
    if path.is_dir():
        return read_model(path)
    if len(path.parts) > 1 or path.suffix:
        raise NeonatalSegError(f"{path} is not a model: expected the name of a model or a bundle folder.")
    for model in (models := list_models()):
        if model.name == str(name_or_path):
            return model
    names = ", ".join(m.name for m in models) or "none"
    raise NeonatalSegError(f"There is no model named {name_or_path!r}. Installed models: {names}.")


def read_model(folder: str | Path) -> Model:
    """Read a bundle's metadata.

    Raises:
        NeonatalSegError: not a bundle, of a newer format, or with another label table.
    """
    folder = Path(folder)
    file = folder / "configs" / "metadata.json"
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        ours = metadata["neonatalseg"]
        version = int(ours["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    if ours.get("labels") != labels:
        raise NeonatalSegError(f"The model in {folder} has another label table than NeonatalSeg's ten classes.")
    if "sha256" not in ours:
        raise NeonatalSegError(f"The model in {folder} does not state the hash of its weights: it cannot be checked.")
    return Model(folder.resolve().name, folder, metadata, NetworkSettings.from_json(ours.get("network", {})))


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
        folder: of the bundle; its last part is the model's name. An existing one is replaced file by file.
        card: docs/README.md.
        facts: more entries for the "neonatalseg" section: training subjects, ages, figures, command.
    """
    import monai
    import torch

    folder = Path(folder)
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    halves: dict[int, torch.Tensor] = {}  # DynUNet lists most weights under two names: one copy of each in the file
    weights = {k: halves.setdefault(v.data_ptr(), v.detach().cpu().half()) for k, v in network.state_dict().items()}
    part_file = folder / "models" / "model.pt.part"
    torch.save(weights, part_file)
    ours = {
        "format": FORMAT,
        "network": settings.to_json(),
        "labels": {str(t.index): t.key for t in TISSUES},
        "sha256": sha256(part_file),
        **(facts or {}),
    }
    os.replace(part_file, folder / "models" / "model.pt")
    channels = {str(t.index): t.name for t in TISSUES}
    metadata = {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: "first version"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {"SimpleITK": _version("SimpleITK")},
        "name": folder.resolve().name,
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
    (folder / "docs" / "README.md").write_text(card or f"# {folder.name}\n\n{description}\n", encoding="utf-8")
    part_meta = folder / "configs" / "metadata.json.part"
    part_meta.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    os.replace(part_meta, folder / "configs" / "metadata.json")
    return read_model(folder)


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
