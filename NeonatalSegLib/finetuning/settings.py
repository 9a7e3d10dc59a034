"""The settings of a fine-tuning, as they lie in a JSON file and in a model's lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from NeonatalSegLib.augmentation.transforms import AugmentationSettings
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.settings import tuples
from NeonatalSegLib.models.promises import PROMISES
from NeonatalSegLib.networks.strategies import check_strategy

# Less than in training from scratch: the few slices are to be learned, and elastic warping tears planes of one voxel.
GENTLE = AugmentationSettings(
    elastic=0.0, affine=0.2, noise=0.1, smooth=0.1, contrast=0.1, bias=0.1, drop_modality=0.1
)  # fmt: skip


MINUTES = 6.0  # one fine-tuning, where nobody says how long it may take


class Recipe(NamedTuple):
    """How long is trained, and how much of the new weights the result may have."""

    steps: int
    mixes: tuple[float, ...]


# 300 steps at this rate take 10 % of a scan's slices most of the way that all of them go. All of the new weights cost
# newborns of the model's own kind 0.06 to 0.12 of mean DSC (docs/label-budget.md): so a mix is looked for.
RECIPES = {
    "everything": Recipe(300, tuple(n / 20 for n in range(2, 13))),
    "scanner": Recipe(300, (0.4, 0.7, 1.0)),
}


@dataclass(frozen=True)
class FineTuningSettings:
    """One fine-tuning; the defaults are for minutes on one machine.

    Attributes:
        strategy: one of the paper's six (networks/strategies.py).
        steps: optimiser steps of ``batch_size`` patches, at most; default: by ``keep``.
        minutes: that all of it may take; on a slow machine there are fewer steps. Default: ``MINUTES``, and no limit
            where ``steps`` are given.
        learning_rate: of AdamW after the warm-up; falls as (1 - step / steps) ** 0.9.
        warm_up: share of the steps in which the learning rate rises from 0.
        ema: decay of the running mean of the weights, which is what is evaluated and kept.
        rehearsal: share of patches from the model's own domain, against forgetting.
        distil: patches of the model's own domain are learned as the old model labels them, not as they were drawn.
        teacher: weight of the rest of the annotated scans, as the running mean of the weights labels it from half of
            the steps on where it is certain; 0: the annotated slices alone.
        certain: probability from which on the teacher is followed.
        mixes: the result is (1 - a) old + a new weights, a the best of these on the held-out slices; default: by
            ``keep``.
        keep: "everything": no mix that loses more than ``SOURCE_TOLERANCE`` on scans of the model's own kind, as far as
            the guard can tell; "scanner": the mix that is best on the held-out slices, whatever it loses elsewhere; the
            middle one where fewer than ``loop.ENOUGH_TO_CHOOSE`` are held out, which choose worse than nobody.
        held_out: share of the annotated slices that judge and are not learned from.
        judge_every: share of the steps between two judgements on held-out slices; 0: none while it trains.
        merged: groups of classes that the annotation does not tell apart; the first stands for all.
        patch: voxels (z, y, x); None for that of the network.

    Example:
        >>> FineTuningSettings.from_json({"strategy": "deep"}).steps
        300
    """

    strategy: str = "full"
    steps: int = None  # type: ignore[assignment]  # set at once: by ``keep`` where not given
    minutes: float | None = None
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    batch_size: int = 1
    warm_up: float = 0.1
    ema: float = 0.95
    rehearsal: float = 0.3
    distil: bool = False
    teacher: float = 0.0
    certain: float = 0.8
    mixes: tuple[float, ...] = None  # type: ignore[assignment]  # as ``steps``
    keep: str = "everything"
    held_out: float = 0.2
    judge_every: float = 0.2
    merged: tuple[tuple[int, ...], ...] = ()
    patch: tuple[int, int, int] | None = (48, 48, 48)
    seed: int = 0
    augmentation: AugmentationSettings = GENTLE

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        if self.keep not in PROMISES:
            raise NeonatalSegError(f"A fine-tuning keeps {' or '.join(PROMISES)}, got {self.keep!r}.")
        recipe = RECIPES[self.keep]
        if self.minutes is None and self.steps is None:
            object.__setattr__(self, "minutes", MINUTES)
        object.__setattr__(self, "steps", recipe.steps if self.steps is None else self.steps)
        object.__setattr__(self, "mixes", recipe.mixes if self.mixes is None else self.mixes)
        if self.minutes is not None and not self.minutes > 0:
            raise NeonatalSegError(f"A fine-tuning needs more than 0 minutes, got {self.minutes}.")
        if self.steps < 1 or self.batch_size < 1:
            raise NeonatalSegError(f"A fine-tuning needs at least one step and one patch, got {self.steps} steps.")
        for name in ("warm_up", "rehearsal", "held_out", "judge_every", "teacher", "certain"):
            if not 0 <= getattr(self, name) < 1.0001:
                raise NeonatalSegError(f"The fine-tuning setting {name} must lie in 0-1, got {getattr(self, name)}.")
        if not self.mixes or not all(0 < a <= 1 for a in self.mixes):
            raise NeonatalSegError(f"The mixes of old and new weights must lie above 0 and up to 1, got {self.mixes}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FineTuningSettings:
        """The inverse of :meth:`to_json`; unknown entries are refused."""
        if unknown := set(data) - {f.name for f in fields(cls)}:
            raise NeonatalSegError(f"Unknown fine-tuning setting {sorted(unknown)[0]!r}.")
        data = {k: tuples(v) for k, v in data.items()}
        try:
            if isinstance(data.get("augmentation"), Mapping):
                data["augmentation"] = AugmentationSettings(**data["augmentation"])
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise NeonatalSegError(f"The fine-tuning settings are not understood: {error}.") from error
