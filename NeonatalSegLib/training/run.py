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
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.cpu_form import faster_on_cpu
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.networks.torch_engine import best_precision
from NeonatalSegLib.training.callbacks import StopAfter, Stopwatch, TellProgress
from NeonatalSegLib.training.patch_pool import pooled
from NeonatalSegLib.training.patches import EpochSampler, PatchDataset, check_masks
from NeonatalSegLib.training.settings import TrainingSettings, read_settings
from NeonatalSegLib.training.task import SegmentationTask


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
        epochs_done: of the schedule, where the weights are those of a run that has not come to its end.
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
    epochs_done: int | None = None

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
        if self.epochs_done is not None:
            facts["epochs_done"] = self.epochs_done
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
    device = torch.device("cuda" if on_gpu else "cpu")
    faster_on_cpu(task.network, device)
    precision: Any = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[best_precision(device)]
    stopwatch = Stopwatch()
    # Two of them: one that keeps the best alone would leave "last" at the last improvement, and a resumed run with it.
    every: Any = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "enable_version_counter": False}
    newest = pl.callbacks.ModelCheckpoint(folder, "last", **every)
    best = pl.callbacks.ModelCheckpoint(folder, "best-{epoch:03d}", monitor="validation_dsc", mode="max", **every)
    checkpoints = [best, newest] if settings.validation else [newest]
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


def newest(folder: str | Path, subjects: Sequence[CachedSubject]) -> Trained:
    """The newest weights of the run in ``folder``, which may still be going on; ``subjects`` as for :func:`train`.

    Raises:
        NeonatalSegError: there is no run with a finished epoch, or its subjects are not among these.
    """
    folder = Path(folder)
    last, names = folder / "last.ckpt", folder / "subjects.json"
    if not last.is_file() or not names.is_file():
        raise NeonatalSegError(f"{folder} holds no run with a finished epoch (last.ckpt): give the folder of one.")
    settings = read_settings(folder / "settings.json")
    trained = read_object(names, "list of subjects")
    if missing := set(trained) - {s.name for s in subjects}:
        raise NeonatalSegError(f"The run in {folder} was trained on {min(missing)}, which the cache does not hold.")
    saved = torch.load(last, map_location="cpu", weights_only=True)
    task = SegmentationTask(settings)
    task.load_state_dict(saved["state_dict"])
    inherited = _start(settings, set())[1] if settings.start else []
    return Trained(
        task.network.eval(),
        settings,
        last,
        [s for s in subjects if s.name in trained],
        None,
        inherited=tuple(inherited),
        epochs_done=settings.done_epochs + saved["epoch"] + 1,
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
