"""Segment without a screen, in Slicer or in plain Python, with the options of ``neonatalseg segment`` or ``batch``.

    Slicer --no-splash --no-main-window --python-script segment_headless.py -- --t1 T1.nii.gz --t2 T2.nii.gz --out DIR
    Slicer --no-splash --no-main-window --python-script segment_headless.py -- batch --bids DIR --out DIR

Always put ``--`` before the options: without it Slicer takes some of them for its own. Slicer ends with the exit
status of the command, whatever happens.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

NEEDED = ("SimpleITK", "scipy", "typer", "matplotlib", "jinja2")  # and an engine, of which the command tells itself


class segment_headless:  # noqa: N801  # Slicer takes every .py beside a module file for a module of this name
    """A hidden module, so that Slicer's start-up log stays clean; the script is run with --python-script."""

    def __init__(self, parent: Any) -> None:
        parent.title = "NeonatalSeg headless script"
        parent.hidden = True
        self.parent = parent


def run(arguments: list[str]) -> int:
    """Exit status of one command line, without the leading ``--``."""
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent):  # installed: the library lies beside this file; in a checkout one level up
        if (folder / "NeonatalSegLib").is_dir():
            sys.path.insert(0, str(folder))
            break
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if arguments[:1] not in (["segment"], ["batch"]):
        arguments = ["segment", *arguments]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"Error: this Python lacks {', '.join(missing)}. Click Segment in the module NeonatalSeg, whose dialog "
            f"installs them, or: PythonSlicer -m pip install openvino {' '.join(missing)}",
            file=sys.stderr,
        )
        return 1
    from NeonatalSegLib.cli import app

    return app.run(arguments)


def end(status: int) -> None:
    """End Slicer, or plain Python, with ``status``: Slicer goes on running after a script otherwise."""
    sys.stdout.flush()
    slicer = sys.modules.get("slicer")  # inside Slicer it is there already; importing the wheel would not make an app
    if slicer is not None and hasattr(slicer, "app"):
        slicer.util.exit(status)
    else:
        sys.exit(status)


if __name__ == "__main__":
    try:
        code = run(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        code = 1
    end(code)
