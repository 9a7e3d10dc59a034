"""The live plot of a fine-tuning, in a real scene."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer_scene

from NeonatalSegLib.mrml.finetune.charts import DICE, LOSS, FineTuneChart

KINDS = ("vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTableNode")


class ChartTest(unittest.TestCase):
    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        self.before = self.counts()
        self.chart = FineTuneChart(self.scene)
        self.addCleanup(self.chart.remove)

    def counts(self) -> list[int]:
        return [self.scene.GetNumberOfNodesByClass(kind) for kind in KINDS]

    def made(self) -> list[int]:
        return [now - before for now, before in zip(self.counts(), self.before, strict=True)]

    def series_of_chart(self) -> list[str]:
        chart = self.chart.chart
        return [chart.GetNthPlotSeriesNode(i).GetYColumnName() for i in range(chart.GetNumberOfPlotSeriesNodes())]

    def test_no_nodes_before_the_first_point(self) -> None:
        self.chart.start("first")
        self.assertEqual(self.made(), [0, 0, 0])
        self.assertIsNone(self.chart.chart)

    def test_points_go_into_a_table_each(self) -> None:
        self.chart.start("first")
        self.chart.add([(0, 0.9, 0.5), (10, 0.7, None)])
        self.chart.add([(20, 0.6, None), (30, None, 0.625)])
        self.assertEqual(self.chart.points(LOSS), [(0.0, 0.9), (10.0, 0.7), (20.0, 0.6)])
        self.assertEqual(self.chart.points(DICE), [(0.0, 0.5), (30.0, 0.625)])
        self.assertEqual(self.made(), [1, 2, 2])
        chart = self.chart.chart
        self.assertEqual((chart.GetTitle(), chart.GetXAxisTitle()), ("first", "Step"))
        series = chart.GetNthPlotSeriesNode(0)
        self.assertEqual((series.GetXColumnName(), series.GetYColumnName()), ("Step", "Loss"))
        self.assertEqual(series.GetTableNode().GetNumberOfRows(), 3)
        self.assertEqual(self.series_of_chart(), [LOSS, DICE])

    def test_a_series_of_less_than_two_points_is_not_drawn(self) -> None:
        self.chart.start("first")
        self.chart.add([(0, 0.9, 0.5)])
        self.assertEqual(self.series_of_chart(), [])  # "Attempted to paint a line with <2 points"
        self.chart.add([(1, 0.8, None)])
        self.assertEqual(self.series_of_chart(), [LOSS])

    def ranges(self) -> tuple[list[float], list[float]]:
        chart = self.chart.chart
        self.assertFalse(chart.GetXAxisRangeAuto() or chart.GetYAxisRangeAuto())
        return list(chart.GetXAxisRange()), list(chart.GetYAxisRange())

    def test_the_axes_follow_the_points(self) -> None:
        """Slicer fits them once: the plot stood still at the first steps."""
        self.chart.start("first")
        self.chart.add([(1, 2.0, None)])
        self.assertEqual(self.ranges(), ([0.0, 1.0], [0.0, 2.1]))
        self.chart.add([(step, 1.0, None) for step in range(2, 41)])
        self.assertEqual(self.ranges()[0], [0.0, 40.0])

    def test_the_axis_is_as_long_as_the_run_will_be(self) -> None:
        self.chart.start("first")
        self.chart.expect(200)
        self.chart.add([(1, 0.9, None), (2, 0.8, 0.7)])
        self.assertEqual(self.ranges(), ([0.0, 200.0], [0.0, 1.0]))

    def test_no_legend_lies_over_the_curves(self) -> None:
        self.chart.start("first")
        self.chart.add([(1, 0.9, None), (2, 0.8, 0.7)])
        self.assertFalse(self.chart.chart.GetLegendVisibility())
        self.assertIn("blue", self.chart.chart.GetYAxisTitle())

    def test_the_next_fine_tuning_uses_the_same_nodes(self) -> None:
        self.chart.start("first")
        self.chart.add([(0, 0.9, 0.5)])
        node, made = self.chart.chart, self.made()
        self.chart.start("second")
        self.assertEqual((self.chart.points(LOSS), self.series_of_chart()), ([], []))
        self.chart.add([(0, 0.8, None)])
        self.assertIs(self.chart.chart, node)
        self.assertEqual((self.made(), node.GetTitle()), (made, "second"))
        self.assertEqual((self.chart.points(LOSS), self.chart.points(DICE)), ([(0.0, 0.8)], []))

    def test_observers_hear_of_new_points(self) -> None:
        self.chart.start("first")
        self.chart.add([(0, 0.9, None), (0.5, 0.9, None)])
        heard: list[str] = []
        table = self.chart.chart.GetNthPlotSeriesNode(0).GetTableNode()
        tag = table.AddObserver("ModifiedEvent", lambda *_: heard.append("modified"))
        self.chart.add([(1, 0.8, None), (2, 0.7, None)])
        table.RemoveObserver(tag)
        self.assertTrue(heard)

    def test_nodes_that_a_user_deleted_come_back(self) -> None:
        for kind in KINDS:
            self.chart.start("first")
            self.chart.add([(0, 0.9, 0.5)])
            node = self.scene.GetNthNodeByClass(self.scene.GetNumberOfNodesByClass(kind) - 1, kind)
            self.scene.RemoveNode(node)
            self.chart.add([(1, 0.8, 0.6)])
            self.chart.add([(2, 0.7, 0.7)])
            self.assertEqual(self.chart.points(DICE)[-1], (2.0, 0.7), kind)
            self.assertEqual(self.series_of_chart().count(DICE), 1, kind)
            self.chart.remove()
            self.assertEqual(self.made(), [0, 0, 0], kind)

    def test_the_scene_takes_the_chart_with_it_and_does_not_save_it(self) -> None:
        self.chart.start("first")
        self.chart.add([(0, 0.9, 0.5)])
        self.assertFalse(self.chart.chart.GetSaveWithScene())
        self.scene.Clear(False)
        self.assertIsNone(self.chart.chart)
        self.chart.start("second")
        self.chart.add([(0, 0.8, None)])
        self.assertEqual(self.chart.points(LOSS), [(0.0, 0.8)])


@unittest.skipIf(slicer_scene.in_slicer(), "would change the tester's layout")
class LayoutTest(unittest.TestCase):
    """With the real layout node and plots logic; the views themselves are Slicer's."""

    def setUp(self) -> None:
        self.scene = slicer_scene.new_scene()
        self.layout: Any = self.scene.AddNewNodeByClass("vtkMRMLLayoutNode")
        for number in (self.layout.SlicerLayoutFourUpView, self.layout.SlicerLayoutFourUpPlotView,
                       self.layout.SlicerLayoutOneUpRedSliceView):  # fmt: skip
            self.layout.AddLayoutDescription(number, "<layout/>")
        self.layout.SetViewArrangement(self.layout.SlicerLayoutFourUpView)
        self.chart = FineTuneChart(self.scene)
        self.chart.start("first")
        self.chart.add([(0, 0.9, 0.5)])

    def test_shown_beside_the_slices_and_back(self) -> None:
        import slicer

        self.chart.show()
        self.assertEqual(self.layout.GetViewArrangement(), self.layout.SlicerLayoutFourUpPlotView)
        selection = slicer.modules.plots.logic().GetMRMLApplicationLogic().GetSelectionNode()
        self.assertEqual(selection.GetActivePlotChartID(), self.chart.chart.GetID())
        self.chart.show()  # again: the layout to go back to is still the first one
        self.chart.hide()
        self.assertEqual(self.layout.GetViewArrangement(), self.layout.SlicerLayoutFourUpView)

    def test_a_layout_that_the_user_chose_since_stays(self) -> None:
        self.chart.show()
        self.layout.SetViewArrangement(self.layout.SlicerLayoutOneUpRedSliceView)
        self.chart.hide()
        self.assertEqual(self.layout.GetViewArrangement(), self.layout.SlicerLayoutOneUpRedSliceView)

    def test_removed_with_everything(self) -> None:
        self.chart.show()
        self.chart.remove()
        self.assertEqual(self.layout.GetViewArrangement(), self.layout.SlicerLayoutFourUpView)
        self.assertIsNone(self.chart.chart)


if __name__ == "__main__":
    unittest.main()
