"""``neonatalseg segment``, ``batch``, ``demo``, ``evaluate``: from scans to label maps, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from NeonatalSegLib.cli.options import (
    N4,
    T1,
    T2,
    Device,
    DicomSeg,
    Engine,
    Flips,
    Model,
    Orientation,
    Overwrite,
    Probabilities,
    Strict,
    TrustHeaders,
    Uncertainty,
    progress_line,
    warn,
)
from NeonatalSegLib.errors import NeonatalSegError

IMPLAUSIBLE, SOME_FAILED = 5, 3  # exit status


def segment(
    out: Annotated[Path, typer.Option(help="Folder for the results; made where missing.")],
    t1: T1 = None,
    t2: T2 = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the scan; default: from the file name.")] = None,
    age: Annotated[Optional[float], typer.Option(help="Post-menstrual age in weeks.")] = None,
    model: Model = None,
    device: Device = "auto",
    engine: Engine = "auto",
    trust_headers: TrustHeaders = False,
    n4: N4 = False,
    flips: Flips = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    dicom_seg: DicomSeg = False,
    strict: Strict = False,
    assume_orientation: Orientation = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment one newborn's scan: label map, volumes, picture and side-car."""
    from NeonatalSegLib.scans.placement import check_orientation
    from NeonatalSegLib.scans.scan import load_scan

    orientation = check_orientation(assume_orientation) if assume_orientation is not None else None
    # Bad input is told before the network's libraries load.
    scan = load_scan(t1, t2, name=name, age_weeks=age, orientation=orientation)
    if dicom_seg:
        from NeonatalSegLib.segmentation.dicom_out import source_of

        source_of(scan)
    from NeonatalSegLib.segmentation.outputs import check_writable, segment_to_folder
    from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions
    from NeonatalSegLib.segmentation.verdict import FAIL

    check_writable(out)
    options = SegmentOptions(
        trust_headers=trust_headers,
        n4=n4,
        flips=flips,
        probabilities=probabilities,
        uncertainty=uncertainty,
        dicom_seg=dicom_seg,
        strict=strict,
        assume_orientation=orientation,
    )
    segmenter = Segmenter(model or None, device, engine)
    verdict = _report(
        segment_to_folder(segmenter, scan, out, options=options, progress=progress_line, overwrite=overwrite)
    )
    if strict and verdict == FAIL:
        raise typer.Exit(IMPLAUSIBLE)


def batch(
    out: Annotated[Path, typer.Option(help="Folder for the study's results; finished scans in it are skipped.")],
    bids: Annotated[
        Optional[Path], typer.Option(help="dHCP release or BIDS folder: every session with a T1w or T2w.")
    ] = None,
    scans: Annotated[
        Optional[Path],
        typer.Option("--list", help="TSV with the columns name, t1, t2, age_weeks (paths may be empty)."),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    engine: Engine = "auto",
    at_once: Annotated[int, typer.Option(min=1, help="Scans side by side, each with its share of the cores.")] = 1,
    trust_headers: TrustHeaders = False,
    n4: N4 = False,
    flips: Flips = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    dicom_seg: DicomSeg = False,
    strict: Strict = False,
    assume_orientation: Orientation = None,
    overwrite: Overwrite = False,
    run: Annotated[str, typer.Option(help="Of several runs of a BIDS session: last, first or a number.")] = "last",
) -> None:
    """Segment a whole study with one warm model. Exit status: 0 all, 3 some, 4 none of the scans succeeded."""
    from NeonatalSegLib.scans.placement import check_orientation
    from NeonatalSegLib.segmentation.batch import FoundStudy, run_study, scans_of_list, study_of_bids

    if (bids is None) == (scans is None):
        raise NeonatalSegError("Give either --bids with a folder or --list with a table of scans.")
    orientation = check_orientation(assume_orientation) if assume_orientation is not None else None
    if dicom_seg:
        from NeonatalSegLib.segmentation.dicom_out import check_installed

        check_installed()  # once, not scan by scan
    study = study_of_bids(bids, run=run) if bids else FoundStudy(scans_of_list(scans) if scans else [])
    for note in study.notes:
        warn(note)
    from NeonatalSegLib.segmentation.outputs import check_writable
    from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions
    from NeonatalSegLib.segmentation.study_table import check_study_folder

    check_study_folder(out, overwrite=overwrite)
    check_writable(out)
    options = SegmentOptions(
        trust_headers=trust_headers,
        n4=n4,
        flips=flips,
        probabilities=probabilities,
        uncertainty=uncertainty,
        dicom_seg=dicom_seg,
        strict=strict,
        assume_orientation=orientation,
    )
    segmenter = Segmenter(model or None, device, engine)
    typer.echo(f"Model: {segmenter.model.name}  sha256 {segmenter.model.hash[:12]}")
    result = run_study(
        segmenter,
        study.scans,
        out,
        options,
        report=typer.echo,
        at_once=at_once,
        overwrite=overwrite,
        left_out=study.left_out,
    )
    typer.echo(result.summary())
    raise typer.Exit(result.exit_status)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the scan and the results.")] = Path("demo"),
    age: Annotated[float, typer.Option(help="Age of the synthetic newborn in weeks.")] = 40.0,
    model: Model = None,
    device: Device = "auto",
    engine: Engine = "auto",
) -> None:
    """Draw a synthetic newborn, segment it, and print the DSC against the truth that it was drawn from."""
    from NeonatalSegLib.segmentation.demo import run_demo

    written, table = run_demo(out, age, model or None, device, progress_line, engine=engine)
    _report(written)
    typer.echo(f"\n{table}")


def evaluate(
    pred: Annotated[Path, typer.Option(help="Folder with label maps to be evaluated.")],
    truth: Annotated[Path, typer.Option(help="Folder with the true label maps.")],
    out: Annotated[Optional[Path], typer.Option(help="TSV, one row per subject and tissue.")] = None,
    surface: Annotated[bool, typer.Option(help="Also HD95 and average surface distance (slower).")] = True,
) -> None:
    """Compare label maps with the truth: the paper's Tables 1 and 2, surface distances and volumes.

    Exit status: 0 all pairs, 3 some could not be measured and are named.
    """
    from NeonatalSegLib.evaluation.folders import evaluate_folders

    evaluation = evaluate_folders(pred, truth, surface=surface, progress=progress_line)
    for warning in [*evaluation.warnings, *(f"{who}: left out. {why}" for who, why in evaluation.failed.items())]:
        warn(warning)
    typer.echo(f"{evaluation.table1()}\n\n{evaluation.table2()}")
    if out:
        evaluation.write_tsv(out)
        typer.echo(f"\nWritten: {out}")
    if evaluation.failed:
        raise typer.Exit(SOME_FAILED)


def _report(written: dict[str, Path]) -> str:
    """Verdict, warnings, volumes and where the files are; returns the verdict."""
    import json

    from NeonatalSegLib.segmentation.verdict import PASS, VERDICTS

    facts = json.loads(written["sidecar"].read_text(encoding="utf-8"))
    verdict = str(facts["Plausibility"]["Verdict"])
    typer.echo(f"Plausibility: {VERDICTS[verdict]}", err=verdict != PASS)
    for warning in facts["Warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    rows = [line.split("\t") for line in written["volumes"].read_text(encoding="utf-8").splitlines()[1:]]
    for _, _, tissue, volume in rows:
        typer.echo(f"{tissue:<45}{float(volume):8.1f} mL")
    if "PredictedAgeWeeks" in facts:
        typer.echo(f"{'Age by the model':<45}{facts['PredictedAgeWeeks']:8.1f} weeks")
    times = "  ".join(f"{k} {v:.1f} s" for k, v in facts["SecondsPerStage"].items())
    typer.echo(f"Model: {facts['Model']['Name']}  sha256 {facts['Model']['SHA256'][:12]}")
    engine = facts["Engine"]
    typer.echo(f"{facts['Device']}, {engine['Name']} {engine['Precision']}  {times}")
    for path in written.values():
        typer.echo(str(path))
    typer.echo(facts["Notice"])
    return verdict
