"""``neonatalseg batch`` and ``neonatalseg bids``: whole studies, here or on workers."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from NeonatalSegLib.cli.options import (
    AUTO,
    N4,
    BidsFolder,
    Device,
    DicomSeg,
    Engine,
    Flips,
    Model,
    Orientation,
    Overwrite,
    Probabilities,
    ScanList,
    Scheduler,
    Slurm,
    Strict,
    TrustHeaders,
    Uncertainty,
    WorkersHere,
    chosen_workers,
    segment_options,
    warn,
)
from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    from NeonatalSegLib.clusters import Workers
    from NeonatalSegLib.segmentation.segmenter import SegmentOptions
    from NeonatalSegLib.segmentation.study_scans import FoundStudy

Run = Annotated[str, typer.Option(help="Of several runs of a BIDS session: last, first or a number.")]
PARTICIPANTS = ("--participant-label", "--participant_label")
SESSIONS = ("--session-label", "--session_label")


class Level(str, Enum):
    """What a BIDS-App does: each participant, or what is made of all of them."""

    PARTICIPANT = "participant"
    GROUP = "group"


class BidsCommand(TyperCommand):
    """Takes several values after one option, ``--participant-label 01 02``, as BIDS-Apps are called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option, values = "", 0
        for word in args:
            if not word.startswith("-") and option:
                spread += [option, word] if values else [word]
                values += 1
            else:
                spread.append(word)
                option, values = (word if word in PARTICIPANTS + SESSIONS else ""), 0
        return super().parse_args(ctx, spread)


def batch(
    out: Annotated[Path, typer.Option(help="Folder for the study's results; finished scans in it are skipped.")],
    bids: BidsFolder = None,
    scans: ScanList = None,
    model: Model = None,
    device: Device = AUTO,
    engine: Engine = AUTO,
    workers: WorkersHere = 1,
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    trust_headers: TrustHeaders = False,
    n4: N4 = False,
    flips: Flips = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    dicom_seg: DicomSeg = False,
    strict: Strict = False,
    assume_orientation: Orientation = None,
    overwrite: Overwrite = False,
    run: Run = "last",
) -> None:
    """Segment a whole study with one warm model.

    Exit status: 0 all, 3 some, 4 none of the scans succeeded; 5 with --strict where a result cannot be a newborn's
    brain.
    """
    from NeonatalSegLib.segmentation.study_scans import FoundStudy, scans_of_list, study_of_bids

    if (bids is None) == (scans is None):
        raise NeonatalSegError("Give either --bids with a folder or --list with a table of scans.")
    if scans is not None and run != "last":
        raise NeonatalSegError("--run chooses among the runs of a BIDS folder: a --list names files. Leave one out.")
    where = chosen_workers(workers, scheduler, slurm)
    if dicom_seg:
        from NeonatalSegLib.segmentation.dicom_out import check_installed

        check_installed()  # once, not scan by scan
    options = segment_options(
        trust_headers=trust_headers,
        n4=n4,
        flips=flips,
        probabilities=probabilities,
        uncertainty=uncertainty,
        dicom_seg=dicom_seg,
        strict=strict,
        assume_orientation=assume_orientation,
    )
    study = study_of_bids(bids, run=run) if bids else FoundStudy(scans_of_list(scans) if scans else [])
    _segment_all(study, out, options, where, model=model, device=device, engine=engine, overwrite=overwrite)


def bids(
    bids_dir: Annotated[Path, typer.Argument(help="BIDS data set or dHCP release.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder for the results, a BIDS derivative data set.")],
    analysis_level: Annotated[
        Level,
        typer.Argument(help="participant: segment. group: tables and page of all results in OUTPUT_DIR."),
    ],
    participant_label: Annotated[
        Optional[list[str]], typer.Option(*PARTICIPANTS, help="Only these, with or without sub-; several with blanks.")
    ] = None,
    session_label: Annotated[
        Optional[list[str]], typer.Option(*SESSIONS, help="Only these, with or without ses-; several with blanks.")
    ] = None,
    model: Model = None,
    device: Device = AUTO,
    engine: Engine = AUTO,
    workers: WorkersHere = 1,
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    trust_headers: TrustHeaders = False,
    n4: N4 = False,
    flips: Flips = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    strict: Strict = False,
    assume_orientation: Orientation = None,
    overwrite: Overwrite = False,
    run: Run = "last",
) -> None:
    """Segment a BIDS data set as a BIDS-App.

    Exit status: 0 all, 3 some, 4 none of the scans succeeded; 5 with --strict where a result cannot be a newborn's
    brain.
    Both levels write the tables and the page of all that is in OUTPUT_DIR; group does nothing else, for when several
    participant commands have filled it.
    """
    from NeonatalSegLib.segmentation.study_scans import study_of_bids

    where = chosen_workers(workers, scheduler, slurm)
    labels = {"participants": participant_label or (), "sessions": session_label or ()}
    if analysis_level is Level.GROUP:
        if any(labels.values()):
            raise NeonatalSegError("The group level is about all results in OUTPUT_DIR: leave the labels out.")
        _summarise(output_dir, bids_dir, run, overwrite=overwrite)
        return
    options = segment_options(
        trust_headers=trust_headers,
        n4=n4,
        flips=flips,
        probabilities=probabilities,
        uncertainty=uncertainty,
        strict=strict,
        assume_orientation=assume_orientation,
    )
    study = study_of_bids(bids_dir, run=run, **labels)
    _segment_all(study, output_dir, options, where, model=model, device=device, engine=engine, overwrite=overwrite)


def _segment_all(
    study: FoundStudy,
    out: Path,
    options: SegmentOptions,
    where: Workers | None,
    *,
    model: str | None,
    device: str,
    engine: str,
    overwrite: bool,
) -> None:
    from NeonatalSegLib.segmentation.batch import run_study
    from NeonatalSegLib.segmentation.outputs import check_writable
    from NeonatalSegLib.segmentation.segmenter import Segmenter
    from NeonatalSegLib.segmentation.study_table import check_study_folder
    from NeonatalSegLib.segmentation.workers import StudyWorkers

    for note in study.notes:
        warn(note)
    check_study_folder(out, overwrite=overwrite)
    check_writable(out)
    segmenter: Segmenter | StudyWorkers
    if where is None:
        segmenter = Segmenter(model, device, engine)
    else:
        segmenter = StudyWorkers(where, model, device, engine)
        typer.echo(f"On {where}")
    for notice in segmenter.notices:
        warn(notice)
    typer.echo(f"Model: {segmenter.model.name}  sha256 {segmenter.model.hash[:12]}")
    result = run_study(
        segmenter, study.scans, out, options, report=typer.echo, overwrite=overwrite, left_out=study.left_out
    )
    typer.echo(result.summary())
    raise typer.Exit(result.exit_status)


def _summarise(out: Path, dataset: Path, run: str, *, overwrite: bool) -> None:
    """The jobs before may each have failed at some: what the data set holds and the folder does not is told."""
    from NeonatalSegLib.segmentation.dataset import write_dataset_files
    from NeonatalSegLib.segmentation.study_results import read_rows
    from NeonatalSegLib.segmentation.study_scans import study_of_bids
    from NeonatalSegLib.segmentation.study_table import check_study_folder, write_study_files

    if not any(out.rglob("*_dseg.json")):
        raise NeonatalSegError(f"{out} holds no results yet: run the participant level first.")
    check_study_folder(out, overwrite=overwrite)
    for note in write_dataset_files(out, dataset):
        warn(note)
    without: dict[str, str] = {}
    try:
        study = study_of_bids(dataset, run=run)
        missing = {scan.name: "no result yet; the participant level says why" for scan in study.scans}
        there = {row.name for row in read_rows(out)}
        without = {name: why for name, why in {**missing, **study.left_out}.items() if name not in there}
    except NeonatalSegError as error:  # the images may be elsewhere by now: the results are there all the same
        warn(f"Which scans have no result yet is not known: {error}")
    typer.echo(str(write_study_files(out, overwrite=overwrite, without=without)))
    for name, why in without.items():
        warn(f"{name}: {why}")
