"""What ships with the library is found wherever the library lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOOK = """
import json
from NeonatalSegLib import resources
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
model = find_model()
model.check_weights()
assert model.name == DEFAULT_MODEL
terms = json.loads(resources.terminology_file().read_text(encoding="utf-8"))
assert terms["SegmentationCategoryTypeContextName"] == "NeonatalSeg tissues"
print(resources.__file__)
print(resources.resources_folder())
"""


def look_from(folder: Path) -> tuple[Path, Path]:
    """Where a Python that knows ``folder`` alone finds the library, and what ships with it."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", LOOK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    library, found = map(Path, done.stdout.splitlines()[-2:])
    return library.parent, found


def test_in_a_checkout() -> None:
    assert look_from(ROOT) == (ROOT / "NeonatalSegLib", ROOT / "Resources")


def test_installed_by_pip(tmp_path: Path) -> None:
    """A wheel of the tree, unpacked as pip does; another package has put a Resources folder beside it."""
    pytest.importorskip("hatchling", reason="wheels are built with hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "Resources" / "Models").mkdir(parents=True)
    assert look_from(site) == (site / "NeonatalSegLib", site / "NeonatalSegLib" / "Resources")


def test_in_slicer(tmp_path: Path) -> None:
    """The library and its resources among the scripted modules, as CMake packages them."""
    modules = tmp_path / "qt-scripted-modules"
    shutil.copytree(ROOT / "NeonatalSegLib", modules / "NeonatalSegLib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "Resources", modules / "Resources")
    assert look_from(modules) == (modules / "NeonatalSegLib", modules / "Resources")
