"""What Lightning's loop trains: the network, its loss, its optimiser, its validation on whole scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import pytorch as pl

from NeonatalSegLib.datasets.cache import CachedSubject
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.networks.losses import DeepSupervisionLoss, age_loss, merged_loss
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.networks.torch_engine import predict_with_age
from NeonatalSegLib.tissues import UNKNOWN
from NeonatalSegLib.training.patches import PatchDataset, drawn
from NeonatalSegLib.training.settings import TrainingSettings


class SegmentationTask(pl.LightningModule):
    """The network, its loss, its optimiser and its validation on whole scans.

    ``sparse``: labels may be ``UNKNOWN``. ``network``: to start from; what needs no gradient in it is left as it is.
    ``patches``: what the batches are drawn from; says whose labels merge classes, and holds the volumes that random
    patches are drawn from on the GPU.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        validation: Sequence[CachedSubject] = (),
        *,
        sparse: bool = False,
        network: torch.nn.Module | None = None,
        patches: PatchDataset | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.volumes = patches.volumes() if patches else []
        self.merged = [s.merged for s in patches.everyone] if patches else []
        self.validation = list(validation)
        self.network = network or build_network(settings.network)
        self.sparse = sparse
        self.compiled: Any = None
        if settings.compiled:
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            self.compiled = torch.compile(self.network.forward, dynamic=False)
        self.loss = DeepSupervisionLoss(normalised=settings.head_weights == "mean")
        self.age_error_weeks: float | None = None  # mean absolute error of the last validation

    def on_after_batch_transfer(self, batch: Any, _index: int) -> Any:
        """Draw the patches on the GPU, from volumes that stay there (9 bytes per voxel)."""
        if not self.volumes or "seed" not in batch:
            return batch
        items = []
        for i, seed in enumerate(batch["seed"].tolist()):
            facts = {key: values[i] for key, values in batch.items()}
            subject = int(facts["subject"])
            self.volumes[subject] = self.volumes[subject].to(self.device)
            items.append(drawn(self.settings, self.volumes[subject], facts, seed))
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self.settings.network.age_head:
            return self._segmentation_loss(self._forward(batch["image"]), batch)
        outputs, age = self.network.forward_with_age(batch["image"])  # type: ignore[operator]
        return self._segmentation_loss(outputs, batch) + self.settings.age_weight * age_loss(age, batch["age"])

    def _forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The network's outputs; compiled for patches of the usual size alone, for every size takes minutes."""
        if self.compiled is None:
            return self.network(image)  # type: ignore[no-any-return]
        image = image.contiguous(memory_format=torch.channels_last_3d)
        usual = tuple(image.shape[2:]) == self.settings.network.patch
        return (self.compiled if usual else self.network)(image)  # type: ignore[no-any-return]

    def _segmentation_loss(self, outputs: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels, mask = batch["label"], batch["label"] != UNKNOWN if self.sparse else None
        groups = [self.merged[i] for i in batch["subject"].tolist()] if any(self.merged) else []
        return merged_loss(self.loss, outputs, labels, mask, groups)

    def validation_step(self, _batch: Any, _index: int) -> None:
        """Whole cached scans, all in the one step: here, and not at its end, the averaged weights are in place."""
        scores, errors = zip(*(self._score(subject) for subject in self.validation), strict=True)
        self.log("validation_dsc", float(np.mean(scores)), sync_dist=True, prog_bar=True, batch_size=1)
        known = [error for error in errors if error is not None]
        self.age_error_weeks = float(np.mean(known)) if known else None
        if self.age_error_weeks is not None:
            self.log("validation_age_error", self.age_error_weeks, sync_dist=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the error of the age with the weights that made it."""
        checkpoint["age_error_weeks"] = self.age_error_weeks

    def _score(self, subject: CachedSubject) -> tuple[float, float | None]:
        """Mean DSC without background, and how many weeks the age is off (None where it is not known or not told)."""
        image = torch.from_numpy(np.array(subject.image(), np.float32)).to(self.device)
        out, age = predict_with_age(self.network, image, self.settings.network)
        dsc = mean_dice_no_background(dice_per_class(out.argmax(0).cpu().numpy(), np.array(subject.labels())))
        return dsc, None if age is None or subject.age_weeks is None else abs(age - subject.age_weeks)

    def configure_optimizers(self) -> Any:
        s = self.settings
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if s.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters, s.learning_rate, momentum=0.99, nesterov=True, weight_decay=s.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters, s.learning_rate, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """The learning rate at a step of this run, as a share of the settings'."""
        s = self.settings
        come = (step + s.done_epochs * s.steps_per_epoch) / (s.epochs * s.steps_per_epoch)
        return min(1.0, (step + 1) / (s.warmup_steps + 1)) * max(0.0, 1 - come) ** 0.9
