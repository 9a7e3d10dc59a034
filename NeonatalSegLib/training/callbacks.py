"""What a training run tells while it runs, how long its parts take, and how it is ended early (Lightning callbacks)."""

from __future__ import annotations

import time
from typing import Any

from lightning import pytorch as pl


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
        if "validation_age_error" in values:
            text += f"  age off by {float(values['validation_age_error']):.2f} weeks"
        print(f"{text}  {left / 60:.0f} min left", flush=True)


class Stopwatch(pl.Callback):
    """Patches a second, and the share of the time in which the network waited for its next patches.

    Counted from the end of the first step of every epoch to the end of its last, so that validation, checkpoints and
    the start of processes are in neither figure. On a GPU the network's work is waited for before the clock is read.
    """

    def __init__(self) -> None:
        self.patches, self.working, self.waiting = 0, 0.0, 0.0
        self._ended: float | None = None
        self._begun = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._begun = time.perf_counter()
        if self._ended is not None:
            self.waiting += self._begun - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            import torch

            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        if self._ended is not None:
            self.working += now - self._begun
            self.patches += len(batch["image"])
        self._ended = now

    @property
    def patches_per_second(self) -> float | None:
        """None where no step was timed (a run that was done already)."""
        return self.patches / (self.working + self.waiting) if self.patches else None

    @property
    def loader_share(self) -> float | None:
        """Waiting for patches as a share of the time, 0-1."""
        return self.waiting / (self.working + self.waiting) if self.patches else None


class StopAfter(pl.Callback):
    """End the run at the close of epoch ``count`` with its checkpoint written, as a kill there would."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.count:
            trainer.should_stop = True
