"""The command ``neonatalseg``. Every command is a thin caller of one room; heavy imports happen inside commands."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

from NeonatalSegLib import __version__
from NeonatalSegLib.cli import experiment, models, split
from NeonatalSegLib.cli import study as cli_study
from NeonatalSegLib.errors import NeonatalSegError

USER_ERROR = 2
INTERRUPTED = 130
app = typer.Typer(
    name="neonatalseg",
    help="Tissue segmentation of the newborn brain from T1 and T2. Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_verbose = False

# Optional[...] and not "| None": typer evaluates these at run time, and Python 3.10 is supported.
T1 = Annotated[Optional[Path], typer.Option(help="T1 image, or a folder with one DICOM series.")]
T2 = Annotated[Optional[Path], typer.Option(help="T2 image, or a folder with one DICOM series.")]
Model = Annotated[
    Optional[str], typer.Option(help="Name or folder of a model; default: the accepted one, else the shipped one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TrustHeaders = Annotated[bool, typer.Option("--trust-headers", help="Do not register T1 to T2.")]
N4 = Annotated[bool, typer.Option("--n4", help="Correct the bias field first (N4).")]
Flips = Annotated[bool, typer.Option("--flips", help="Average with the mirror image (twice the network's time).")]
Probabilities = Annotated[bool, typer.Option("--probabilities", help="Also write the class probabilities.")]
Uncertainty = Annotated[bool, typer.Option("--uncertainty", help="Also write the entropy, 0-1.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a T1 and T2 that do not agree.")]


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    global _verbose
    _verbose = verbose
    if version:
        typer.echo(f"neonatalseg {__version__}")
        raise typer.Exit


@app.command()
def segment(
    out: Annotated[Path, typer.Option(help="Folder for the results; made where missing.")],
    t1: T1 = None,
    t2: T2 = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the scan; default: from the file name.")] = None,
    age: Annotated[Optional[float], typer.Option(help="Post-menstrual age in weeks.")] = None,
    model: Model = None,
    device: Device = "auto",
    trust_headers: TrustHeaders = False,
    n4: N4 = False,
    flips: Flips = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    strict: Strict = False,
) -> None:
    """Segment one newborn's scan: label map, volumes, picture and side-car."""
    from NeonatalSegLib.scans.scan import load_scan

    scan = load_scan(t1, t2, name=name, age_weeks=age)  # bad input is told before the network's libraries load
    from NeonatalSegLib.segmentation.outputs import check_writable, segment_to_folder
    from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions

    check_writable(out)
    options = SegmentOptions(trust_headers, n4, flips, probabilities, uncertainty, strict)
    segmenter = Segmenter(model or None, device)
    _tell(segment_to_folder(segmenter, scan, out, options=options, progress=_progress_line))


@app.command()
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
    trust_headers: TrustHeaders = False,
    n4: N4 = False,
    flips: Flips = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    strict: Strict = False,
) -> None:
    """Segment a whole study with one warm model. Exit status: 0 all, 3 some, 4 none of the scans succeeded."""
    from functools import partial

    from NeonatalSegLib.segmentation.batch import run_study, scans_of_bids, scans_of_list

    if (bids is None) == (scans is None):
        raise NeonatalSegError("Give either --bids with a folder or --list with a table of scans.")
    study = scans_of_bids(bids, partial(typer.echo, err=True)) if bids else scans_of_list(scans) if scans else []
    from NeonatalSegLib.segmentation.outputs import check_writable
    from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions

    check_writable(out)
    options = SegmentOptions(trust_headers, n4, flips, probabilities, uncertainty, strict)
    segmenter = Segmenter(model or None, device)
    typer.echo(f"Model: {segmenter.model.name}  sha256 {segmenter.model.hash[:12]}")
    result = run_study(segmenter, study, out, options, report=typer.echo)
    typer.echo(result.summary())
    raise typer.Exit(result.exit_status)


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Option(help="Folder with label maps to be evaluated.")],
    truth: Annotated[Path, typer.Option(help="Folder with the true label maps.")],
    out: Annotated[Optional[Path], typer.Option(help="TSV, one row a subject and tissue.")] = None,
    surface: Annotated[bool, typer.Option(help="Also HD95 and average surface distance (slower).")] = True,
) -> None:
    """Compare label maps with the truth: the paper's Tables 1 and 2, surface distances and volumes."""
    from NeonatalSegLib.evaluation.folders import evaluate_folders

    evaluation = evaluate_folders(pred, truth, surface=surface, progress=_progress_line)
    for warning in evaluation.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    typer.echo(f"{evaluation.table1()}\n\n{evaluation.table2()}")
    if out:
        evaluation.write_tsv(out)
        typer.echo(f"\nWritten: {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on from it.")],
    data: Annotated[Optional[Path], typer.Option(help="BIDS folder with T1w, T2w and *_dseg label maps.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="Training settings (JSON); default: the paper's.")] = None,
    templates: Annotated[
        Optional[Path], typer.Option(help="Also train on age templates (age-36/age-36_T2w.nii.gz ...).")
    ] = None,
    ages: Annotated[str, typer.Option(help="Ages of the templates in weeks.")] = "36,38,40,42,44",
    cache: Annotated[Optional[Path], typer.Option(help="Folder of prepared arrays; default: OUT/cache.")] = None,
    cache_only: Annotated[bool, typer.Option("--cache-only", help="Build the cache and stop.")] = False,
    devices: Annotated[int, typer.Option(help="GPUs to train on together.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that draw patches.")] = 1,
    save: Annotated[Optional[Path], typer.Option(help="Folder for the finished model; default: OUT/model.")] = None,
    stop_after: Annotated[
        Optional[int], typer.Option(help="End after so many epochs; the same command without it goes on.")
    ] = None,
) -> None:
    """Train a model on labelled scans. Without --data the cache is read as it is (no SimpleITK needed)."""
    from NeonatalSegLib.datasets.cache import build_cache, read_cache
    from NeonatalSegLib.training.run import TrainingSettings, read_settings
    from NeonatalSegLib.training.run import train as run_training

    settings = read_settings(config) if config else TrainingSettings()
    folder = cache or out / "cache"
    if data is None:
        subjects = read_cache(folder)
    else:
        from NeonatalSegLib.datasets.dhcp import find_labelled
        from NeonatalSegLib.datasets.templates import find_templates

        spacing = settings.network.spacing_mm
        complete = find_labelled(data)
        typer.echo(complete.summary(limit=20), err=bool(complete.incomplete))
        found = list(complete.subjects)
        if templates is not None:
            found += find_templates(templates, [int(age) for age in ages.split(",")])
        subjects = build_cache(found, folder, spacing, phantoms=settings.phantoms, seed=settings.seed)
    typer.echo(f"{len(subjects)} prepared subjects in {folder}")
    if cache_only:
        return
    finished = run_training(subjects, settings, out, devices=devices, workers=workers, stop_after=stop_after)
    if finished.patches_per_second is not None and finished.loader_share is not None:
        speed, waiting = finished.patches_per_second, 100 * finished.loader_share
        typer.echo(f"{speed:.2f} patches a second; the network waited for patches in {waiting:.0f} % of the time")
    if not finished.first_process:  # of several GPUs' processes one writes the model
        return
    model = finished.save(save or out / "model")
    typer.echo(f"Best checkpoint: {finished.checkpoint}\nModel: {model.folder}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the scan and the results.")] = Path("demo"),
    age: Annotated[float, typer.Option(help="Age of the synthetic newborn in weeks.")] = 40.0,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Draw a synthetic newborn, segment it, and print the DSC against the truth that it was drawn from."""
    from NeonatalSegLib.segmentation.demo import run_demo

    written, table = run_demo(out, age, model or None, device, _progress_line)
    _tell(written)
    typer.echo(f"\n{table}")


app.command()(split.split)
app.command()(cli_study.budget)
app.command()(cli_study.finetune)
app.add_typer(models.app, name="models")
app.add_typer(experiment.experiment)


def _progress_line(stage: str, fraction: float) -> None:
    if sys.stderr.isatty():
        end = "\n" if fraction >= 1 else ""
        print(f"\r{stage:<10}{100 * fraction:3.0f} %", end=end, file=sys.stderr, flush=True)


def _tell(written: dict[str, Path]) -> None:
    """Volumes, warnings and where the files are."""
    import json

    facts = json.loads(written["sidecar"].read_text(encoding="utf-8"))
    for warning in facts["Warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    rows = [line.split("\t") for line in written["volumes"].read_text(encoding="utf-8").splitlines()[1:]]
    for _, _, tissue, volume in rows:
        typer.echo(f"{tissue:<45}{float(volume):8.1f} mL")
    if "PredictedAgeWeeks" in facts:
        typer.echo(f"{'Age by the model':<45}{facts['PredictedAgeWeeks']:8.1f} weeks")
    times = "  ".join(f"{k} {v:.1f} s" for k, v in facts["SecondsPerStage"].items())
    typer.echo(f"Model: {facts['Model']['Name']}  sha256 {facts['Model']['SHA256'][:12]}")
    typer.echo(f"{facts['Device']}  {times}")
    for path in written.values():
        typer.echo(str(path))
    typer.echo(facts["Notice"])


def _stop_on_terminate(*_: object) -> None:
    raise KeyboardInterrupt  # so that a terminated run cleans up like an interrupted one


def run(arguments: list[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status.

    A user's mistake is one sentence and status 2; a traceback is shown only with --verbose.
    """
    with contextlib.suppress(ValueError):  # only the main thread may set it
        signal.signal(signal.SIGTERM, _stop_on_terminate)
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except NeonatalSegError as error:
        typer.echo(f"Error: {error}", err=True)
        _trace()
        return USER_ERROR
    except ModuleNotFoundError as error:
        hint = "neonatalseg[train]" if error.name in ("lightning", "tensorboard") else "neonatalseg"
        typer.echo(f"Error: {error.name} is not installed: pip install '{hint}'", err=True)
        _trace()
        return 1
    except KeyboardInterrupt:
        typer.echo("Interrupted: nothing was left behind.", err=True)
        return INTERRUPTED
    except Exception as error:
        typer.echo(f"Error: {type(error).__name__}: {error} (run again with --verbose for details)", err=True)
        _trace()
        return 1
    return 0


def _trace() -> None:
    if _verbose:
        traceback.print_exc()


def main() -> None:
    """Entry point of the command ``neonatalseg``."""
    sys.exit(run())
