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
        randomisation_end: what its chances have become at the end of the run; they go over evenly. None: they stay.
        whole_brain: share of the patches that show the whole brain instead of ``network.patch``, at the start and at
            the end of the run; only with a ``randomisation`` and ``batch_size`` 1.
        start: name or folder of the model whose weights the run starts from; empty: random weights.
        done_epochs: how many epochs of this schedule the model ``start`` has behind it: a run whose folder is lost goes
            on from its bundle, without the optimizer's state.
        warmup_steps: steps in which the learning rate rises to its value (of this start, also of a later one).
        ema: decay of the running average of the weights that is validated and shipped, such as 0.999; 0: no average.
        pool: patches that are drawn at a time and kept on disk, to be used ``pool_uses`` times under cheap changes
            (see ``patch_pool.py``); 0: every patch is drawn anew.
        compiled: translate the network for patches of ``network.patch`` by ``torch.compile``, which needs a C++
            compiler and one to two minutes at the start; without an age head.
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
    randomisation_end: RandomisationSettings | None = None
    whole_brain: tuple[float, float] = (0.0, 0.0)
    start: str = ""
    done_epochs: int = 0
    warmup_steps: int = 0
    ema: float = 0.0
    pool: int = 0
    pool_uses: int = 4
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.randomisation is None and (self.randomisation_end is not None or any(self.whole_brain)):
            raise NeonatalSegError(
                "randomisation_end and whole_brain need a randomisation: give one, or leave them out."
            )
        if self.head_weights not in ("mean", "sum"):
            raise NeonatalSegError(f"There are no head_weights {self.head_weights!r}: choose mean or sum.")
        if any(self.whole_brain) and self.batch_size != 1:
            raise NeonatalSegError("Patches of the whole brain differ in size: they need a batch_size of 1.")
        if not (0 <= self.ema < 1 and self.pool >= 0 and self.pool_uses >= 1 and 0 <= self.done_epochs < self.epochs):
            raise NeonatalSegError("ema must lie in 0-1, pool_uses be 1 or more, done_epochs less than epochs.")
        if self.compiled and self.network.age_head:
            raise NeonatalSegError("compiled works without an age head: leave one of them out.")
        if self.optimizer not in ("sgd", "adamw"):
            raise NeonatalSegError(f"There is no optimizer {self.optimizer!r}: choose sgd or adamw.")
        if (left := self.epochs - self.done_epochs) % self.validate_every:
            raise NeonatalSegError(
                f"{left} epochs are not a multiple of validate_every ({self.validate_every}): the last epoch, "
                "where the learning rate has come down, would never be validated."
            )

    @property
    def patches(self) -> int:
        """Patches of the whole schedule."""
        return self.epochs * self.steps_per_epoch * self.batch_size

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
        for key in ("randomisation", "randomisation_end"):
            if (changes := data.pop(key, None)) is not None:
                if unknown := set(changes) - {f.name for f in fields(RandomisationSettings)}:
                    raise NeonatalSegError(f"Unknown {key} setting {sorted(unknown)[0]!r}.")
                data[key] = RandomisationSettings(**tuples(changes))
        return cls(**{key: tuples(value) for key, value in data.items()})


def read_settings(path: str | Path) -> TrainingSettings:
    """Training settings from a JSON file; NeonatalSegError where it is missing or not understood."""
    return TrainingSettings.from_json(read_object(path, "training configuration"))
