"""The live plot of a fine-tuning: loss and held-out DSC against the step, as Slicer's plot, series and table nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import slicer
import vtk

ATTRIBUTE = "NeonatalSeg.chart"
STEP = "Step"
LOSS, DICE = "Loss", "Held-out DSC"
COLOURS = {LOSS: (0.80, 0.40, 0.10), DICE: (0.10, 0.40, 0.75)}

Point = tuple[float, "float | None", "float | None"]


class FineTuneChart:
    """One chart in a scene, filled anew by each fine-tuning; its nodes are made when the first point comes.

    The held-out DSC is measured seldom, so each of the two has a table of its own and no gaps. The nodes go with the
    scene and are not saved with it: what a model scores is kept with the model.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._title, self._steps = "", 0
        self._layout_before: int | None = None

    def start(self, title: str, steps: int = 0) -> None:
        """A new fine-tuning: its points replace those of the last one. ``steps``: how many it will have, if known."""
        self._title, self._steps = title, steps
        if (chart := self.chart) is not None:
            chart.SetTitle(title)
            for name in (LOSS, DICE):
                self._empty(self._series(name))

    def add(self, points: Iterable[Point]) -> None:
        """Append (step, loss, held-out DSC); what was not measured is None."""
        given = list(points)
        for name, column in ((LOSS, 1), (DICE, 2)):
            rows = [(float(point[0]), float(point[column])) for point in given if point[column] is not None]  # type: ignore[arg-type]
            if rows:
                self._append(self._series(name), rows)
        if given and self.chart is not None:
            self._fit_axes()

    def restart(self) -> None:
        """The points so far are no longer true: the same fine-tuning begins again, or its whole history is here."""
        self.start(self._title, self._steps)

    def expect(self, steps: int) -> None:
        """How many steps there will be: the axis is as long from the beginning."""
        self._steps = steps

    @property
    def chart(self) -> Any:
        """The chart node, None before the first point."""
        return self._find("vtkMRMLPlotChartNode", "chart")

    def points(self, name: str) -> list[tuple[float, float]]:
        """What is drawn for "Loss" or "Held-out DSC"."""
        series = self._find("vtkMRMLPlotSeriesNode", name)
        if series is None:
            return []
        table = series.GetTableNode().GetTable()
        x, y = table.GetColumn(0), table.GetColumn(1)
        return [(x.GetValue(row), y.GetValue(row)) for row in range(table.GetNumberOfRows())]

    def show(self) -> None:
        """Bring the chart into the views, in a layout with a plot; where there are no views, nothing happens."""
        layout, chart = self._layout(), self.chart
        if layout is None or chart is None:
            return
        before = layout.GetViewArrangement()
        slicer.modules.plots.logic().ShowChartInLayout(chart)
        if layout.GetViewArrangement() != before:
            self._layout_before = before

    def hide(self) -> None:
        """Go back to the layout before ``show``, unless the user has chosen yet another one."""
        layout, before, self._layout_before = self._layout(), self._layout_before, None
        if layout is None or before is None:
            return
        if layout.GetViewArrangement() == slicer.modules.plots.logic().GetLayoutWithPlot(before):
            layout.SetViewArrangement(before)

    def remove(self) -> None:
        """Take everything of the chart out of the scene."""
        self.hide()
        for kind in ("vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTableNode"):
            for name in ("chart", LOSS, DICE):
                if (node := self._find(kind, name)) is not None:
                    self._scene.RemoveNode(node)

    def _layout(self) -> Any:
        return self._scene.GetFirstNodeByClass("vtkMRMLLayoutNode") if hasattr(slicer.modules, "plots") else None

    def _find(self, kind: str, name: str) -> Any:
        for index in range(self._scene.GetNumberOfNodesByClass(kind)):
            node = self._scene.GetNthNodeByClass(index, kind)
            if node.GetAttribute(ATTRIBUTE) == name:
                return node
        return None

    def _make(self, kind: str, role: str, name: str) -> Any:
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(name))
        node.SetAttribute(ATTRIBUTE, role)
        node.SetSaveWithScene(False)
        return node

    def _series(self, name: str) -> Any:
        """The series node of that name; made, with its table and its chart, where it is not there (any more)."""
        chart = self.chart
        if chart is None:
            chart = self._make("vtkMRMLPlotChartNode", "chart", "Fine-tuning")
            chart.SetTitle(self._title)
            chart.SetXAxisTitle(STEP)
            chart.SetYAxisTitle("Loss (orange), held-out DSC (blue)")
            chart.SetLegendVisibility(False)  # it lay over the DSC
        series = self._find("vtkMRMLPlotSeriesNode", name)
        if series is None:
            series = self._make("vtkMRMLPlotSeriesNode", name, name)
            series.SetPlotType(series.PlotTypeScatter)
            series.SetColor(*COLOURS[name])
            series.SetLineWidth(2)
            series.SetMarkerStyle(series.MarkerStyleNone if name == LOSS else series.MarkerStyleCircle)
            series.SetXColumnName(STEP)
            series.SetYColumnName(name)
        if series.GetTableNode() is None:
            table = self._find("vtkMRMLTableNode", name) or self._table(name)
            series.SetAndObserveTableNodeID(table.GetID())
        return series

    def _table(self, name: str) -> Any:
        table = self._make("vtkMRMLTableNode", name, f"Fine-tuning {name}")
        for column in (STEP, name):
            values = vtk.vtkDoubleArray()
            values.SetName(column)
            table.GetTable().AddColumn(values)
        return table

    def _empty(self, series: Any) -> None:
        """Off the chart until there is a point again: a series without rows is reported as an error by VTK."""
        self.chart.RemovePlotSeriesNodeID(series.GetID())
        table = series.GetTableNode()
        table.GetTable().SetNumberOfRows(0)
        table.Modified()

    def _append(self, series: Any, rows: list[tuple[float, float]]) -> None:
        node = series.GetTableNode()
        table = node.GetTable()
        for row in rows:
            for column, value in enumerate(row):
                table.GetColumn(column).InsertNextValue(value)
        table.Modified()
        node.Modified()
        # A line needs two points: with one, VTK complains for every time it draws.
        if table.GetNumberOfRows() > 1 and not self.chart.HasPlotSeriesNodeID(series.GetID()):
            self.chart.AddAndObservePlotSeriesNodeID(series.GetID())

    def _fit_axes(self) -> None:
        """Slicer fits the axes once, to the first points, and leaves what follows outside: so they are set."""
        points = [*self.points(LOSS), *self.points(DICE)]
        chart, top = self.chart, max((value for _, value in points), default=1.0)
        chart.SetXAxisRangeAuto(False)
        chart.SetYAxisRangeAuto(False)
        chart.SetXAxisRange(0.0, float(max([self._steps, 1, *(step for step, _ in points)])))
        chart.SetYAxisRange(0.0, max(1.0, 1.05 * top))
