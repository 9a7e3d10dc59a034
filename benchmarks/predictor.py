"""This network's own prediction beside nnU-Net's predictor: the same weights, the same image, the same processor.

    python benchmarks/predictor.py --model neonatal-v2 --data ../shared/data/alberts --newborn ALBERT10

Without --data a synthetic newborn. nnU-Net's ``nnUNetPredictor`` is given the network and the prepared image, so that
only the way through the windows differs: both have windows of the training patch, half a window apart, with Gaussian
weights. With ``--mirroring`` it also runs as it does by default, with eight mirrored passes. Needs nnU-Net
(benchmarks/requirements-nnunet.txt). Seconds are CPU time, runs are interleaved; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from NeonatalSegLib.datasets.ages import prefixed
from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.datasets.phantom import draw_newborn
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.scans.preprocessing import prepare
from NeonatalSegLib.scans.scan import load_scan


def peer(network: torch.nn.Module, settings: NetworkSettings, mirroring: bool) -> Any:
    """nnU-Net's predictor with our network in place of one that it built from its plans."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(settings.patch))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=settings.out_channels)
    predictor.allowed_mirroring_axes = (0, 1, 2)
    return predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--newborn", default="ALBERT10")
    parser.add_argument("--mirroring", action="store_true", help="also nnU-Net's default, eight times as long")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    model = find_model(arguments.model)
    network = model.load_network()
    if arguments.data:
        subject = {s.name: s for s in find_subjects(arguments.data)}[prefixed("sub", arguments.newborn)]
        scan = load_scan(subject.t1, subject.t2)
    else:
        scan = draw_newborn(40.0, seed=0).scan
    image = torch.from_numpy(prepare(scan, model.spacing_mm).array)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: predict_windows(network, image, model.network),
        "nnU-Net, no mirroring": lambda: peer(network, model.network, False).predict_sliding_window_return_logits(
            image
        ),
    }
    if arguments.mirroring:
        ways["nnU-Net, as by default"] = lambda: peer(
            network, model.network, True
        ).predict_sliding_window_return_logits(image)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels: dict[str, np.ndarray] = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            began = time.process_time()
            labels[name] = torch.as_tensor(way()).argmax(0).numpy()
            seconds[name].append(time.process_time() - began)
    fastest = min(seconds["ours"])
    print("| | CPU s | times ours | voxels labelled as ours |\n|---|---:|---:|---:|")
    for name in ways:
        same = float((labels[name] == labels["ours"]).mean())
        print(f"| {name} | {min(seconds[name]):.1f} | {min(seconds[name]) / fastest:.2f} | {100 * same:.2f} % |")


if __name__ == "__main__":
    main()
