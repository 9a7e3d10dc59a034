"""Options that several commands have, and the line that says how far the work is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    from NeonatalSegLib.clusters import Workers
    from NeonatalSegLib.segmentation.segmenter import SegmentOptions

AUTO = "auto"  # of Device and Engine, where none is named

# Optional[...] and not "| None": typer evaluates these at run time, and Python 3.10 is supported.
T1 = Annotated[Optional[Path], typer.Option(help="T1 image, or a folder with one DICOM series.")]
T2 = Annotated[Optional[Path], typer.Option(help="T2 image, or a folder with one DICOM series.")]
BidsFolder = Annotated[
    Optional[Path], typer.Option(help="dHCP release or BIDS folder: every session with a T1w or T2w.")
]
ScanList = Annotated[
    Optional[Path],
    typer.Option("--list", help="TSV with the columns name, t1, t2, age_weeks (paths may be empty)."),
]
TemplateAges = Annotated[str, typer.Option(help="Ages of the templates in weeks.")]
Results = Annotated[Path, typer.Option(help="Folder for the results; made where missing.")]
Model = Annotated[
    Optional[str],
    typer.Option(
        help="Name or folder of a model, or folder of a study that names one (`models use`); default: the accepted "
        "one, else the shipped one."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, or gpu (Intel's, through OpenVINO).")]
Engine = Annotated[
    str,
    typer.Option(help="auto, openvino (CPUs) or torch (GPUs, or where OpenVINO is not).", envvar="NEONATALSEG_ENGINE"),
]
TrustHeaders = Annotated[bool, typer.Option("--trust-headers", help="Do not register T1 to T2.")]
N4 = Annotated[bool, typer.Option("--n4", help="Correct the bias field first (N4).")]
Flips = Annotated[bool, typer.Option("--flips", help="Average with the mirror image (twice the network's time).")]
Probabilities = Annotated[bool, typer.Option("--probabilities", help="Also write the class probabilities.")]
Uncertainty = Annotated[bool, typer.Option("--uncertainty", help="Also write the entropy, 0-1.")]
DicomSeg = Annotated[
    bool,
    typer.Option(
        "--dicom-seg",
        help="Also write DICOM: a segmentation (SEG) and the volumes as structured report; for DICOM series.",
    ),
]
Orientation = Annotated[
    Optional[str],
    typer.Option(
        "--assume-orientation",
        help="For files that do not say how they are oriented: where the voxel axes run to, such as RAS (right, "
        "anterior, superior).",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace also files that this program did not write, or that were changed.")
]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse a scan with a doubt (header, values, T1 and T2 that do not agree); exit status 5 where the result "
        "cannot be a newborn's brain.",
    ),
]
WorkersHere = Annotated[
    int,
    typer.Option("--workers", min=1, help="Processes on this computer, each with its share of the cores or GPUs."),
]
Scheduler = Annotated[
    Optional[str],
    typer.Option(help="Address of a Dask scheduler, such as tcp://HOST:8786, whose workers see the same folders."),
]
Slurm = Annotated[
    Optional[str],
    typer.Option(help="Jobs of Slurm: partition=NAME,gpus=8; also account, jobs, cpus, memory, time."),
]


def segment_options(*, assume_orientation: str | None, **flags: bool) -> SegmentOptions:
    """The options of one segmentation; NeonatalSegError for an orientation that is none."""
    from NeonatalSegLib.scans.placement import check_orientation
    from NeonatalSegLib.segmentation.segmenter import SegmentOptions

    orientation = check_orientation(assume_orientation) if assume_orientation is not None else None
    return SegmentOptions(assume_orientation=orientation, **flags)


def chosen_workers(number: int, scheduler: str | None, slurm: str | None) -> Workers | None:
    """Where the scans are segmented; None for this process."""
    from NeonatalSegLib.clusters import SlurmJobs, Workers

    if (number > 1) + (scheduler is not None) + (slurm is not None) > 1:
        raise NeonatalSegError("Give one of --workers, --scheduler and --slurm.")
    if scheduler is not None:
        return Workers(scheduler=scheduler)
    if slurm is not None:
        return Workers(slurm=SlurmJobs.of_text(slurm))
    return Workers(number) if number > 1 else None


def warn(text: str) -> None:
    """Say what is doubtful, apart from what the command prints as its result."""
    typer.echo(f"Warning: {text}", err=True)


def progress_line(stage: str, fraction: float) -> None:
    if sys.stderr.isatty():
        end = "\n" if fraction >= 1 else ""
        print(f"\r{stage:<24}{100 * fraction:3.0f} %", end=end, file=sys.stderr, flush=True)
