"""The panel holds at every width: nothing lies over anything else, no text is cut, whatever section is open.

Slicer's module panel gives a module its minimum height, not the height that wrapped text needs at its width. So do
these tests.
"""

from __future__ import annotations

import itertools
import os
import sys
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "slicer" / "stand_ins"))
import slicer
import slicer_scene
from scripted_engine import HELLO
from test_widget_annotate import AnnotateCase
from test_widget_screens import SCORES, STRATEGIES, VOLUMES

from NeonatalSegLib.models.scores import Scores
from NeonatalSegLib.models.versions import Version
from NeonatalSegLib.tissues import PHYSIOLOGICAL

WIDTHS = (320, 380, 440, 520, 600)
LEAVES = ("QLabel", "QPushButton", "QCheckBox", "QComboBox", "QLineEdit", "QProgressBar", "QTableWidget", "QSpinBox")
LEAVES += ("QDoubleSpinBox", "ctkSliderWidget", "qMRMLNodeComboBox", "qMRMLSegmentEditorWidget")
LONG = (
    "T1 and T2 look swapped: in a newborn's T2 the fluid is the brightest. Exchange the two inputs and segment again "
    "if that is so."
)


@unittest.skipIf(slicer_scene.in_slicer(), "widths are those of the stand-ins")
class LayoutTest(AnnotateCase):
    def settle(self, width: int) -> None:
        """As wide as this, as high as Slicer would make it."""
        parent = self.widget.parent
        for _ in range(8):
            parent.resize(width, max(parent.minimumSizeHint().height(), 60))
            slicer.app.processEvents()

    def leaves(self) -> list[tuple[str, Any]]:
        """Every visible control with its rectangle in the panel."""
        import qt

        found = []
        for widget in self.widget.parent.findChildren(qt.QWidget):
            if widget.isVisible() and widget.metaObject().className() in LEAVES and not self.inside_a_leaf(widget):
                corner = widget.mapTo(self.widget.parent, qt.QPoint(0, 0))
                found.append((widget.objectName, qt.QRect(corner, widget.size)))
        return found

    def wide(self, width: int) -> list[Any]:
        import qt

        found = [w for w in self.widget.parent.findChildren(qt.QWidget) if w.isVisible()]
        return sorted(found, key=lambda w: -w.minimumSizeHint().width())[:8]

    def inside_a_leaf(self, widget: Any) -> bool:
        parent = widget.parentWidget()
        while parent is not None and parent is not self.widget.parent:
            if parent.metaObject().className() in LEAVES:
                return True
            parent = parent.parentWidget()
        return False

    def check(self, state: str) -> None:
        for width in WIDTHS:
            with self.subTest(state=state, width=width):
                self.settle(width)
                wide = [(w.objectName, w.minimumSizeHint().width()) for w in self.wide(width)]
                self.assertLessEqual(self.widget.parent.minimumSizeHint().width(), width, f"too wide: {wide}")
                leaves = self.leaves()
                self.assertGreater(len(leaves), 2)
                for (one, first), (two, second) in itertools.combinations(leaves, 2):
                    self.assertFalse(first.intersects(second), f"{one} lies over {two}")
                self.no_text_is_cut()
                if folder := os.environ.get("NEONATALSEG_SCREENSHOTS_WIDTHS"):
                    self.widget.parent.grab().save(str(Path(folder) / f"{state}-{width}.png"))

    def no_text_is_cut(self) -> None:
        import qt

        for widget in self.widget.parent.findChildren(qt.QWidget):
            kind = widget.metaObject().className()
            if kind == "QComboBox" and widget.isVisible() and self.widget.parent.width >= 380:
                needed = widget.fontMetrics().horizontalAdvance(widget.currentText) + 28  # with frame and arrow
                self.assertGreaterEqual(widget.width, needed, f"{widget.objectName}: {widget.currentText}")
            if not widget.isVisible() or kind not in ("QPushButton", "QCheckBox", "QLabel", "QTableWidget"):
                continue
            if kind == "QTableWidget":
                columns = sum(widget.columnWidth(column) for column in range(widget.columnCount))
                self.assertLessEqual(columns, widget.viewport().width, f"a column of {widget.objectName} is outside")
                for row, column in itertools.product(range(widget.rowCount), range(widget.columnCount)):
                    if (item := widget.item(row, column)) is not None and not item.text().startswith("sub-"):
                        needed = widget.fontMetrics().horizontalAdvance(item.text())
                        self.assertGreaterEqual(
                            widget.columnWidth(column), needed, f"{widget.objectName} {item.text()}"
                        )
            elif kind == "QLabel" and widget.property("wordWrap"):
                self.assertGreaterEqual(widget.height, widget.heightForWidth(widget.width), widget.objectName)
            else:
                lines = widget.property("text").split("\n")
                needed = max(widget.fontMetrics().horizontalAdvance(line) for line in lines)
                self.assertGreaterEqual(widget.width, needed, f"{widget.objectName}: {widget.property('text')}")

    def fold(self, **sections: bool) -> None:
        """``collapsed`` by name, of all sections."""
        found = {**vars(self.widget.ui), **vars(self.ui), **vars(self.widget.sections["FineTune"].ui)}
        for name, widget in found.items():
            if name.endswith("Section"):
                widget.setProperty("collapsed", sections.get(name, True))

    def setUp(self) -> None:
        super().setUp()
        self.widget.parent.show()

    def test_the_section_that_segments(self) -> None:
        self.engine.hello.say("result", **HELLO)
        self.widget.controller.on_timer()
        panel = self.widget.controller.panel
        panel.set_inputs("sub-01_T1w", "sub-01_T2w")
        panel.set_model("A model whose description is as long as that of the model that is shipped, and a little more.")
        rows = [(tissue.name, VOLUMES[tissue.key]) for tissue in PHYSIOLOGICAL]
        panel.finished([*rows, ("Brain (tissue)", 353.2), ("Intracranial (brain and fluid)", 457.9)], [LONG], LONG)
        for open_ones in (
            (),
            ("scanSection",),
            ("resultSection",),
            ("scanSection", "advancedSection", "resultSection"),
        ):
            self.fold(**dict.fromkeys(open_ones, False))
            self.check("segment " + "+".join(open_ones))

    def test_before_a_study(self) -> None:
        self.fold(annotateSection=False)
        self.panel.set_recent([str(self.study)])
        self.panel.report(LONG, "warning")
        self.check("annotate new")

    def test_a_study_at_work(self) -> None:
        self.open()
        self.fold(annotateSection=False)
        self.panel.report(LONG, "warning")
        self.check("annotate")
        self.fold(annotateSection=False, moreSection=False)
        self.check("annotate more")

    def test_list_buttons_tissues_and_brush_fit_a_screen(self) -> None:
        """900 px, with an editor as high as Slicer's is with Paint (430 px), while a study is open."""
        self.editor.setMinimumHeight(430)
        self.open()
        self.settle(380)
        self.assertLessEqual(self.widget.parent.minimumSizeHint().height(), 900)

    def test_fine_tuning(self) -> None:
        section = self.widget.sections["FineTune"]
        self.fold(fineTuneSection=False)
        section.panel.set_study("preterm-2026", 11, 33)
        section.panel.set_strategies([section_strategy(entry) for entry in STRATEGIES])
        new = Version("neonatal-v2-ft001", "candidate", "full", "neonatal-v2", Scores.of(SCORES))
        section.panel.set_store("neonatal-v2", [new])
        section.panel.finished({**SCORES, "model": new.name, "held_out_slices": 2, "warnings": [LONG]})
        self.check("fine-tune")
        self.fold(fineTuneSection=False, tuneAdvancedSection=False)
        self.check("fine-tune advanced")


def section_strategy(entry: dict[str, Any]) -> Any:
    from NeonatalSegLib.panel.finetune_state import Strategy

    return Strategy(entry["name"], entry["text"], entry["trained"], entry["total"], entry["percent"])


if __name__ == "__main__":
    unittest.main()
