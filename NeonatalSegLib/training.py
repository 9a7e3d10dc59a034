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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import pytorch as pl
from monai.data import set_track_meta
from torch.utils.data import DataLoader, Dataset, Sampler

from NeonatalSegLib.augmentation import AugmentationSettings, build_augmentation
from NeonatalSegLib.datasets.cache import CachedSubject
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.losses import DeepSupervisionLoss
from NeonatalSegLib.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.models import Model, save_model
from NeonatalSegLib.network import PRESETS, NetworkSettings, build_network
from NeonatalSegLib.windows import predict_windows


@dataclass(frozen=True)
class TrainingSettings:
    """A whole training run; ``to_json`` of it is the file that reproduces the run.

    Attributes:
        network: what is trained.
        validation, test: names of subjects kept out; validation chooses the checkpoint, test chooses nothing.
        epochs, steps_per_epoch, batch_size: an epoch is a fixed number of steps, not a pass over the data.
        optimizer: "sgd" (the paper's: Nesterov momentum 0.99) or "adamw".
        learning_rate: at the start; multiplied by (1 - step / steps) ** 0.9 (paper, section 2).
        phantoms: synthetic newborns added to the training subjects.
        phantom_share: share of patches drawn from them.
        seed: of weights, patches and augmentation.
        validate_every: epochs between validations on whole scans.
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
    seed: int = 0
    validate_every: int = 5
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise NeonatalSegError(f"There is no optimizer {self.optimizer!r}: choose sgd or adamw.")
        if self.epochs % self.validate_every:
            raise NeonatalSegError(
                f"{self.epochs} epochs are no multiple of validate_every ({self.validate_every}): the last epoch, "
                "where the learning rate has come down, would never be validated."
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "network": self.network.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingSettings:
        """The inverse of :meth:`to_json`; ``network`` may be the name of a preset. Unknown entries are refused."""
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
            data["network"] = NetworkSettings.from_json(network)
        changes = data.pop("augmentation", {})
        if unknown := set(changes) - {f.name for f in fields(AugmentationSettings)}:
            raise NeonatalSegError(f"Unknown augmentation setting {sorted(unknown)[0]!r}.")
        data["augmentation"] = AugmentationSettings(**_tuples(changes))
        return cls(**_tuples(data))


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; settings hold tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def read_settings(path: str | Path) -> TrainingSettings:
    """Training settings from a JSON file; NeonatalSegError where it is missing or not understood."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NeonatalSegError(f"The training configuration {path} could not be read: {error}.") from error
    return TrainingSettings.from_json(data)


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Random augmented patches; item ``i`` is the same whenever and wherever it is drawn."""

    def __init__(self, subjects: Sequence[CachedSubject], settings: TrainingSettings) -> None:
        set_track_meta(False)  # the arrays lie on one known grid already; tracking it costs time and memory
        self.real = [s for s in subjects if not s.name.startswith("phantom")]
        self.phantoms = [s for s in subjects if s.name.startswith("phantom")]
        self.settings = settings
        self.transform = build_augmentation(settings.augmentation, settings.network.patch)
        self._opened: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng([self.settings.seed, number])
        from_phantom = bool(self.phantoms) and (not self.real or random.random() < self.settings.phantom_share)
        pool = self.phantoms if from_phantom else self.real
        image, labels = self._arrays(pool[int(random.integers(len(pool)))])
        self.transform.set_random_state(seed=int(random.integers(2**31)))
        # The network's image is float16 on disk; a copy, since transforms may write into it.
        out = self.transform(
            {"image": torch.from_numpy(image.astype(np.float32)), "label": torch.from_numpy(labels)[None]}
        )
        return {"image": out["image"].float(), "label": out["label"][0].to(torch.uint8)}

    def _arrays(self, subject: CachedSubject) -> tuple[np.ndarray, np.ndarray]:
        if subject.name not in self._opened:
            self._opened[subject.name] = (np.array(subject.image()), np.array(subject.labels()))
        return self._opened[subject.name]


class EpochSampler(Sampler[int]):
    """Numbers of the patches of one epoch; Lightning calls ``set_epoch``. Each of several GPUs takes its own share."""

    def __init__(self, per_epoch: int, rank: int = 0, world: int = 1) -> None:
        self.per_epoch, self.rank, self.world, self.epoch = per_epoch, rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch // self.world

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.per_epoch
        yield from range(start + self.rank, start + len(self) * self.world, self.world)


class SegmentationTask(pl.LightningModule):
    """The network, its loss, its optimiser and its validation on whole scans."""

    def __init__(self, settings: TrainingSettings, validation: Sequence[CachedSubject] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.validation = list(validation)
        self.network = build_network(settings.network)
        self.loss = DeepSupervisionLoss()

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
        loss = self.loss(self.network(batch["image"]), batch["label"])
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def on_validation_epoch_end(self) -> None:
        scores = [self._score(subject) for subject in self.validation]
        self.log("validation_dsc", float(np.mean(scores)), sync_dist=True, prog_bar=True)

    def validation_step(self, _batch: Any, _index: int) -> None:
        """Validation works on whole cached scans, in ``on_validation_epoch_end``."""

    def _score(self, subject: CachedSubject) -> float:
        image = torch.from_numpy(np.array(subject.image(), np.float32)).to(self.device)
        labels = predict_windows(self.network, image, self.settings.network).argmax(0)
        return mean_dice_no_background(dice_per_class(labels.cpu().numpy(), np.array(subject.labels())))

    def configure_optimizers(self) -> Any:
        s = self.settings
        parameters = self.network.parameters()
        optimizer: torch.optim.Optimizer
        if s.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters, s.learning_rate, momentum=0.99, nesterov=True, weight_decay=s.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters, s.learning_rate, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, s.epochs * s.steps_per_epoch, power=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TellProgress(pl.Callback):
    """One line an epoch: loss, validation DSC, time left; works in a log file as well as on a screen."""

    def __init__(self) -> None:
        self.started, self.first_epoch = time.monotonic(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        left = (time.monotonic() - self.started) / (done - self.first_epoch) * (total - done)
        values = trainer.callback_metrics
        text = f"epoch {done}/{total}  loss {float(values['loss']):.3f}"
        if "validation_dsc" in values:
            text += f"  validation DSC {float(values['validation_dsc']):.4f}"
        print(f"{text}  {left / 60:.0f} min left", flush=True)


@dataclass(frozen=True)
class Trained:
    """The end of a run.

    Attributes:
        network: with the weights of ``checkpoint``, on the CPU.
        checkpoint: the best on the validation subjects, or the last where there are none.
        subjects: what it was trained on.
        validation_dsc: mean DSC without background of the validation subjects on the network's grid, or None.
    """

    network: torch.nn.Module
    settings: TrainingSettings
    checkpoint: Path
    subjects: list[CachedSubject]
    validation_dsc: float | None

    def save(self, folder: str | Path, description: str = "") -> Model:
        """Write the network as a model bundle that states what it was trained on."""
        real = [s for s in self.subjects if not s.name.startswith("phantom")]
        ages = sorted(s.age_weeks for s in real if s.age_weeks is not None)
        facts: dict[str, Any] = {
            "training": self.settings.to_json(),
            "training_subjects": [s.name for s in self.subjects],
            "validation_subjects": list(self.settings.validation),
            "test_subjects": list(self.settings.test),
            "validation_dsc": self.validation_dsc,
        }
        if ages:
            facts["ages_weeks"] = [ages[0], ages[-1]]
        default = f"Residual 3D U-Net at {self.settings.network.spacing_mm} mm, trained on {len(real)} newborns."
        return save_model(self.network, self.settings.network, folder, description=description or default, facts=facts)


def train(
    subjects: Sequence[CachedSubject],
    settings: TrainingSettings,
    folder: str | Path,
    *,
    devices: int = 1,
    workers: int = 1,
    stop_after: int | None = None,
) -> Trained:
    """Train, or go on with the run in ``folder``; returns the best weights.

    Args:
        subjects: the whole cache; validation and test subjects of the settings are kept out of training.
        folder: of the run: settings.json, checkpoints and TensorBoard events. A folder of other settings is refused.
        devices: GPUs to train on together (DDP); ignored on the CPU.
        workers: processes that draw patches.
        stop_after: end after this many epochs in all (to be resumed later).

    Raises:
        NeonatalSegError: a kept-out subject is not in the cache, nothing is left to train on, or the folder holds a
            run with other settings.
    """
    folder = Path(folder)
    known = {s.name for s in subjects}
    kept_out = set(settings.validation) | set(settings.test)
    if missing := kept_out - known:
        raise NeonatalSegError(f"The subject {sorted(missing)[0]} is to be kept out, but the cache does not hold it.")
    training = [s for s in subjects if s.name not in kept_out]
    if not training:
        raise NeonatalSegError("No subject is left to train on: keep fewer subjects out.")
    _claim(folder, settings)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # TellProgress says what a person wants to know
    pl.seed_everything(settings.seed, workers=True)
    task = SegmentationTask(settings, [s for s in subjects if s.name in settings.validation])
    best = pl.callbacks.ModelCheckpoint(
        folder, "best-{epoch:03d}", monitor="validation_dsc" if settings.validation else None, mode="max",
        save_last=True, every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False,
    )  # fmt: skip
    on_gpu = torch.cuda.is_available()
    precision: Any = ("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if on_gpu else "bf16-mixed"
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices if on_gpu else 1,
        strategy="ddp" if on_gpu and devices > 1 else "auto",
        precision=precision,
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=12.0,
        callbacks=[best, TellProgress(), *([StopAfter(stop_after)] if stop_after else [])],
        logger=pl.loggers.TensorBoardLogger(folder, name="", version="tensorboard"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = _loader(training, settings, workers, trainer)
    held: Any = [0] if settings.validation else None  # one empty step; see on_validation_epoch_end
    last = folder / "last.ckpt"
    trainer.fit(task, loader, held, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    chosen = Path(best.best_model_path or str(last))
    weights = torch.load(chosen, map_location="cpu", weights_only=True)["state_dict"]
    task.load_state_dict(weights)
    score = best.best_model_score
    return Trained(task.network.cpu().eval(), settings, chosen, list(training), None if score is None else float(score))


class StopAfter(pl.Callback):
    """End the run at the close of epoch ``count`` with its checkpoint written, as a kill there would."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.count:
            trainer.should_stop = True


def _loader(
    training: Sequence[CachedSubject], settings: TrainingSettings, workers: int, trainer: pl.Trainer
) -> DataLoader[dict[str, torch.Tensor]]:
    sampler = EpochSampler(
        settings.steps_per_epoch * settings.batch_size * trainer.world_size, trainer.global_rank, trainer.world_size
    )
    return DataLoader(
        PatchDataset(training, settings),
        settings.batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _claim(folder: Path, settings: TrainingSettings) -> None:
    """Write the settings into the run folder, or refuse a folder whose run had others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    text = json.dumps(settings.to_json(), indent=1)
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != json.loads(text):
        raise NeonatalSegError(f"{folder} holds a run with other settings: choose a new folder, or remove it.")
    file.write_text(text, encoding="utf-8")
