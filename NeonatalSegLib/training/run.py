"""Training: patches from a cache of prepared arrays, the paper's loss and optimiser, Lightning's loop.

The loop is Lightning's: mixed precision on CPU and GPU, several GPUs (DDP), checkpoints written whole or not at all,
resuming, TensorBoard, in one maintained place. MONAI's ignite engines offer the same, but DDP launch and resuming
inside them are the caller's work.

Every patch is drawn from a seed made of (run seed, number of the patch in the whole run), so that a run that was
killed and resumed sees the patches that it would have seen. No SimpleITK is needed here.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import pytorch as pl
from torch.utils.data import DataLoader, Dataset

from NeonatalSegLib.datasets.cache import CachedSubject
from NeonatalSegLib.datasets.kinds import NEWBORN
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.losses import DeepSupervisionLoss, age_loss, merged_loss
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.networks.torch_engine import predict_with_age
from NeonatalSegLib.tissues import UNKNOWN
from NeonatalSegLib.training.callbacks import StopAfter, Stopwatch, TellProgress
from NeonatalSegLib.training.patch_pool import pooled
from NeonatalSegLib.training.patches import EpochSampler, PatchDataset, check_masks, drawn
from NeonatalSegLib.training.settings import TrainingSettings, read_settings


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
            return self._segmentation_loss(self.network(batch["image"]), batch)
        outputs, age = self.network.forward_with_age(batch["image"])  # type: ignore[operator]
        return self._segmentation_loss(outputs, batch) + self.settings.age_weight * age_loss(age, batch["age"])

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


@dataclass(frozen=True)
class Trained:
    """The end of a run.

    Attributes:
        network: with the weights of ``checkpoint``, on the CPU.
        checkpoint: the best on the validation subjects, or the last where there are none.
        subjects: what it was trained on.
        validation_dsc: mean DSC without background of the validation subjects on the network's grid, or None.
        validation_age_error_weeks: mean absolute error of the age of the validation subjects, or None.
        patches_per_second, loader_share: how fast it went, and the share of the time (0-1) in which the network waited
            for patches; of this call's steps, None where it had none to do.
        inherited: what the model that the run started from had been trained on.
        first_process: False in all but one of the processes of several GPUs.
        loss: mean of the last epoch; None where this call had no step to do.
    """

    network: torch.nn.Module
    settings: TrainingSettings
    checkpoint: Path
    subjects: list[CachedSubject]
    validation_dsc: float | None
    validation_age_error_weeks: float | None = None
    patches_per_second: float | None = None
    loader_share: float | None = None
    inherited: tuple[str, ...] = ()
    first_process: bool = True
    loss: float | None = None

    def save(self, folder: str | Path, description: str = "") -> Model:
        """Write the network as a model bundle that states what it was trained on."""
        real = [s for s in self.subjects if s.kind == NEWBORN]
        ages = sorted(s.age_weeks for s in real if s.age_weeks is not None)
        facts: dict[str, Any] = {
            "training": self.settings.to_json(),
            "training_subjects": sorted({s.name for s in self.subjects} | set(self.inherited)),
            "validation_subjects": list(self.settings.validation),
            "test_subjects": list(self.settings.test),
            "validation_dsc": self.validation_dsc,
        }
        if ages:
            facts["ages_weeks"] = [ages[0], ages[-1]]
        default = f"Residual 3D U-Net at {self.settings.network.spacing_mm} mm, trained on {len(real)} newborns."
        if (error := self.validation_age_error_weeks) is not None:
            facts["validation_age_error_weeks"] = error
            default += f" It tells the age too: {error:.2f} weeks off on the validation newborns."
        return save_model(self.network, self.settings.network, folder, description=description or default, facts=facts)


def train(
    subjects: Sequence[CachedSubject],
    settings: TrainingSettings,
    folder: str | Path,
    *,
    known: Mapping[str, np.ndarray] | None = None,
    network: torch.nn.Module | None = None,
    devices: int = 1,
    workers: int = 1,
    stop_after: int | None = None,
) -> Trained:
    """Train, or go on with the run in ``folder``; returns the best weights.

    Args:
        subjects: the whole cache; validation and test subjects of the settings are held out of training.
        folder: of the run: settings.json, checkpoints and TensorBoard events. A folder of other settings is refused.
        known: (z, y, x) bool masks of the labelled voxels by subject, the same when a run goes on; all others, and
            without a mask everything, count as labelled. Validation uses all labels.
        network: to start from instead of random weights, and changed; parameters without gradient stay as they are.
        devices: GPUs to train on together (DDP); ignored on the CPU.
        workers: processes that draw patches.
        stop_after: end after this many epochs in all (to be resumed later).

    Raises:
        NeonatalSegError: a held-out subject is not in the cache, nothing is left to train on, or the folder holds a
            run with other settings.
    """
    folder = Path(folder)
    names = {s.name for s in subjects}
    held_out = set(settings.validation) | set(settings.test)
    if missing := held_out - names:
        raise NeonatalSegError(f"The subject {sorted(missing)[0]} is to be held out, but the cache does not hold it.")
    newborns = {name.split("_")[0] for name in held_out}  # no other session of them trains either
    training = [s for s in subjects if s.name.split("_")[0] not in newborns]
    if not training:
        raise NeonatalSegError("No subject is left to train on: keep fewer subjects out.")
    check_masks(training, known or {})
    _claim(folder, settings, training, known or {})
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # TellProgress says what a person wants to know
    pl.seed_everything(settings.seed, workers=True)
    held = [s for s in subjects if s.name in settings.validation]
    inherited: list[str] = []
    if network is None and settings.start:
        network, inherited = _start(settings, newborns)
    on_gpu = torch.cuda.is_available()
    patches = PatchDataset(training, settings, known, on_device=on_gpu)
    task = SegmentationTask(settings, held, sparse=bool(known), network=network, patches=patches)
    stopwatch = Stopwatch()
    # Two of them: one that keeps the best alone would leave "last" at the last improvement, and a resumed run with it.
    every: Any = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "enable_version_counter": False}
    newest = pl.callbacks.ModelCheckpoint(folder, "last", **every)
    best = pl.callbacks.ModelCheckpoint(folder, "best-{epoch:03d}", monitor="validation_dsc", mode="max", **every)
    checkpoints = [best, newest] if settings.validation else [newest]
    precision: Any = (
        ("bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed")
        if on_gpu
        else "bf16-mixed"
    )
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices if on_gpu else 1,
        strategy="ddp" if on_gpu and devices > 1 else "auto",
        precision=precision,
        max_epochs=settings.epochs - settings.done_epochs,
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=12.0,
        callbacks=[
            *([pl.callbacks.EMAWeightAveraging(decay=settings.ema)] if settings.ema else []),
            *checkpoints,
            TellProgress(),
            stopwatch,
            *([StopAfter(stop_after)] if stop_after else []),
        ],
        logger=pl.loggers.TensorBoardLogger(folder, name="", version="tensorboard"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = _loader(pooled(patches, folder / "pool"), settings, workers, trainer)
    empty_step: Any = [0] if settings.validation else None  # see validation_step
    last = folder / "last.ckpt"
    trainer.fit(task, loader, empty_step, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    chosen = Path(best.best_model_path or str(last))
    saved = torch.load(chosen, map_location="cpu", weights_only=True)
    task.load_state_dict(saved["state_dict"])
    score = best.best_model_score if settings.validation else None
    return Trained(
        task.network.cpu().eval(),
        settings,
        chosen,
        list(training),
        None if score is None else float(score),
        saved.get("age_error_weeks"),
        stopwatch.patches_per_second,
        stopwatch.loader_share,
        tuple(inherited),
        trainer.is_global_zero,
        float(trainer.callback_metrics["loss"]) if "loss" in trainer.callback_metrics else None,
    )


def _start(settings: TrainingSettings, held_out: set[str]) -> tuple[torch.nn.Module, list[str]]:
    """The network of the model that a run starts from, and who trained it.

    Raises:
        NeonatalSegError: it is another network, or was trained on a newborn that this run holds out.
    """
    model = find_model(settings.start)
    if replace(model.network, age_head=settings.network.age_head) != settings.network or (
        model.network.age_head and not settings.network.age_head
    ):
        raise NeonatalSegError(
            f"The run cannot start from the model {model.name}: its network is {model.network.to_json()}, that of the "
            f"training settings {settings.network.to_json()}."
        )
    trained = list(model.facts.training_subjects)
    if both := [name for name in trained if name.split("_")[0] in held_out]:
        raise NeonatalSegError(
            f"The run cannot start from the model {model.name}: it was trained on {both[0]}, which this run holds out."
        )
    network = model.load_network()
    if settings.network.age_head and not model.network.age_head:
        with_age = build_network(settings.network)
        with_age.load_state_dict({**with_age.state_dict(), **network.state_dict()})  # the head itself starts anew
        network = with_age
    return network.train().requires_grad_(True), trained


def _loader(
    patches: Dataset[dict[str, torch.Tensor]], settings: TrainingSettings, workers: int, trainer: pl.Trainer
) -> DataLoader[dict[str, torch.Tensor]]:
    per_epoch = settings.steps_per_epoch * settings.batch_size * trainer.world_size
    sampler = EpochSampler(per_epoch, trainer.global_rank, trainer.world_size, settings.done_epochs)
    return DataLoader(
        patches,
        settings.batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _claim(
    folder: Path, settings: TrainingSettings, training: Sequence[CachedSubject], known: Mapping[str, np.ndarray]
) -> None:
    """Write settings and subjects into the run folder, or refuse a folder whose run had others."""
    folder.mkdir(parents=True, exist_ok=True)
    file, data = folder / "settings.json", folder / "subjects.json"
    text = json.dumps(settings.to_json(), indent=1)
    subjects = {s.name: [s.digest, zlib.crc32(known[s.name].tobytes()) if s.name in known else None] for s in training}
    # Compared as settings: a run from before a setting came into being had its default.
    if file.exists() and read_settings(file) != TrainingSettings.from_json(json.loads(text)):
        raise NeonatalSegError(f"{folder} holds a run with other settings: choose a new folder, or remove it.")
    if data.exists() and read_object(data, "list of subjects") != subjects:
        raise NeonatalSegError(
            f"{folder} holds a run on other subjects, arrays or slices: choose a new folder, or remove it."
        )
    for path, content in ((file, text), (data, json.dumps(subjects, indent=1))):
        if not path.exists():
            write_text(path, content)
