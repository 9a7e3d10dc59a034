"""Figures of the panel with the real compute process: stages of each run, and how long the UI stood still.

    python Testing/slicer/figures/measure_panel.py --t1 T1.nii.gz --t2 T2.nii.gz [--model NAME_OR_FOLDER] [--runs 3]

Runs on the slicer-core wheel with PySide6 (offscreen). The event loop holds a timer of 5 ms; the longest pause between
two of its ticks is the longest time that a click would have had to wait.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stand_ins"))
import slicer_qt
import slicer_scene


def main() -> None:
    """Read the arguments, run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t1", type=Path)
    parser.add_argument("--t2", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    scene = slicer_scene.new_scene()
    slicer_qt.install()
    import qt
    from PySide6 import QtCore

    from NeonatalSegLib.mrml.scene.volumes import volume_from_image
    from NeonatalSegLib.panel.segment_view import view_of
    from NeonatalSegLib.scans.read import read_image

    for name, path in (("T1", given.t1), ("T2", given.t2)):
        if path:
            volume_from_image(read_image(path).image, name, scene)
    widget = slicer_qt.make_widget()
    panel, ticks = widget.controller.panel, [time.perf_counter()]
    timer = qt.QTimer()
    timer.setInterval(5)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    timer.start()

    def spin(until: Callable[[], Any]) -> float:
        ticks[:] = [time.perf_counter()]
        while not until():
            # Waiting, as an application does: a loop that spins takes a core from the network.
            QtCore.QCoreApplication.processEvents(QtCore.QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
        return max((b - a for a, b in itertools.pairwise(ticks)), default=0.0)

    began = time.perf_counter()
    widget.enter()
    longest = spin(lambda: panel.devices)
    ready = time.perf_counter() - began
    print(f"ready after {ready:.1f} s, longest pause {1000 * longest:.0f} ms; {view_of(panel).device}")
    widget.controller.parameters.model = given.model
    outcomes: list[Any] = []
    widget.logic.runner.finished.connect(outcomes.append)
    for number in range(1, given.runs + 1):
        widget.ui.segmentButton.click()
        longest = spin(lambda: not panel.busy)
        if len(outcomes) < number:
            raise SystemExit(view_of(panel).message)
        stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in outcomes[-1].times_s.items())
        print(f"run {number}, seconds: {stages}; longest pause {1000 * longest:.0f} ms")
    widget.ui.segmentButton.click()
    spin(lambda: view_of(panel).percent)
    began = time.perf_counter()
    widget.ui.segmentButton.click()
    spin(lambda: not panel.busy)
    print(f"cancel to idle: {time.perf_counter() - began:.2f} s")
    widget.cleanup()


if __name__ == "__main__":
    main()
