"""The module file itself, and that the stand-in for Qt is as strict as the real one."""

from __future__ import annotations

import importlib
import sys
import types
import unittest
from pathlib import Path
from unittest import mock

import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from scripted_engine import ScriptedEngine

from NeonatalSegLib.panel.segment_state import State


class QtTest(unittest.TestCase):
    """What the module relies on holds in both bindings; what only one allows raises in both."""

    def setUp(self) -> None:
        slicer_qt.install()

    def test_properties_are_values(self) -> None:
        import qt

        label = qt.QLabel("text")
        self.assertEqual((label.text, label.property("text")), ("text", "text"))
        with self.assertRaises(TypeError):
            label.text()

    def test_unknown_attributes_and_keywords_raise(self) -> None:
        import qt

        button = qt.QPushButton("text")
        with self.assertRaises(AttributeError):
            button.no_such_attribute = 1
        with self.assertRaises(AttributeError):
            _ = button.no_such_attribute
        with self.assertRaises((TypeError, ValueError)):
            qt.QLabel(text="text")

    def test_slots_without_arguments_are_called_bare(self) -> None:
        import qt

        button, heard = qt.QPushButton("text"), []
        button.clicked.connect(lambda: heard.append("clicked"))
        button.click()
        self.assertEqual(heard, ["clicked"])


class ModuleTest(unittest.TestCase):
    def setUp(self) -> None:
        slicer_qt.install()
        self.scene = slicer_scene.new_scene()

    def test_module_texts(self) -> None:
        import NeonatalSeg

        parent = types.SimpleNamespace()
        if slicer_scene.in_slicer():  # made when Slicer started; a second one would register everything twice
            parent = slicer.modules.neonatalseg
        else:
            NeonatalSeg.NeonatalSeg(parent)
        self.assertEqual((parent.title, parent.categories), ("NeonatalSeg", ["Segmentation"]))
        self.assertIn("not for diagnosis", parent.helpText)
        self.assertIn("Gousias", parent.acknowledgementText)

    @unittest.skipIf(slicer_scene.in_slicer(), "Slicer registers it by itself")
    def test_sample_data(self) -> None:
        import NeonatalSeg

        slicer_qt.SampleDataLogic.registered.clear()
        NeonatalSeg.register_sample_data()
        (source,) = slicer_qt.SampleDataLogic.registered
        nodes = source["load"](source)
        self.assertEqual([node.GetName() for node in nodes], ["Synthetic newborn T1", "Synthetic newborn T2"])
        self.assertGreater(nodes[1].GetImageData().GetScalarRange()[1], 100)

    def test_self_test(self) -> None:
        import NeonatalSeg

        NeonatalSeg.NeonatalSegTest().runTest()

    @unittest.skipIf(slicer_scene.in_slicer(), "Slicer builds it by itself")
    def test_without_a_parent_setup_runs_in_the_constructor(self) -> None:
        import NeonatalSeg

        widget = NeonatalSeg.NeonatalSegWidget()
        self.assertIsNotNone(widget.logic)
        self.assertEqual(widget.controller.panel.state, State.NO_INPUT)
        widget.cleanup()

    def test_reload_drops_the_library(self) -> None:
        import NeonatalSeg

        with mock.patch.dict(sys.modules):
            widget = slicer_qt.make_widget(ScriptedEngine)
            widget.cleanup()
            with mock.patch.object(NeonatalSeg.ScriptedLoadableModuleWidget, "onReload") as reloaded:
                widget.onReload()
            reloaded.assert_called_once()
            self.assertFalse([name for name in sys.modules if name.startswith("NeonatalSegLib")])

    @unittest.skipIf(slicer_scene.in_slicer(), "Slicer's own button does it there")
    def test_a_module_that_is_open_is_open_after_a_reload(self) -> None:
        """Slicer sets the new widget up and does not enter it: devices and parameters would be missing."""
        import NeonatalSeg

        self.addCleanup(importlib.reload, NeonatalSeg)  # with the library that the other tests have imported
        with mock.patch.dict(sys.modules):
            engine = ScriptedEngine()
            widget = slicer_qt.make_widget(lambda: engine)
            widget.enter()
            asked = len(engine.asked("hello"))
            with mock.patch.object(ScriptedEngine, "close"):
                widget.onReload()
            made = slicer.modules.NeonatalSegWidget
            self.assertIsNot(made, widget)
            self.assertEqual(len(engine.asked("hello")), asked + 1)
            self.assertIsNotNone(made.controller.parameters)
            self.assertTrue(made.sections["Annotate"].timer.isActive())
            made.cleanup()


if __name__ == "__main__":
    unittest.main()
