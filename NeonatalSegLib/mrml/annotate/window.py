"""The window belongs to the slice while a study is open: nothing else is drawn over it, and all is given back."""

from __future__ import annotations

from typing import Any

import slicer

HELPER_ATTRIBUTE = "NeonatalSeg.helper"  # of segmentations that belong to the slice being annotated
LAYOUTS = {"axial": "Red", "sagittal": "Yellow", "coronal": "Green"}


class SliceWindow:
    """One view of the slice's plane, no other segmentation over it, no cross-hair; the former state comes back.

    Only nodes are used; in a scene without views nothing happens.
    """

    def __init__(self) -> None:
        self._hidden: dict[str, Any] = {}  # display nodes that were visible, by the ID of their segmentation
        self._seen: set[str] = set()
        self._layout_before: int | None = None
        self._layout_made: int | None = None
        self._crosshair_before: int | None = None

    @property
    def taken(self) -> bool:
        """True between ``take`` and ``give_back``."""
        return self._crosshair_before is not None

    def take(self, node: Any, axis: str) -> bool:
        """Show the plane of ``axis`` alone, with ``node``'s segments alone. True where the layout has changed.

        A layout that the user has chosen meanwhile stays.
        """
        scene = node.GetScene()
        crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if not self.taken:
            self._crosshair_before = crosshair.GetCrosshairMode() if crosshair is not None else 0
            if crosshair is not None:
                crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.NoCrosshair)
        if node.GetDisplayNode() is not None and not node.GetDisplayNode().GetVisibility():
            node.GetDisplayNode().SetVisibility(True)
        self.hide_others(node)
        return self._one_up(scene, axis)

    def hide_others(self, node: Any) -> None:
        """Hide every segmentation but ``node``, also one that came since; one that the user shows again stays."""
        scene = node.GetScene()
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
            other = scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode")
            display = other.GetDisplayNode()
            ours = other is node or other.GetAttribute(HELPER_ATTRIBUTE) is not None
            if ours or display is None or other.GetID() in self._seen:
                continue
            self._seen.add(other.GetID())
            if display.GetVisibility():
                self._hidden[other.GetID()] = display
                display.SetVisibility(False)

    def give_back(self, node: Any) -> None:
        """Hide ``node``, and bring back what was there before."""
        if not self.taken:
            return
        scene = node.GetScene()
        if node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(False)
        hidden, self._hidden = self._hidden, {}
        self._seen.clear()
        for key, display in hidden.items():
            if scene is not None and scene.GetNodeByID(key) is not None:
                display.SetVisibility(True)
        crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode") if scene is not None else None
        if crosshair is not None and self._crosshair_before is not None:
            crosshair.SetCrosshairMode(self._crosshair_before)
        layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode") if scene is not None else None
        if layout is not None and self._layout_before is not None and layout.GetViewArrangement() == self._layout_made:
            layout.SetViewArrangement(self._layout_before)
        self._crosshair_before = self._layout_before = self._layout_made = None

    def _one_up(self, scene: Any, axis: str) -> bool:
        layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if layout is None:
            return False
        now = layout.GetViewArrangement()
        if self._layout_before is None:
            self._layout_before = now
        elif now != self._layout_made:
            return False
        wanted = getattr(slicer.vtkMRMLLayoutNode, f"SlicerLayoutOneUp{LAYOUTS[axis]}SliceView")
        self._layout_made = wanted
        if now == wanted:
            return False
        layout.SetViewArrangement(wanted)
        return True
