"""How well the network learns one newborn by heart, and what that is worth on another.

    python benchmarks/by_heart.py --cache RUN/cache --model neonatal-v5 --newborn sub-ALBERT01 --other sub-ALBERT10

Patches of one prepared newborn, T1 and T2, as they are (no augmentation), AdamW from 1e-3 to 0. Printed every 50 steps:
mean DSC over the eight tissues on the network's grid, and each class's. Where the first newborn rises far and the other
falls, neither size nor learning rate is what holds the network back, but how much the labels of one newborn say of
another. Half an hour on one core without bf16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.cpu_form import faster_on_cpu
from NeonatalSegLib.networks.losses import DeepSupervisionLoss
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_with_age
from NeonatalSegLib.training.patches import cut

RATE, WARMUP_STEPS, TELL_EVERY = 1e-3, 20, 50


@torch.inference_mode()
def score(network: torch.nn.Module, settings: NetworkSettings, subject: CachedSubject) -> str:
    """Mean DSC over the tissues, then each class's, in words."""
    network.eval()
    out, _ = predict_with_age(network, torch.from_numpy(np.array(subject.image(), np.float32)), settings)
    network.train()
    each = dice_per_class(out.argmax(0).numpy(), np.array(subject.labels()))
    return f"{subject.name} {mean_dice_no_background(each):.4f} ({', '.join(f'{d:.3f}' for d in each[1:])})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="of a training run")
    parser.add_argument("--model", required=True)
    parser.add_argument("--newborn", required=True, help="who is learned by heart")
    parser.add_argument("--other", required=True)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    subjects = {s.name: s for s in read_cache(arguments.cache)}
    one, other = subjects[arguments.newborn], subjects[arguments.other]
    model = find_model(arguments.model)
    settings, network = model.network, model.load_network().requires_grad_(True)
    faster_on_cpu(network, torch.device("cpu"))
    print(f"0 steps: {score(network, settings, one)}; {score(network, settings, other)}", flush=True)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    forward = torch.compile(network.forward, dynamic=False)
    loss, optimizer = DeepSupervisionLoss(), torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    random, arrays = np.random.default_rng(0), {"image": one.image(), "label": one.labels()[None]}
    for step in range(1, arguments.steps + 1):
        rate = RATE * min(1.0, step / WARMUP_STEPS) * (1 - (step - 1) / arguments.steps) ** 0.9
        for group in optimizer.param_groups:
            group["lr"] = rate
        patch = cut(arrays, settings.patch, random)
        image = patch["image"][None].contiguous(memory_format=torch.channels_last_3d)
        optimizer.zero_grad()
        loss(forward(image), patch["label"]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        if step % TELL_EVERY == 0 or step == arguments.steps:
            print(f"{step} steps: {score(network, settings, one)}; {score(network, settings, other)}", flush=True)


if __name__ == "__main__":
    main()
