"""Train the brain finder: a long run that a kill does not hurt.

    python -m NeonatalSegLib.brain_finder.train --pool runs/finder/pool --out runs/finder/run --steps 6000

The same command goes on where the last checkpoint stands. ``--pool`` may still be growing.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from NeonatalSegLib.brain_finder.grid import FAR_MM
from NeonatalSegLib.brain_finder.network import FinderNetwork
from NeonatalSegLib.brain_finder.painting import painted, patch_shape
from NeonatalSegLib.brain_finder.pool import read
from NeonatalSegLib.networks.precision import processor_features, torch_precision

KEEP_EVERY, SOFT_MM, AVERAGE = 100, 1.0, 0.998
BATCH = 2  # of one patch, PyTorch takes a slow way through its small convolutions on a CPU


def loss_of(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far two distance maps (mm) are apart: near the surface above all, and as masks."""
    near = 1 + 4 * torch.exp(-wanted.abs() / 3)
    distance = (near * functional.smooth_l1_loss(predicted, wanted, reduction="none", beta=1.0)).mean() / FAR_MM
    inside, truth = torch.sigmoid(-predicted / SOFT_MM), torch.sigmoid(-wanted / (0.5 * SOFT_MM))
    entropy = functional.binary_cross_entropy_with_logits(-predicted / SOFT_MM, truth)
    dice = 1 - (2 * (inside * truth).sum() + 100) / (inside.sum() + truth.sum() + 100)
    return distance + entropy + dice


def train(
    pool: Path, out: Path, steps: int, *, rate: float = 2e-3, seed: int = 0, start: Path | None = None
) -> None:  # fmt: skip
    """Run to ``steps`` in all; writes ``checkpoint.pt`` (to go on) and ``finder.npz`` (averaged weights, to use).

    A run without a checkpoint begins with the weights of ``start`` (such a ``finder.npz``), else with random ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    network, average = FinderNetwork(), FinderNetwork()
    narrow = torch_precision(processor_features()) == "bf16"
    form = torch.contiguous_format if narrow else torch.channels_last_3d  # each the faster one, measured on one core
    if start is not None:
        with np.load(start) as weights:
            network.load_state_dict({name: torch.from_numpy(weights[name]).float() for name in weights.files})
    network.to(memory_format=form)  # type: ignore[call-overload]  # torch knows it, its types do not
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
    average.load_state_dict(network.state_dict())
    step, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step = state["step"]
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    network.train()
    running, clock, files = 0.0, time.process_time(), sorted(pool.glob("head-*[0-9].npz"))
    while step < steps:
        if step % 50 == 0:
            files = sorted(pool.glob("head-*[0-9].npz"))
        for group in optimizer.param_groups:
            group["lr"] = (
                rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            )
        generator = torch.Generator().manual_seed(seed * 10_000_000 + step)
        image, wanted = _batch(files, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            predicted = network(image.contiguous(memory_format=form))
        loss = loss_of(predicted.float(), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        keep = min(AVERAGE, step / (step + 10))
        with torch.no_grad():
            for a, b in zip(average.parameters(), network.parameters(), strict=True):
                a.lerp_(b, 1 - keep)
        running += float(loss.detach())
        if step % KEEP_EVERY == 0 or step == steps:
            now = time.process_time()
            print(f"{step}\t{running / KEEP_EVERY:.4f}\t{(now - clock) / KEEP_EVERY:.3f} s\t{len(files)}", flush=True)
            running, clock = 0.0, now
            _save({"step": step, "network": network.state_dict(), "average": average.state_dict(),
                   "optimizer": optimizer.state_dict()}, checkpoint)  # fmt: skip
            export(average.state_dict(), out / "finder.npz")


def _batch(files: Sequence[Path], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``BATCH`` patches of one shape and what the network should say of them, (n, 1, z, y, x) float32 each."""
    shape, drawn = patch_shape(generator), []
    for _ in range(BATCH):
        composed = read(files[int(torch.randint(len(files), (), generator=generator))])
        parts, guides = torch.from_numpy(composed.parts), torch.from_numpy(composed.guides).float() / 255
        distance_mm = torch.from_numpy(composed.distance_mm).float() / 4
        drawn.append(painted(parts, guides, distance_mm, composed.true_scale, shape, generator))
    image, wanted = (torch.stack(arrays)[:, None] for arrays in zip(*drawn, strict=True))
    return image, wanted


def export(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """The weights as ``forward.py`` reads them: float16, by the names of the network."""
    part = path.with_suffix(".part.npz")
    arrays: dict[str, Any] = {name: value.numpy().astype(np.float16) for name, value in weights.items()}
    np.savez(part, **arrays)
    os.replace(part, path)


def _save(state: object, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at the start")
    parser.add_argument("--start", type=Path, help="weights to begin with, such as Resources/BrainFinder/finder.npz")
    options = parser.parse_args(arguments)
    train(options.pool, options.out, options.steps, rate=options.rate, seed=options.seed, start=options.start)


if __name__ == "__main__":
    main()
