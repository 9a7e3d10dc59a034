"""The command ``neonatalseg``. Every command is a thin caller of one room; heavy imports happen inside commands."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from typing import Annotated

import typer

from NeonatalSegLib import __version__
from NeonatalSegLib.cli import batch, experiment, models, segment, split, study, train
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.text import shown

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


app.command()(segment.segment)
app.command()(batch.batch)
app.command(cls=batch.BidsCommand)(batch.bids)
app.command()(segment.evaluate)
app.command()(train.train)
app.command()(segment.demo)
app.command()(split.split)
app.command()(study.budget)
app.command()(study.finetune)
app.command()(study.complete)
app.add_typer(models.app, name="models")
app.add_typer(experiment.experiment)


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
        typer.echo(f"Error: {shown(str(error))}", err=True)
        _trace()
        return USER_ERROR
    except ModuleNotFoundError as error:
        extras = {
            "lightning": "train", "tensorboard": "train", "torch": "torch", "monai": "torch", "nncf": "export",
            "highdicom": "dicom",
        }  # fmt: skip
        extra = extras.get((error.name or "").split(".")[0])
        hint = f"neonatalseg[{extra}]" if extra else "neonatalseg"
        typer.echo(f"Error: {error.name} is not installed: pip install '{hint}'", err=True)
        _trace()
        return 1
    except KeyboardInterrupt:
        typer.echo("Interrupted: nothing was left behind.", err=True)
        return INTERRUPTED
    except Exception as error:
        typer.echo(
            f"Error: {type(error).__name__}: {shown(str(error))} (run again with --verbose for details)", err=True
        )
        _trace()
        return 1
    return 0


def _trace() -> None:
    if _verbose:
        traceback.print_exc()


def main() -> None:
    """Entry point of the command ``neonatalseg``."""
    sys.exit(run())
