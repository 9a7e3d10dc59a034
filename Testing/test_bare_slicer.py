"""The panel in a Slicer where nothing was installed yet: it opens, and offers to install what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

# What the extension installs when the user acts: nothing of it may be needed before.
NOT_YET = ("torch", "monai", "psutil", "jinja2", "lightning", "matplotlib", "rich", "typer", "openvino")
OPEN = """
import sys

class Without:
    # A finder of modules that does not find the missing ones.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else self.finder.find_spec(name, path, target)

    def invalidate_caches(self):
        getattr(self.finder, "invalidate_caches", lambda: None)()

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
sys.path[:0] = [ROOT, ROOT + "/Testing/slicer/stand_ins"]
import slicer_qt, slicer_scene
slicer_qt.install()
slicer_scene.new_scene()
from scripted_engine import ScriptedEngine
engine = ScriptedEngine()
widget = slicer_qt.make_widget(lambda: engine)
widget.enter()
print(widget.ui.segmentButton.property("text"))
print(sorted(widget.sections))
from NeonatalSegLib.mrml.shared import dependencies
print(sorted(requirement.module for requirement in dependencies.missing()))
print(sorted({name.split(".")[0] for name in sys.modules} & set(MISSING)))
widget.cleanup()
"""


def test_the_panel_opens_before_anything_is_installed() -> None:
    pytest.importorskip("PySide6")
    code = f"MISSING, ROOT = {NOT_YET!r}, {str(ROOT)!r}\n{OPEN}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    button, sections, missing, imported = done.stdout.splitlines()[-4:]
    assert (button, sections) == ("Segment", "['Annotate', 'FineTune']")
    assert {"openvino"} <= set(missing.strip("[]").replace("'", "").split(", "))
    assert imported == "[]"
