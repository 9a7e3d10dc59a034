"""Where one slice is worked on: its scan and segments in the views, the Segment Editor, and eyes on both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.util import VTKObservationMixin

from NeonatalSegLib.annotation.plan import PlannedSlice
from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.mrml.annotate.annotation_view import AnnotationView
from NeonatalSegLib.mrml.annotate.slice_editor import SliceEditor
from NeonatalSegLib.mrml.annotate.study_volumes import scan_volumes
from NeonatalSegLib.mrml.annotate.window import SliceWindow

FITS = 10  # ticks of the timer


class SliceWorkspace(VTKObservationMixin):
    """Shows slices of a study in the scene and lets them be edited, nothing else.

    Args:
        widget: the qMRMLSegmentEditorWidget. worked: called when the user does something in the views or the segments.

    Attributes:
        shown: the scan's segments, None where no scan is there.
    """

    def __init__(self, widget: Any, worked: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.editor = SliceEditor(widget)
        self.shown: AnnotationView | None = None
        self.window = SliceWindow()
        self._axis = ""
        self._fits_left = 0  # a view that has just come into the layout gets its size from the event loop
        self._worked = worked
        self._entered = False

    def enter(self) -> None:
        """The module is opened."""
        self._entered = True
        self.editor.attach(slicer.mrmlScene)
        self.editor.enter()
        if self.shown is not None and self._axis and not self.window.taken:
            self._take_window()
        self._watch()

    def exit(self) -> None:
        """The module is left: no effect and no eye stays, and the views are as they were before the study."""
        self._entered = False
        self._give_window_back()
        self.editor.exit()
        self._watch()

    def follow_scene(self) -> None:
        """Another scene is there."""
        if self._entered:
            self.enter()

    def take_scan(self, project: AnnotationSession, name: str) -> dict[str, Any]:
        """Bring a scan of the study into the views, if another one is there; its volume nodes "t1" and "t2" then.

        Raises:
            NeonatalSegError: a file is missing, or the scan is not the one for which the plan was made.
        """
        if self.shown is not None and self.shown.scan == name:
            return {}
        scan = next(scan for scan in project.scans if scan.name == name)
        nodes = scan_volumes(scan, project.plan, slicer.mrmlScene)
        self._let_go()
        self.shown = AnnotationView(nodes.get("t2") or nodes["t1"], project.plan.grids[name], name)
        self.shown.show_volumes(nodes["t1"] if len(nodes) == 2 else None)
        self.editor.attach(slicer.mrmlScene)
        self._watch()
        return nodes

    def show(self, planned: PlannedSlice, labels: np.ndarray, *, editable: bool, within: str) -> None:
        """Show a slice with these labels, in its plane; ``within`` as ``AnnotationView.allow``."""
        assert self.shown is not None
        self.shown.show(planned.axis, planned.index, labels)
        self._axis = planned.axis
        if self._entered:  # or ``enter`` takes it: until then it is another module's
            self._take_window()
        self.let_edit(editable, within)

    def fill(self, planned: PlannedSlice, labels: np.ndarray, within: str) -> None:
        """Replace the labels of the slice that is being edited; the editor's Undo takes it back."""
        assert self.shown is not None
        self.editor.save_state()
        self.shown.show(planned.axis, planned.index, labels)
        self.shown.allow(within)

    def let_edit(self, editable: bool, within: str = "") -> None:
        """Let the slice that is shown be edited, or not; what was done before cannot be undone any more."""
        if self.shown is None:
            return
        if editable:
            self.shown.allow(within)
        else:
            self.shown.forbid()
        self.editor.edit(self.shown, editable)

    def keep(self, caller: Any = None, event: Any = None) -> None:
        """Put back what limits the edits, whoever has changed it; nothing comes to be drawn over the slice."""
        if self.shown is not None and self.editor.node is not None:
            self.shown.keep(self.editor.node)
            if self.window.taken:
                self.window.hide_others(self.shown.node)

    def fit(self) -> None:
        """From a timer: fit a view that was new in the layout once it has its size."""
        if self._fits_left and self.shown is not None:
            self._fits_left -= 1
            self.shown.fit_view()

    @property
    def gone(self) -> bool:
        """True where a node of what is shown is no longer in the scene; the labels can still be read."""
        scene = slicer.mrmlScene
        return self.shown is not None and not all(
            scene.IsNodePresent(node) for node in (self.shown.node, self.shown.reference)
        )

    def forget(self) -> None:
        """Show nothing any more: the segments stay in the scene, hidden and without the mask, all else comes back."""
        self._give_window_back()
        self._let_go()
        self._watch()

    def _take_window(self) -> None:
        assert self.shown is not None
        if self.window.take(self.shown.node, self._axis):
            self._fits_left = FITS
        self.shown.turn_view()

    def _give_window_back(self) -> None:
        if self.shown is not None:
            self.window.give_back(self.shown.node)

    def _let_go(self) -> None:
        """Of the scan that is shown; the window stays."""
        self.removeObservers()
        shown, self.shown = self.shown, None
        if shown is not None:
            shown.remove_mask()
            if shown.node.GetDisplayNode() is not None:
                shown.node.GetDisplayNode().SetVisibility(False)

    def release(self) -> None:
        """The scene is about to lose its nodes."""
        self.forget()
        self.removeObservers()
        self.editor.release()

    def close(self) -> None:
        """The module is closed."""
        self.release()
        self.editor.close()

    def _watch(self) -> None:
        """Moving the mouse or the slices in the views, and editing, is work; what limits the edits is kept."""
        self.removeObservers()
        if not self._entered:
            return
        scene, modified = slicer.mrmlScene, vtk.vtkCommand.ModifiedEvent
        for node in _nodes(scene, "vtkMRMLSliceNode"):
            self.addObserver(node, modified, self._on_worked)
        for node in _nodes(scene, "vtkMRMLCrosshairNode"):
            self.addObserver(node, slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent, self._on_worked)
        if self.shown is None:
            return
        edited = slicer.vtkSegmentation.SourceRepresentationModified
        self.addObserver(self.shown.node.GetSegmentation(), edited, self._on_worked)
        self.addObserver(self.shown.node.GetDisplayNode(), modified, self.keep)
        self.addObserver(self.editor.node, modified, self.keep)

    def _on_worked(self, caller: Any = None, event: Any = None) -> None:
        self._worked()


def _nodes(scene: Any, kind: str) -> list[Any]:
    return [scene.GetNthNodeByClass(number, kind) for number in range(scene.GetNumberOfNodesByClass(kind))]
