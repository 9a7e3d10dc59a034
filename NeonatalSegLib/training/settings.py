"""The settings of a training run, as they lie in a JSON file and in a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from NeonatalSegLib.augmentation.randomisation import RandomisationSettings
from NeonatalSegLib.augmentation.transforms import AugmentationSettings
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.settings import read_object, tuples
from NeonatalSegLib.networks.network import PRESETS, NetworkSettings


@dataclass(frozen=True)
class TrainingSettings:
    """A whole training run; ``to_json`` of it is the file that reproduces the run.

    Attributes:
        network: what is trained.
        validation, test: names of subjects held out; validation chooses the checkpoint, test chooses nothing.
        epochs, steps_per_epoch, batch_size: an epoch is a fixed number of steps, not a pass over the data.
        optimizer: "sgd" (the paper's: Nesterov momentum 0.99) or "adamw".
        learning_rate: at the start; multiplied by (1 - step / steps) ** 0.9 (paper, section 2).
        phantoms: synthetic newborns added to the training subjects.
        phantom_share: share of patches drawn from them.
        template_share: share of patches drawn from age templates, where there are some among the subjects.
        seed: of weights, patches and augmentation.
        validate_every: epochs between validations on whole scans.
        age_weight: of the squared error of the age in weeks, beside the segmentation's loss (AgeU-Net; only used where
            ``network.age_head`` is set).
        augmentation: of the patches; not looked at where there is a ``randomisation``.
        randomisation: patches of random contrast, size, head and scanner instead (``augmentation/randomisation.py``).
        in_turn: every pass over the subjects shows each of them once, as in the paper's code; else each patch is of a
            subject drawn anew. Without synthetic newborns and templates, whose shares would mean nothing then.
        head_weights: of the outputs' losses, 0.5 ** i: "mean" divides them by their sum, so that a loss means the same
            with any number of heads; "sum" does not, as in the paper's code (with three heads an SGD step 1.9 times
            as long).
        start: name or folder of the model whose weights the run starts from; empty: random weights.
    """

    network: NetworkSettings = PRESETS["laptop"]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    epochs: int = 60
    steps_per_epoch: int = 50
    batch_size: int = 2
    optimizer: str = "sgd"
    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    phantoms: int = 0
    phantom_share: float = 0.1
    template_share: float = 0.1
    seed: int = 0
    validate_every: int = 5
    age_weight: float = 0.01
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    randomisation: RandomisationSettings | None = None
    in_turn: bool = False
    head_weights: str = "mean"
    start: str = ""

    def __post_init__(self) -> None:
        if self.network.age_head and self.randomisation is not None:
            raise NeonatalSegError(
                "A network with an age head cannot learn from a randomisation, which draws heads of other sizes and "
                "younger brains than the age says: choose one of the two."
            )
        if self.head_weights not in ("mean", "sum"):
            raise NeonatalSegError(f"There are no head_weights {self.head_weights!r}: choose mean or sum.")
        if self.optimizer not in ("sgd", "adamw"):
            raise NeonatalSegError(f"There is no optimizer {self.optimizer!r}: choose sgd or adamw.")
        if self.epochs % self.validate_every:
            raise NeonatalSegError(
                f"{self.epochs} epochs are not a multiple of validate_every ({self.validate_every}): the last epoch, "
                "where the learning rate has come down, would never be validated."
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "network": self.network.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingSettings:
        """The inverse of :meth:`to_json`; what is left out has its default, what is unknown is refused.

        ``network`` may be the name of a preset, or change single values of the default one.
        """
        data = dict(data)
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise NeonatalSegError(
                f"Unknown training setting {sorted(unknown)[0]!r}: known are {', '.join(sorted(known))}."
            )
        network = data.pop("network", "laptop")
        if isinstance(network, str):
            if network not in PRESETS:
                raise NeonatalSegError(f"There is no network preset {network!r}: choose from {', '.join(PRESETS)}.")
            data["network"] = PRESETS[network]
        else:
            data["network"] = NetworkSettings.from_json({**PRESETS["laptop"].to_json(), **network})
        changes = data.pop("augmentation", {})
        if unknown := set(changes) - {f.name for f in fields(AugmentationSettings)}:
            raise NeonatalSegError(f"Unknown augmentation setting {sorted(unknown)[0]!r}.")
        data["augmentation"] = AugmentationSettings(**tuples(changes))
        if (changes := data.pop("randomisation", None)) is not None:
            if unknown := set(changes) - {f.name for f in fields(RandomisationSettings)}:
                raise NeonatalSegError(f"Unknown randomisation setting {sorted(unknown)[0]!r}.")
            data["randomisation"] = RandomisationSettings(**tuples(changes))
        return cls(**{key: tuples(value) for key, value in data.items()})


def read_settings(path: str | Path) -> TrainingSettings:
    """Training settings from a JSON file; NeonatalSegError where it is missing or not understood."""
    return TrainingSettings.from_json(read_object(path, "training configuration"))
