"""The public names: what they are, what importing them costs, and that every example in the docs runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

import NeonatalSegLib
from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network

PUBLIC = [name for name in NeonatalSegLib.__all__ if name != "__version__"]
TINY = NetworkSettings((2, 4, 4), 3.0, (16, 16, 16), heads=1)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Their imports need what only Slicer or the slicer-core wheel has, or start a process.
NOT_HERE = ("NeonatalSegLib.mrml", "NeonatalSegLib.cli.__main__")


def library_modules() -> list[str]:
    found = pkgutil.walk_packages(NeonatalSegLib.__path__, "NeonatalSegLib.")
    return [m.name for m in found if not m.name.startswith(NOT_HERE)]


def test_importing_the_package_loads_nothing() -> None:
    """Nothing but itself and ``typing``, so that it takes no longer than that, on any machine."""
    code = "import sys, typing\nbefore = set(sys.modules)\nimport NeonatalSegLib\nprint(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'NeonatalSegLib'}"


def test_light_names_stay_light() -> None:
    """Reading what tissues and plans there are needs no network library."""
    code = (
        "import sys\nfrom NeonatalSegLib import TISSUES, BudgetSettings, NeonatalSegError, find_model\n"
        "print(sorted({'torch', 'monai', 'lightning', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((ROOT / "NeonatalSegLib" / "__init__.pyi").read_text(encoding="utf-8"))
    told = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == {name: f"NeonatalSegLib.{home}" for name, home in NeonatalSegLib._HOMES.items()}
    assert (ROOT / "NeonatalSegLib" / "py.typed").is_file()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(NeonatalSegLib, name)
    home = importlib.import_module(f"NeonatalSegLib.{NeonatalSegLib._HOMES[name]}")
    assert found is getattr(home, name) and name in dir(NeonatalSegLib)
    if callable(found):
        assert (inspect.getdoc(found) or "").strip(), name
    assert f"`{name}" in (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), f"docs/api.md does not tell of {name}"


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = NeonatalSegLib.Segmentor


def test_the_doors_that_the_tour_names_are_there() -> None:
    """Every `room.module.name` of CONTRIBUTING.md, looked up without importing it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    doors = [
        d
        for d in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", text)
        if not d.startswith("_") and not d.endswith((".md", ".py", ".txt"))
    ]
    assert len(doors) > 20
    for door in doors:
        parts = door.split(".")
        places = [ROOT.joinpath("NeonatalSegLib", *parts[:n]) for n in range(len(parts), 0, -1)]
        file = next((f for place in places if (f := place.with_suffix(".py")).is_file()), None)
        assert file or places[0].is_dir() or door == "pyproject.toml", f"there is no {door}"
        if file and file.stem != parts[-1]:
            assert re.search(rf"^\s*(def|class) {parts[-1]}\b", file.read_text(encoding="utf-8"), re.MULTILINE), door


@pytest.fixture
def in_a_folder(
    newborn_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_folder: Path
) -> Path:
    """A working folder with a newborn's files, where a small network with random weights is the current model."""
    for file in newborn_files.values():
        (tmp_path / file.name).symlink_to(file)
    save_model(build_network(TINY), TINY, models_folder / "small", description="random weights")
    store.accept("small")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_examples(examples: doctest.DocTest) -> str:
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failed = runner.run(examples, out=told.append)
    return "".join(told) if failed.failed else ""


@pytest.mark.slow
def test_the_page_of_the_api_runs(in_a_folder: Path) -> None:
    """docs/api.md from the first line to the last, on the synthetic newborn; the current model is a small one."""
    page = ROOT / "docs" / "api.md"
    examples = doctest.DocTestParser().get_doctest(page.read_text(encoding="utf-8"), {}, "api.md", str(page), 0)
    assert len(examples.examples) > 20
    assert not (told := run_examples(examples)), told


@pytest.mark.slow
def test_examples_in_docstrings_run(newborn: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the library but mrml; ``newborn`` in them is the synthetic one of 40 weeks."""
    monkeypatch.chdir(tmp_path)
    ran, told = 0, ""
    for name in library_modules():
        module: ModuleType = importlib.import_module(name)
        for examples in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs={"newborn": newborn}):
            if examples.examples:
                ran += 1
                told += run_examples(examples)
    assert not told, told
    assert ran > 20
