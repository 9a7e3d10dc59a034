"""What is chosen before a segmentation, and its result as it is looked at, corrected and exported."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_qt
import slicer_scene
from scripted_engine import HELLO
from stand_in_editor import Brush
from test_mrml_annotation import add_slice_view
from widget_case import WidgetCase

from NeonatalSegLib.mrml.annotate.study_volumes import remember_file
from NeonatalSegLib.mrml.scene import segments
from NeonatalSegLib.mrml.scene.scene_result import EDITED, Judgement, judgement_of
from NeonatalSegLib.mrml.shared import drawing
from NeonatalSegLib.panel.segment_state import State
from NeonatalSegLib.tissues import PHYSIOLOGICAL


class ChoiceTest(WidgetCase):
    def test_devices_and_models(self) -> None:
        self.load_scan()
        self.engine.hello.say("result", **HELLO)
        self.spin(lambda: bool(self.panel.devices))
        self.assertEqual(self.text("deviceLabel"), "GPU: Made Up 9000")
        self.assertEqual(self.text("modelLabel"), "The first model.")
        self.ui.modelSelector.setCurrentIndex(self.ui.modelSelector.findData("two"))
        self.ui.deviceSelector.setCurrentIndex(self.ui.deviceSelector.findData("cpu"))
        self.assertEqual(self.text("modelLabel"), "The second model.")
        self.assertTrue(self.text("deviceLabel").startswith("CPU (2 threads)"))
        self.ui.n4Box.setChecked(True)
        fields = self.run_to_request().fields
        self.assertEqual((fields["model"], fields["device"]), ("two", "cpu"))
        self.assertEqual(fields["options"]["n4"], True)
        self.assertEqual(fields["options"]["flips"], False)

    def test_compute_process_that_does_not_start(self) -> None:
        self.load_scan()
        self.engine.hello.say("error", kind="user", message="There is no PythonSlicer.")
        self.spin(lambda: self.text("deviceLabel") == "There is no PythonSlicer.")
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def test_opacity_and_3d(self) -> None:
        self.load_scan()
        self.run_to_result()
        node = self.widget.logic.getParameterNode().segmentation
        self.ui.opacitySlider.value = 0.2
        self.assertAlmostEqual(node.GetDisplayNode().GetOpacity2DFill(), 0.2)
        self.ui.show3DBox.setChecked(True)
        self.assertTrue(segments.surfaces_shown(node))
        self.ui.show3DBox.setChecked(False)
        self.assertFalse(segments.surfaces_shown(node))

    def test_uncertainty(self) -> None:
        self.load_scan()
        self.ui.uncertaintyBox.setChecked(True)
        self.assertTrue(self.run_to_result(uncertainty=True).fields["options"]["uncertainty"])
        node = self.widget.logic.getParameterNode().uncertaintyMap
        self.assertEqual(node.GetName(), "sub-01_T2w uncertainty")


class ExportTest(WidgetCase):
    def test_all_three(self) -> None:
        self.load_scan()
        self.run_to_result()
        with tempfile.TemporaryDirectory() as folder:
            self.widget.controller.choose_folder = lambda title, start: folder
            self.ui.exportNiftiButton.click()
            self.assertIn("_dseg.nii.gz", self.text("messageLabel"))
            self.ui.exportSegButton.click()
            self.ui.exportStlButton.click()
            found = {path.name for path in Path(folder).iterdir()}
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / "sub-01_T2w_tissues_dseg.nii.gz")))
        self.assertIn("sub-01_T2w_tissues_volumes.tsv", found)
        self.assertIn("sub-01_T2w_tissues.seg.nrrd", found)
        self.assertEqual(len([name for name in found if name.endswith(".stl")]), 8)
        self.assertEqual(sorted(np.unique(labels)), list(range(10)))

    def test_a_verdict_is_told_with_the_files_and_in_them(self) -> None:
        self.load_scan()
        finding = {"Level": "fail", "Kind": "order", "Text": "The labels are scattered."}
        self.run_to_result(verdict="fail", findings=[finding], warnings=[finding["Text"]])
        node = self.widget.controller.parameters.segmentation
        with tempfile.TemporaryDirectory() as folder:
            self.widget.controller.choose_folder = lambda title, start: folder
            self.ui.exportNiftiButton.click()
            side_car = Path(folder) / "sub-01_T2w_tissues_dseg.json"
            facts = json.loads(side_car.read_text(encoding="utf-8"))
            node.SetAttribute(EDITED, "1")
            self.widget.controller.confirm = lambda text: True  # that files are replaced
            self.ui.exportNiftiButton.click()
            edited = json.loads(side_car.read_text(encoding="utf-8"))
        self.assertIn("Do not use this result", self.text("messageLabel"))
        self.assertIn("Written: ", self.text("messageLabel").splitlines()[-1])
        self.assertEqual(facts["Plausibility"], {"Verdict": "fail", "Findings": [finding]})
        self.assertEqual(facts["Warnings"], [finding["Text"]])
        self.assertEqual(facts["Model"], {"Name": "one", "SHA256": "1" * 64})
        self.assertNotIn("Edited", facts)
        self.assertEqual(edited, {**facts, "Edited": True})

    def test_files_that_are_there_are_not_replaced_without_a_question(self) -> None:
        self.load_scan()
        self.run_to_result()
        buttons = (self.ui.exportNiftiButton, self.ui.exportSegButton, self.ui.exportStlButton)
        asked: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            self.widget.controller.choose_folder = lambda title, start: folder
            for button in buttons:
                button.click()
            files = list(Path(folder).iterdir())
            for path in files:
                path.write_text("mine", encoding="utf-8")
            self.widget.controller.confirm = lambda text: bool(asked.append(text))  # the user says no
            for button in buttons:
                button.click()
            self.assertEqual({path.read_bytes() for path in files}, {b"mine"})
            self.assertEqual(sum(path.name in "\n".join(asked).splitlines() for path in files), len(files))
            self.assertEqual([folder in text for text in asked], [True] * 3)
            self.widget.controller.confirm = lambda text: True
            for button in buttons:
                button.click()
            self.assertNotIn(b"mine", {path.read_bytes() for path in files})

    def test_no_folder_chosen(self) -> None:
        self.load_scan()
        self.run_to_result()
        before = self.text("messageLabel")
        self.widget.controller.choose_folder = lambda title, start: ""
        self.ui.exportNiftiButton.click()
        self.assertEqual(self.text("messageLabel"), before)

    def test_folder_that_cannot_be_written(self) -> None:
        self.load_scan()
        self.run_to_result()
        with tempfile.TemporaryDirectory() as folder:
            blocked = Path(folder) / "a file"
            blocked.write_text("x", encoding="utf-8")
            self.widget.controller.choose_folder = lambda title, start: str(blocked)
            self.ui.exportSegButton.click()
        self.assertEqual(self.panel.state, State.ERROR)
        self.assertIn("a file", self.text("messageLabel"))


class JudgementTest(WidgetCase):
    def test_a_judgement_that_is_not_ours_is_passed_over(self) -> None:
        self.load_scan()
        self.run_to_result(verdict="fail")
        node = self.widget.controller.parameters.segmentation
        for text in ("[1]", "{", '{"findings": 3}', '{"warnings": [], "findings": ["x"]}'):
            node.SetAttribute("NeonatalSeg.judgement", text)
            self.assertEqual(judgement_of(node), Judgement(), text)


class ResultTest(WidgetCase):
    """The result as it is looked at and corrected."""

    def result(self) -> Any:
        self.load_scan()
        self.run_to_result()
        return self.widget.controller.parameters.segmentation

    def stroke(self, node: Any, key: str) -> None:
        """All of the scan becomes one tissue, through Slicer's own editing logic."""
        volume = self.widget.controller.parameters.t2
        Brush(node, volume).paint(key, np.ones(volume.GetImageData().GetDimensions()[::-1], bool))

    def test_volumes_follow_an_edit(self) -> None:
        node = self.result()
        self.stroke(node, "csf")
        self.spin(lambda: self.ui.volumesTable.item(1, 1).text() == "0.0")
        shown = float(self.ui.volumesTable.item(0, 1).text())
        with tempfile.TemporaryDirectory() as folder:
            self.widget.controller.choose_folder = lambda title, start: folder
            self.ui.exportNiftiButton.click()
            rows = next(Path(folder).glob("*_volumes.tsv")).read_text(encoding="utf-8").splitlines()
        exported = next(float(row.split("\t")[-1]) for row in rows if row.split("\t")[0] == "1")
        self.assertAlmostEqual(shown, exported, places=1)
        table = self.widget.controller.parameters.volumes.GetTable()
        self.assertAlmostEqual(table.GetValue(0, 1).ToDouble(), exported, places=1)

    def test_an_edit_made_in_another_module_is_counted_on_coming_back(self) -> None:
        node = self.result()
        self.widget.exit()
        before = self.ui.volumesTable.item(1, 1).text()
        self.stroke(node, "csf")
        self.assertEqual(self.ui.volumesTable.item(1, 1).text(), before)
        self.widget.enter()
        self.assertEqual(self.ui.volumesTable.item(1, 1).text(), "0.0")

    def test_a_corrected_result_is_not_replaced_without_a_question(self) -> None:
        node = self.result()
        self.stroke(node, "csf")
        asked: list[str] = []
        self.widget.controller.confirm = lambda text: bool(asked.append(text))  # the user says no
        self.ui.segmentButton.click()
        self.assertEqual((len(asked), self.panel.busy), (1, False))
        self.assertIn("corrected by hand", asked[0])
        self.assertTrue(self.scene.IsNodePresent(node))
        self.widget.controller.confirm = lambda text: True
        self.run_to_result()
        self.assertFalse(self.scene.IsNodePresent(node))
        self.run_to_result()  # not corrected: no question
        self.assertEqual(self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 1)

    def test_correct_opens_the_editor_on_this_result(self) -> None:
        self.assertFalse(self.ui.correctButton.isEnabled())
        node = self.result()
        opened: list[Any] = []
        self.widget.controller.open_editor = lambda *nodes: opened.extend(nodes)
        self.ui.correctButton.click()
        self.assertEqual(opened, [node, self.widget.controller.parameters.t2])

    def test_a_row_is_a_tissue(self) -> None:
        """A click turns the views to it, a tick hides it; its colour is beside its name, the volume to the right."""
        node = self.result()
        red = add_slice_view(self.scene, "axial")
        self.ui.volumesTable.selectRow(7)
        self.ui.volumesTable.cellClicked.emit(7, 0)
        self.assertAlmostEqual(red.GetSliceOffset(), node.GetSegmentCenterRAS("hippocampus")[2])
        item = self.ui.volumesTable.item(2, 0)
        self.assertTrue(drawing.is_ticked(item))
        drawing.tick(item, False)
        self.assertFalse(node.GetDisplayNode().GetSegmentVisibility("wm"))
        self.assertTrue(node.GetDisplayNode().GetSegmentVisibility("csf"))
        import qt

        colour = self.ui.volumesTable.item(0, 0).data(qt.Qt.DecorationRole)
        self.assertEqual((colour.red(), colour.green(), colour.blue()), PHYSIOLOGICAL[0].colour)
        right = self.ui.volumesTable.item(0, 1).textAlignment()
        self.assertTrue(getattr(right, "value", right) & 2, "decimals below each other")

    @unittest.skipIf(slicer_scene.in_slicer(), "its 3D views do not count")
    def test_3d_is_centred(self) -> None:
        slicer.app.layout = slicer_qt.LayoutManager()
        self.addCleanup(setattr, slicer.app, "layout", None)
        self.result()
        self.ui.show3DBox.setChecked(True)
        self.assertEqual(slicer.app.layout.solid.centred, 1)

    def test_the_message_has_one_line_and_the_verdict_stands_first(self) -> None:
        self.load_scan()
        self.run_to_result(age_weeks=40.2)
        self.assertEqual(len(self.text("messageLabel").splitlines()), 1)
        self.run_to_result(verdict="fail", warnings=["Brain volume 640 mL."])
        lines = self.text("messageLabel").splitlines()
        self.assertTrue(lines[0].startswith("Error: Do not use this result"))
        self.assertEqual(lines[1], "Brain volume 640 mL.")

    def test_export_begins_beside_the_scan(self) -> None:
        node = self.result()
        starts: list[str] = []
        self.widget.controller.choose_folder = lambda title, start: starts.append(start) or ""
        self.ui.exportNiftiButton.click()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sub-01_T2w.nii.gz"
            file.write_bytes(b"")
            remember_file(self.widget.controller.parameters.t2, file)
            self.ui.exportNiftiButton.click()
        self.assertEqual(starts, ["", folder])
        self.assertTrue(self.scene.IsNodePresent(node))


if __name__ == "__main__":
    unittest.main()
