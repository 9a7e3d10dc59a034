"""The extension's lists against the tree.

``python Testing/test_extension.py`` prints the lists as they should be, with ``--write`` it puts them in place.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from NeonatalSegLib import __version__

ROOT = Path(__file__).resolve().parents[1]
RESOURCE_FOLDERS = ("Resources/BrainFinder", "Resources/Models")
RESOURCE_FILES = ("Resources/Bundle/inference.json", "Resources/NeonatalSeg.ctbl", "Resources/NeonatalSeg.term.json")


def listed(cmake_file: str, variable: str) -> list[str]:
    """The entries of ``set(VARIABLE ...)`` in a CMake file."""
    text = (ROOT / cmake_file).read_text(encoding="utf-8")
    found = re.search(rf"^set\({variable}\s([^)]*)\)", text, re.MULTILINE)
    assert found, f"{cmake_file} sets no {variable}"
    return found[1].split()


def library_scripts() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "NeonatalSegLib").rglob("*.py"))


def library_resources() -> list[str]:
    inside = [p for p in (ROOT / "NeonatalSegLib").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    inside += [p for folder in RESOURCE_FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]
    inside += [ROOT / name for name in RESOURCE_FILES]
    return sorted(path.relative_to(ROOT).as_posix() for path in inside)


def module_files(*suffixes: str) -> list[str]:
    module = ROOT / "NeonatalSeg"
    found = [p for p in module.rglob("*") if p.is_file() and p.suffix in suffixes and "__pycache__" not in p.parts]
    return sorted(path.relative_to(module).as_posix() for path in found)


def slicer_test_files() -> list[str]:
    """Files of unittest classes about MRML and the widget: these run in a real Slicer as well."""
    return sorted(path.name for kind in ("mrml", "widget") for path in ROOT.glob(f"Testing/test_{kind}*.py"))


LISTS = [
    ("CMakeLists.txt", "LIBRARY_SCRIPTS", library_scripts),
    ("CMakeLists.txt", "LIBRARY_RESOURCES", library_resources),
    ("NeonatalSeg/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS", lambda: module_files(".py")),
    ("NeonatalSeg/CMakeLists.txt", "MODULE_PYTHON_RESOURCES", lambda: module_files(".ui", ".png", ".svg", ".json")),
    ("Testing/CMakeLists.txt", "IN_SLICER_TESTS", slicer_test_files),
]


@pytest.mark.parametrize(("cmake_file", "variable", "tree"), LISTS, ids=[entry[1] for entry in LISTS])
def test_lists_name_every_file(cmake_file: str, variable: str, tree: object) -> None:
    expected, found = tree(), listed(cmake_file, variable)  # type: ignore[operator]
    missing, gone = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    advice = "run python Testing/test_extension.py for the lists as they should be"
    assert not missing and not gone, f"{variable} in {cmake_file}: missing {missing}, no longer there {gone}; {advice}"
    assert len(found) == len(set(found))


def test_every_listed_file_is_there() -> None:
    for cmake_file, variable, _ in LISTS:
        for name in listed(cmake_file, variable):
            assert ((ROOT / cmake_file).parent / name).is_file(), name


def test_nothing_is_taken_for_a_part_of_the_slicer_package() -> None:
    """The wheel's package ``slicer`` imports every module of any folder of that name on the path."""
    assert not list((ROOT / "Testing" / "slicer").glob("*.py"))
    assert not list((ROOT / "Testing" / "slicer").glob("*/__init__.py"))


def test_index_entry() -> None:
    entry = json.loads((ROOT / "NeonatalSeg.json").read_text(encoding="utf-8"))
    assert entry["category"] == "Segmentation"
    assert entry["$schema"].endswith("schema-v1.0.1.json#")
    assert entry["scm_url"].startswith("https://") and entry["build_dependencies"] == ["PyTorch"]
    assert set(entry) <= {
        "$schema",
        "build_dependencies",
        "build_subdirectory",
        "category",
        "scm_revision",
        "scm_url",
        "tier",
    }


def test_icon_and_screenshots() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for name in ("NeonatalSeg/Resources/Icons/NeonatalSeg.png", "docs/images/panel-done.png"):
        assert name in text and (ROOT / name).read_bytes().startswith(b"\x89PNG"), name
    urls = re.search(r"EXTENSION_SCREENSHOTURLS \"([^\"]*)\"", text)
    assert urls and all(url.endswith((".png", ".jpg", ".gif")) for url in urls[1].split())


def test_the_version_has_one_home() -> None:
    """``NeonatalSegLib.__version__``: the package takes it from there, the citation and changelog agree."""
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'path = "NeonatalSegLib/__init__.py"' in project and "\nversion =" not in project


def test_package_floors_agree_with_pyproject() -> None:
    text = (ROOT / "NeonatalSegLib" / "mrml" / "shared" / "dependencies.py").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    floors = re.findall(r'Requirement\("\w+", "([a-z0-9]+>=[\d.]+)"', text)
    assert len(floors) == 7
    for floor in floors:
        assert re.search(rf'"{re.escape(floor)}[";]', project), floor


@pytest.mark.parametrize("layout", ["source checkout", "installed"])
def test_module_finds_its_library(layout: str, tmp_path: Path) -> None:
    """With nothing but the module's folder on the path, as in Slicer: the library above it, or beside it."""
    pytest.importorskip("PySide6")
    folder = ROOT / "NeonatalSeg"
    if layout == "installed":
        folder = tmp_path
        shutil.copy(ROOT / "NeonatalSeg" / "NeonatalSeg.py", folder)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "NeonatalSegLib", folder / "NeonatalSegLib", ignore=ignored)
    command = [sys.executable, "-c", FIND_LIBRARY, str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip().splitlines()[-1])
    assert found == (ROOT if layout == "source checkout" else tmp_path) / "NeonatalSegLib" / "__init__.py"


FIND_LIBRARY = """
import sys
root, folder = sys.argv[1:]
sys.path.insert(0, root + "/Testing/slicer/stand_ins")
import slicer_qt
slicer_qt.install()
for name in [name for name in sys.modules if name.startswith("NeonatalSeg")]:
    del sys.modules[name]
sys.path[:] = [folder] + [entry for entry in sys.path if entry not in ("", root, root + "/NeonatalSeg")]
import NeonatalSeg, NeonatalSegLib
assert NeonatalSeg.__file__.startswith(folder), NeonatalSeg.__file__
print(NeonatalSegLib.__file__)
"""


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
def test_packaged_beside_the_module(tmp_path: Path) -> None:
    """CMake itself, with Slicer's macros replaced by ones that copy: where does each file end up?"""
    (tmp_path / "SlicerConfig.cmake").write_text(
        f'set(Slicer_USE_FILE "{(tmp_path / "Use.cmake").as_posix()}")\n'
        f'set(Slicer_EXTENSION_GENERATE_CONFIG "{(tmp_path / "Empty.cmake").as_posix()}")\n'
        f'set(Slicer_EXTENSION_CPACK "{(tmp_path / "Empty.cmake").as_posix()}")\n'
        "set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/qt-scripted-modules)\n"
        "set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR installed/qt-scripted-modules)\n",
        encoding="utf-8",
    )
    (tmp_path / "Empty.cmake").write_text("", encoding="utf-8")
    (tmp_path / "Use.cmake").write_text(COPYING_MACROS, encoding="utf-8")
    build = tmp_path / "build"
    command = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={tmp_path}", "-DBUILD_TESTING=ON"]
    done = subprocess.run([*command, "-DCMAKE_SUPPRESS_DEVELOPER_WARNINGS=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = build / "lib" / "qt-scripted-modules"
    assert (modules / "NeonatalSeg.py").is_file()
    for name in [*library_scripts(), *library_resources()]:
        assert (modules / name).is_file(), name
    assert (modules / "Resources" / "UI" / "NeonatalSeg.ui").is_file()
    scripts = listed("NeonatalSeg/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS")
    assert sorted(path.name for path in modules.glob("*.py")) == sorted(scripts)
    assert sorted((build / "tests.txt").read_text(encoding="utf-8").split()) == ["NeonatalSeg.py", *slicer_test_files()]


COPYING_MACROS = """
macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(MY "NO_INSTALL_SUBDIR" "TARGET_NAME;DESTINATION_DIR;INSTALL_DIR" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT "${MY_INSTALL_DIR}" STREQUAL "installed/qt-scripted-modules")
    message(FATAL_ERROR "installed where Slicer does not look: ${MY_INSTALL_DIR}")
  endif()
  foreach(file IN LISTS MY_SCRIPTS MY_RESOURCES)
    get_filename_component(folder ${MY_DESTINATION_DIR}/${file} DIRECTORY)
    file(COPY ${CMAKE_CURRENT_SOURCE_DIR}/${file} DESTINATION ${folder})
  endforeach()
endmacro()
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MODULE_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown: ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  ctkMacroCompilePythonScript(TARGET_NAME ${MODULE_NAME} SCRIPTS "${MODULE_SCRIPTS}" RESOURCES "${MODULE_RESOURCES}"
    DESTINATION_DIR ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    INSTALL_DIR ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR} NO_INSTALL_SUBDIR)
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  file(APPEND ${CMAKE_BINARY_DIR}/tests.txt "${TEST_SCRIPT}\\n")
endmacro()
"""


def _update(write: bool) -> None:
    for cmake_file, variable, tree in LISTS:
        wanted = f"set({variable}\n" + "".join(f"  {name}\n" for name in tree()) + "  )"
        print(f"# {cmake_file}\n{wanted}\n")
        if write:
            text = (ROOT / cmake_file).read_text(encoding="utf-8")
            text = re.sub(rf"^set\({variable}\s[^)]*\)", wanted, text, count=1, flags=re.MULTILINE)
            (ROOT / cmake_file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _update("--write" in sys.argv)
