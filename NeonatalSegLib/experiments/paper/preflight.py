"""What an experiment will take, told before its first hour: extras, GPU, disk, memory, hours by a timed step."""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.errors import NeonatalSegError, is_out_of_memory
from NeonatalSegLib.experiments.paper.designs import Job, Study, same_runs
from NeonatalSegLib.training.settings import TrainingSettings

GIB = 2**30
# Resident memory: a run's own process with its libraries, a process that draws patches (measured: docs/experiments.md),
# and, at a whole scan's evaluation on the CPU, three float32 volumes of ten classes and the image.
RUN_GIB, WORKER_GIB, EVALUATION_BYTES = 1.2, 0.6, 150
TYPICAL_VOXELS = (217, 290, 290)  # of a dHCP scan at 0.5 mm


def look_ahead(
    jobs: Mapping[str, Job],
    study: Study,
    out: Path,
    cache: Path,
    files: Sequence[Subject],
    *,
    parallel: int = 1,
    scheduler: str | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Tell disk, memory, device and hours of the runs that have no result yet.

    Raises:
        NeonatalSegError: an extra is not installed, or disk or GPU memory will not do.
    """
    check_extras(parallel > 1 or scheduler is not None)
    settings = study.settings
    same = same_runs(jobs)
    left = {
        key: job for key, job in jobs.items() if same[key] == key and not (out / "runs" / key / "result.json").is_file()
    }
    check_disk(files, cache, out, settings.training, len(left), report)
    if not left:
        return
    if scheduler is not None:
        report("The runs are a scheduler's: its machines are not looked at.")
        return
    report(device_line())
    shape = _shape(files, settings.training.network.spacing_mm)
    evaluation = math.prod(shape) * EVALUATION_BYTES / GIB
    need = parallel * (RUN_GIB + evaluation + settings.loader_workers * WORKER_GIB)
    report(f"Memory: about {need:.0f} GiB, {free_memory() / GIB:.0f} GiB free")
    if need * GIB > free_memory():
        report("Warning: that may not do. Take fewer --parallel, or a configuration with fewer loader_workers.")
    seconds = timed_step(settings.training)
    report(f"One step of {settings.training.batch_size} patches takes {seconds:.2f} s here")
    for line in hours(left, seconds, shape, parallel):
        report(line)


def check_extras(with_dask: bool) -> None:
    """NeonatalSegError where something is not installed that is needed hours later."""
    needed = {"lightning": "train", "tensorboard": "train", "matplotlib": "experiments"}
    if with_dask:
        needed |= {"dask": "experiments", "distributed": "experiments"}
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise NeonatalSegError(
            f"{', '.join(missing)} is not installed and is needed here: pip install 'neonatalseg[experiments]'."
        )


def check_disk(
    files: Sequence[Subject],
    cache: Path,
    out: Path,
    training: TrainingSettings,
    runs: int,
    report: Callable[[str], None] = print,
) -> None:
    """Tell what the arrays and the runs will take at most; NeonatalSegError where that is not there."""
    from NeonatalSegLib.datasets.cache import bytes_needed
    from NeonatalSegLib.networks.network import build_network, parameter_count

    arrays = bytes_needed(files, cache, training.network.spacing_mm)
    # A run keeps its weights; while it trains, a checkpoint with the optimizer's state lies there twice.
    weights = 4 * parameter_count(build_network(training.network))
    kept = runs * weights + 6 * weights
    for what, folder, needed in (("prepared arrays", cache, arrays), ("runs", out, kept)):
        free = shutil.disk_usage(_existing(folder)).free
        report(f"Disk for {what}: at most {needed / GIB:.1f} GiB in {folder}, {free / GIB:.0f} GiB free")
        if needed > free:
            raise NeonatalSegError(
                f"{what.capitalize()} need up to {needed / GIB:.1f} GiB, but {folder} has {free / GIB:.1f} GiB free: "
                "make room, or choose another folder (--cache, --out)."
            )


def device_line() -> str:
    """What will compute; where an NVIDIA GPU is there but PyTorch cannot use it, why."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return f"GPU: {torch.cuda.get_device_name()}, {memory / GIB:.0f} GiB"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return (
            "Warning: this machine has an NVIDIA GPU, but the installed PyTorch is a build without CUDA and will use "
            "the CPU, tens of times slower. Install a CUDA build (pytorch.org) and start again."
        )
    if shutil.which("nvidia-smi"):
        return "Warning: PyTorch finds no usable GPU (its driver may be older than the build): the CPU computes."
    return "No GPU: the CPU computes."


def free_memory() -> int:
    """Bytes that programs can still take."""
    import psutil

    return int(psutil.virtual_memory().available)


def timed_step(training: TrainingSettings) -> float:
    """Seconds of one training step of this network, patch and batch, on the device that will be used.

    Raises:
        NeonatalSegError: the GPU's memory does not do.
    """
    import torch

    from NeonatalSegLib.networks.losses import DeepSupervisionLoss
    from NeonatalSegLib.networks.network import build_network
    from NeonatalSegLib.networks.torch_engine import autocast_training

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, warm = training.network, 2 if device.type == "cuda" else 0
    try:
        network = build_network(settings).train().to(device)
        optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.99, nesterov=True)
        image = torch.randn((training.batch_size, settings.in_channels, *settings.patch), device=device)
        labels = torch.randint(0, settings.out_channels, (training.batch_size, *settings.patch), device=device)
        times = []
        for _ in range(warm + (3 if warm else 1)):
            started = time.perf_counter()
            optimizer.zero_grad()
            with autocast_training(device):
                outputs = network(image)
            DeepSupervisionLoss()(outputs, labels).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NeonatalSegError(
            f"A step of {training.batch_size} patches of {settings.patch} does not fit into the {device}'s memory. "
            "The paper's takes a GPU of 24 GB; end what else uses it, or try the smaller network with "
            '{"training": {"network": "paper-small"}} as --config.'
        ) from error
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return sum(times[warm:]) / len(times[warm:])


def hours(jobs: Mapping[str, Job], step_seconds: float, shape: Sequence[int], parallel: int = 1) -> list[str]:
    """A line for every condition and one for all: hours of training and of evaluating whole scans.

    A pass forward is taken for a third of a step. Several runs on one device share it: they are counted one by one.
    """
    by_condition: dict[str, list[float]] = {}
    for job in jobs.values():
        training = job["training"]
        patch = training["network"]["patch"]
        windows = math.prod(max(1, math.ceil(n / (p / 2)) - 1) for n, p in zip(shape, patch, strict=True))
        scans = sum(len(names) for names in job["evaluate"].values())
        trained = 0 if job["strategy"] == "none" else training["epochs"] * training["steps_per_epoch"]
        evaluated = scans * windows / (3 * training["batch_size"])
        by_condition.setdefault(job["condition"], []).append((trained + evaluated) * step_seconds / 3600)
    lines = [f"  {condition}: {len(h)} x {h[0]:.2g} h" for condition, h in by_condition.items()]
    total = sum(map(sum, by_condition.values()))
    shared = f"; {parallel} at once share the machine" if parallel > 1 else ""
    return [*lines, f"All {len(jobs)} runs: about {total:.2g} hours{shared}"]


def _shape(files: Sequence[Subject], spacing_mm: float) -> tuple[int, ...]:
    """Voxels of a scan on the network's grid: of the first one's header, else of a dHCP scan."""
    import SimpleITK as sitk

    for subject in files[:1]:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(subject.t2 or subject.t1))
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # told, with its file, when it is prepared
            break
        sides = zip(reader.GetSize(), reader.GetSpacing(), strict=True)
        return tuple(round(n * mm / spacing_mm) for n, mm in sides)
    return tuple(round(n * 0.5 / spacing_mm) for n in TYPICAL_VOXELS)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(p for p in (folder, *folder.parents) if p.exists())
