"""Slicer's Segment Editor inside the Annotate section: set up in the order that it needs, limited to what is allowed.

Nothing of Qt is imported; the widget comes from the .ui file.
"""

from __future__ import annotations

from typing import Any

import slicer

from NeonatalSegLib.mrml.annotate.annotation_view import MASK_ID, AnnotationView, limit

# Slicer's Smoothing filters in 3D and finds nothing on either side of the one slice: it would wipe the tissue out. The
# section has a button of its own for it.
EFFECTS = ["Paint", "Erase", "Draw", "Threshold", "Islands"]
SMALLEST_ISLAND = 10  # voxels; Slicer's 1000 are meant for volumes and remove a hippocampus from a slice
NODE_TAG = "NeonatalSegAnnotate"
UNDO_STATES = 20
BRUSH_MM, BRUSH_MM_LEAST, BRUSH_MM_MOST = 3.0, 0.5, 40.0
BRUSH_STEP = 1.25
PROPERTIES = {
    "segmentationNodeSelectorVisible": False,
    "sourceVolumeNodeSelectorVisible": False,
    "switchToSegmentationsButtonVisible": False,
    "unorderedEffectsVisible": False,
    "addRemoveSegmentButtonsVisible": False,
    "show3DButtonVisible": False,
    "maskingSectionVisible": False,
    "maximumNumberOfUndoStates": UNDO_STATES,
}


class SliceEditor:
    """The embedded qMRMLSegmentEditorWidget with an editor node of its own.

    Attributes:
        node: the vtkMRMLSegmentEditorNode, None while no scene is there.
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self.node: Any = None
        self._entered = False
        self._effect = "Paint"  # for the next slice that can be edited; "" for none
        self._editable = False

    def attach(self, scene: Any) -> None:
        """Take the editor node of a scene, made where there is none. Its masks are set before any effect can run."""
        node = scene.GetSingletonNode(NODE_TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            made = scene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            made.SetSingletonTag(NODE_TAG)
            made.SetSaveWithScene(False)
            node = scene.AddNode(made)
            made.UnRegister(None)
        if node is self.node:
            return
        self.node = node
        limit(node)
        self.widget.setMRMLSegmentEditorNode(node)
        self.widget.setMRMLScene(scene)
        self.widget.setEffectNameOrder(EFFECTS)
        for name, value in PROPERTIES.items():
            self.widget.setProperty(name, value)
        limit(node)  # the widget gives a new node its own defaults

    def edit(self, view: AnnotationView, editable: bool) -> None:
        """Show the slice of ``view``; what was done to the slice before it cannot be undone any more."""
        self._note_effect()
        self._editable = editable
        self.widget.setSegmentationNode(view.node)
        self.widget.setSourceVolumeNode(view.reference)
        self.widget.setProperty("undoEnabled", True)  # forgets the states that were saved
        self.widget.setProperty("readOnly", not editable)
        for table in slicer.util.findChildren(self.widget, name="SegmentsTableView"):
            table.setHideSegments([MASK_ID])
            table.setVisibilityColumnVisible(False)  # hidden tissues would not be replaced by painting
        view.keep(self.node)
        if editable:  # read-only, the widget has put its effect away, and takes none up again by itself
            self._take_effect_up()

    def _note_effect(self) -> None:
        if self._editable and self._entered:
            active = self.widget.activeEffect()
            self._effect = str(active.name) if active is not None else ""

    def _take_effect_up(self) -> None:
        if self._entered and self._effect and slicer.app.layoutManager() is not None:
            self.widget.setActiveEffectByName(self._effect)

    def toggle_erase(self) -> None:
        """Paint becomes Erase, anything else Paint."""
        if self._editable and slicer.app.layoutManager() is not None:
            active = self.widget.activeEffect()
            self.widget.setActiveEffectByName("Erase" if active is not None and active.name == "Paint" else "Paint")

    def select(self, segment: str) -> None:
        """The tissue that is painted from now on, by its key."""
        if self.node is not None:
            self.node.SetSelectedSegmentID(segment)

    @property
    def selected(self) -> str:
        """The tissue's key, "" where none is selected."""
        return str(self.node.GetSelectedSegmentID() or "") if self.node is not None else ""

    def scale_brush(self, factor: float) -> None:
        """A larger or smaller brush."""
        paint = self.widget.effectByName("Paint")
        if paint is not None:
            now = float(paint.doubleParameter("BrushAbsoluteDiameter")) or BRUSH_MM
            paint.setCommonParameter("BrushAbsoluteDiameter", min(max(now * factor, BRUSH_MM_LEAST), BRUSH_MM_MOST))

    def undo(self) -> None:
        """Take the last change back."""
        self.widget.undo()

    def redo(self) -> None:
        """Make the last change again."""
        self.widget.redo()

    def start_effects(self) -> None:
        """Brushes that touch one slice; not without a main window, where effects end the application."""
        if slicer.app.layoutManager() is None:
            return
        paint = self.widget.effectByName("Paint")
        if paint is not None:
            paint.setCommonParameter("BrushSphere", 0)
            paint.setCommonParameter("EditIn3DViews", 0)
            paint.setCommonParameter("BrushDiameterIsRelative", 0)  # the same in every zoom
            paint.setCommonParameter("BrushAbsoluteDiameter", BRUSH_MM)
        islands = self.widget.effectByName("Islands")
        if islands is not None:
            islands.setParameter("MinimumSize", str(SMALLEST_ISLAND))

    def save_state(self) -> None:
        """Before a change of our own that the editor's Undo is to take back."""
        self.widget.saveStateForUndo()

    def enter(self) -> None:
        """The module is opened."""
        if not self._entered and self.node is not None:
            self.widget.setupViewObservations()
            # Its own keys stay out: 1-9 choose effects there, and of two shortcuts on one key none works.
            self._entered = True
            self.start_effects()
            if self._editable:
                self._take_effect_up()

    def exit(self) -> None:
        """The module is left: no effect may go on, and no key belongs to us."""
        self._note_effect()
        if self.node is not None:
            self.widget.setActiveEffect(None)
        if self._entered:
            self.widget.removeViewObservations()
            self._entered = False

    def release(self) -> None:
        """Let go of the nodes, before the scene loses them."""
        self.exit()
        if self.node is not None:
            self.widget.setSegmentationNode(None)  # as Slicer's own module does; the editor node goes with its scene
            self.node = None

    def close(self) -> None:
        """Let go of the scene: a widget that still holds it at the end makes Slicer crash."""
        self.release()
        self._editable = False
        self.widget.setMRMLScene(None)
        self.widget.setMRMLSegmentEditorNode(None)
