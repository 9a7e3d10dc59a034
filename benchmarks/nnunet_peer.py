"""nnU-Net v2 in processes of its own: its commands, and a training that ends by the clock (see compare_nnunet.py).

Run as a script it trains, with nnU-Net's folders in the environment:

    python benchmarks/nnunet_peer.py --minutes 120 --device cuda
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError

DATASET_ID = 701
DATASET = f"Dataset{DATASET_ID}_Newborns"
CONFIGURATION, FOLD = "3d_fullres", "0"
ITERATIONS, VALIDATION_ITERATIONS = 250, 50  # of an epoch: nnU-Net's own


def plan_command(processes: int) -> list[str]:
    """nnU-Net's own planning and preprocessing of the data set."""
    return [
        _script("nnUNetv2_plan_and_preprocess"), "-d", str(DATASET_ID), "-c", CONFIGURATION,
        "-npfp", str(processes), "-np", str(processes), "--verify_dataset_integrity", "--no_pbar",
    ]  # fmt: skip


def train_command(
    minutes: float, device: str, iterations: int = ITERATIONS, validation_iterations: int = VALIDATION_ITERATIONS
) -> list[str]:
    """This file again, in a process of its own with nnU-Net's variables set."""
    return [
        sys.executable, str(Path(__file__).resolve()), "--minutes", str(minutes), "--device", device,
        "--iterations", str(iterations), "--validation-iterations", str(validation_iterations),
    ]  # fmt: skip


def predict_command(images: Path, out: Path, device: str, processes: int) -> list[str]:
    """nnU-Net's own prediction of a folder of cases with the weights of the last epoch."""
    return [
        _script("nnUNetv2_predict"), "-i", str(images), "-o", str(out), "-d", str(DATASET_ID), "-c", CONFIGURATION,
        "-f", FOLD, "-device", device, "-npp", str(processes), "-nps", str(processes), "--disable_progress_bar",
    ]  # fmt: skip


def _script(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise NeonatalSegError(
            f"{name} is not installed: pip install -r benchmarks/requirements-nnunet.txt (how: see there)."
        )
    return found


def run(command: Sequence[str], work: Path) -> float:
    """Run one command with nnU-Net's folders set for it alone; returns its seconds.

    Raises:
        NeonatalSegError: it failed.
    """
    folders = {f"nnUNet_{name}": str((work / name).resolve()) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    done = subprocess.run(command, env=os.environ | folders, check=False)
    if done.returncode:
        raise NeonatalSegError(f"{Path(command[0]).name} ended with status {done.returncode}; what it said is above.")
    return time.perf_counter() - began


class Budget:
    """The wall clock of one training.

    Args:
        limit_s: seconds that it may take.
        clock: gives seconds; begins again with :meth:`start`.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if limit_s <= 0:
            raise NeonatalSegError(f"{limit_s / 60:g} minutes are no time to train: give more than 0 as --minutes.")
        self.limit_s, self._clock = limit_s, clock
        self._began, self._last, self._longest = clock(), clock(), 0.0

    def start(self) -> None:
        """Training begins."""
        self._began = self._last = self._clock()

    @property
    def elapsed_s(self) -> float:
        return float(self._clock() - self._began)

    @property
    def share(self) -> float:
        """What has gone by of the limit, 0 to just under 1 (at 1 the learning rate would be nothing)."""
        return min(self.elapsed_s / self.limit_s, 0.999)

    def epoch_ended(self) -> bool:
        """True where no further epoch fits, if it takes as long as the longest so far."""
        now = self._clock()
        self._longest, self._last = max(self._longest, now - self._last), now
        return bool(now - self._began + self._longest > self.limit_s)


def fit(minutes: float, device: str, iterations: int, validation_iterations: int) -> None:
    """Train in this process, with nnU-Net's folders in the environment; writes ``training.json`` beside the weights."""
    from importlib.metadata import version

    import torch

    # By name, so that the type checker does not ask for a package that the project does not depend on.
    schedule: Any = import_module("nnunetv2.training.lr_scheduler.polylr").PolyLRScheduler
    parent: Any = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer

    budget = Budget(60 * minutes)

    class TimeIsUp(Exception):  # noqa: N818  # the way out of nnU-Net's loop over epochs
        pass

    class ByTime(schedule):
        def step(self, current_step: int | None = None) -> None:
            super().step(self.max_steps * budget.share)

    # The parent's name on purpose: it is written into the checkpoint, and nnUNetv2_predict looks a class of that name
    # up. Only the length and the schedule of the training are changed here, nothing that predicts.
    class nnUNetTrainer(parent):  # noqa: N801
        def configure_optimizers(self) -> Any:
            optimizer, _ = super().configure_optimizers()
            return optimizer, ByTime(optimizer, self.initial_lr, self.num_epochs)

        def on_train_start(self) -> None:
            super().on_train_start()
            budget.start()

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            if budget.epoch_ended():
                raise TimeIsUp

    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET  # noqa: SIM112
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8")) | {"continue_training": False}
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if device == "cuda":
        torch.set_num_threads(1)  # this and the next line as nnUNetv2_train does
        torch.backends.cudnn.benchmark = True
    trainer = nnUNetTrainer(plans, CONFIGURATION, int(FOLD), description, torch.device(device))
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = iterations, validation_iterations
    trainer.num_epochs = 10**6  # the clock ends it
    try:
        trainer.run_training()
    except TimeIsUp:
        seconds = budget.elapsed_s
        trainer.on_train_end()
    facts = {
        "nnunetv2": version("nnunetv2"), "minutes_allowed": minutes, "seconds": round(seconds, 1),
        "epochs": trainer.current_epoch, "iterations_per_epoch": iterations, "device": device,
    }  # fmt: skip
    (Path(trainer.output_folder) / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """The options of a training; those of ``compare_nnunet.py train`` as well."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--minutes", type=float, required=True, help="wall clock of our model's training")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of an epoch; fewer for a trial only")
    parser.add_argument("--validation-iterations", type=int, default=VALIDATION_ITERATIONS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    return parser


if __name__ == "__main__":
    given = make_parser().parse_args()
    fit(given.minutes, given.device, given.iterations, given.validation_iterations)
