"""``neonatalseg segment``, ``demo``, ``evaluate``: from a scan to its label map, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from NeonatalSegLib.cli.options import (
    AUTO,
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
    OverwriteFile,
    Probabilities,
    Results,
    Strict,
    TrustHeaders,
    Uncertainty,
    progress_line,
    segment_options,
    warn,
)

IMPLAUSIBLE, SOME_FAILED = 5, 3  # exit status


def segment(
    out: Results,
    t1: T1 = None,
    t2: T2 = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the scan; default: from the file name.")] = None,
    age: Annotated[Optional[float], typer.Option(help="Post-menstrual age in weeks.")] = None,
    model: Model = None,
    device: Device = AUTO,
    engine: Engine = AUTO,
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
    from NeonatalSegLib.scans.scan import load_scan
    from NeonatalSegLib.segmentation.dicom_out import source_of
    from NeonatalSegLib.segmentation.outputs import check_writable, segment_to_folder
    from NeonatalSegLib.segmentation.segmenter import Segmenter
    from NeonatalSegLib.segmentation.verdict import FAIL

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
    scan = load_scan(t1, t2, name=name, age_weeks=age, orientation=options.assume_orientation)
    if dicom_seg:
        source_of(scan)
    check_writable(out)
    segmenter = Segmenter(model or None, device, engine)
    verdict = _report(
        segment_to_folder(segmenter, scan, out, options=options, progress=progress_line, overwrite=overwrite)
    )
    if strict and verdict == FAIL:
        raise typer.Exit(IMPLAUSIBLE)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the scan and the results.")] = Path("demo"),
    age: Annotated[float, typer.Option(help="Age of the synthetic newborn in weeks.")] = 40.0,
    model: Model = None,
    device: Device = AUTO,
    engine: Engine = AUTO,
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
    overwrite: OverwriteFile = False,
) -> None:
    """Compare label maps with the truth: the paper's Tables 1 and 2, surface distances and volumes.

    Exit status: 0 all pairs, 3 some could not be measured and are named.
    """
    from NeonatalSegLib.evaluation.folders import evaluate_folders
    from NeonatalSegLib.segmentation.ownership import check_new

    if out:
        check_new(out, overwrite=overwrite)  # before the work
    evaluation = evaluate_folders(pred, truth, surface=surface, progress=progress_line)
    for warning in [*evaluation.warnings, *(f"{who}: left out. {why}" for who, why in evaluation.failed.items())]:
        warn(warning)
    typer.echo(f"{evaluation.table1()}\n\n{evaluation.table2()}")
    if out:
        evaluation.write_tsv(out)
        typer.echo(f"\nWritten: {out}")
    if evaluation.failed:
        raise typer.Exit(SOME_FAILED)


def tell_verdict(facts: Mapping[str, Any]) -> str:
    """Print verdict and warnings of a side-car; returns the verdict."""
    from NeonatalSegLib.segmentation.verdict import PASS, VERDICTS

    verdict = str(facts["Plausibility"]["Verdict"])
    typer.echo(f"Plausibility: {VERDICTS[verdict]}", err=verdict != PASS)
    for warning in facts["Warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    return verdict


def _report(written: dict[str, Path]) -> str:
    """Verdict, warnings, volumes and where the files are; returns the verdict."""
    import json

    facts = json.loads(written["sidecar"].read_text(encoding="utf-8"))
    verdict = tell_verdict(facts)
    rows = [line.split("\t") for line in written["volumes"].read_text(encoding="utf-8").splitlines()[1:]]
    for _, _, tissue, volume in rows:
        typer.echo(f"{tissue:<45}{float(volume):8.1f} mL")
    if "PredictedAgeWeeks" in facts:
        typer.echo(f"{'Age by the model':<45}{facts['PredictedAgeWeeks']:8.1f} weeks")
    if "AgeByVolumesWeeks" in facts:
        typer.echo(f"{'Age by volumes':<45}{facts['AgeByVolumesWeeks']:8.1f} weeks")
    times = "  ".join(f"{k} {v:.1f} s" for k, v in facts["SecondsPerStage"].items())
    typer.echo(f"Model: {facts['Model']['Name']}  sha256 {facts['Model']['SHA256'][:12]}")
    engine = facts["Engine"]
    typer.echo(f"{facts['Device']}, {engine['Name']} {engine['Precision']}  {times}")
    for path in written.values():
        typer.echo(str(path))
    typer.echo(facts["Notice"])
    return verdict
