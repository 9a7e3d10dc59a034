"""Which Python runs the worker, with which environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

LIBRARY_PARENT = Path(__file__).resolve().parents[2]


def find_python() -> Path | None:
    """This interpreter; inside Slicer the PythonSlicer beside the application; None where there is neither.

    Slicer's ``sys.executable`` may be empty or name the application itself, which would open a second Slicer.
    """
    if sys.executable and Path(sys.executable).stem.lower().startswith("python"):
        return Path(sys.executable)
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    homes = [Path(os.environ["SLICER_HOME"])] if os.environ.get("SLICER_HOME") else []
    homes += list(Path(sys.prefix).resolve().parents)[:2]  # Slicer's Python lives in <home>/lib/Python
    if sys.executable:
        homes += list(Path(sys.executable).resolve().parents)[:2]
    for home in homes:
        for candidate in (home / "bin" / name, home / name):
            if candidate.is_file():
                return candidate
    found = shutil.which("PythonSlicer")
    return Path(found) if found else None


def worker_environment(given: Mapping[str, str] | None) -> dict[str, str]:
    """``given`` (default: this process's environment) with the folder that holds NeonatalSegLib on PYTHONPATH."""
    environment = dict(os.environ if given is None else given)
    before = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join([str(LIBRARY_PARENT), *([before] if before else [])])
    environment["PYTHONIOENCODING"] = "utf-8"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
