"""The nodes through which the slices of one scan are annotated: segments, the slice view, and what may be edited.

The segmentation holds the voxels of one slice and nothing else, so nothing else can be erased. Painting is limited to
the slice by a hidden segment that fills it and serves as the editing mask of every effect of the Segment Editor. The
mask alone would not do: inside a single segment Slicer's Erase may take away any voxel of the selected segment,
wherever it lies, and adds it to the mask (vtkSlicerSegmentEditorLogic::ModifySegmentByLabelmap).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from NeonatalSegLib.annotation.plan import PlannedSlice
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.annotate.window import HELPER_ATTRIBUTE, LAYOUTS
from NeonatalSegLib.mrml.scene.segments import BINARY_LABEL_MAP, _segment, set_opacity
from NeonatalSegLib.mrml.scene.volumes import RAS_TO_LPS, array_to_matrix, matrix_to_array
from NeonatalSegLib.scans.grid import Grid, voxel_axis
from NeonatalSegLib.tissues import TISSUES, Tissue

MASK_ID = "neonatalseg_slice_mask"
DIFFERENCE_COLOUR = (1.0, 0.0, 1.0)
MARGIN = 1.05  # around the scan in its view
MASK_NAME = "Slice being annotated (no tissue)"
SCAN_ATTRIBUTE = "NeonatalSeg.annotation"
# What can be painted: the tissues, and the background inside the head, which is a class of its own for the network.
PAINTED: tuple[Tissue, ...] = tuple(tissue for tissue in TISSUES if tissue.index > 0)


class AnnotationView:
    """The segmentation node of one scan of a study.

    Args:
        reference: the volume node on whose voxels the annotation lies.
        grid: the scan's grid as the study knows it (LPS); the same voxels as those of ``reference``, in any order.
        scan: the scan's name.

    Attributes:
        node: the vtkMRMLSegmentationNode; an earlier one for this scan is taken over, emptied.
    """

    def __init__(self, reference: Any, grid: Grid, scan: str) -> None:
        self.reference, self.grid, self.scan = reference, grid, scan
        # Slicer wants right-handed voxel axes: where the scan's are not, the last one is turned round.
        self._flipped = float(np.linalg.det((RAS_TO_LPS @ grid.matrix())[:3, :3])) < 0
        self._place: tuple[str, int] | None = None
        self._editable = np.zeros((0, 0), bool)
        self._fitted: set[str] = set()
        self._view: Any = None
        self._difference: Any = None
        self.node = _find_or_add(reference.GetScene(), scan)
        self.node.SetReferenceImageGeometryParameterFromVolumeNode(reference)

    def show(self, axis: str, index: int, labels: np.ndarray) -> None:
        """Show ``labels`` (2D uint8, 0-9, as ``grid.plane`` gives it) in this slice; nothing can be edited yet."""
        self._place = (axis, index)
        self._write_tissues(np.asarray(labels, np.uint8))
        self._editable = np.zeros(np.shape(labels), bool)
        self._write_mask()

    def shows(self, planned: PlannedSlice) -> bool:
        """True where it is this slice that is shown, so that ``read`` gives its labels."""
        return self.scan == planned.scan and self._place == (planned.axis, planned.index)

    def read(self) -> np.ndarray:
        """The slice as it is now, edits included: 2D uint8, values 0-9.

        Raises:
            NeonatalSegError: where a segment that is not a tissue has voxels in the slice, or a tissue's was removed.
        """
        assert self._place is not None, "no slice is shown"
        segmentation = self.node.GetSegmentation()
        tissues = {tissue.key: tissue for tissue in PAINTED}
        layers: dict[int, tuple[Any, np.ndarray]] = {}
        labels = np.zeros(self._editable.shape, np.uint8)
        if removed := [tissue.name for tissue in PAINTED if segmentation.GetSegment(tissue.key) is None]:
            raise NeonatalSegError(
                f"The segment '{removed[0]}' was removed, and with it what it held of this slice. Undo that, or start "
                "the slice again."
            )
        for key in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(key)
            image = segment.GetRepresentation(BINARY_LABEL_MAP)
            if key == MASK_ID or image is None or image.IsEmpty():
                continue
            if id(image) not in layers:
                layers[id(image)] = (image, self._resampled(image))
            mask = layers[id(image)][1] == segment.GetLabelValue()
            if key in tissues:
                labels[mask] = tissues[key].index
            elif mask.any():
                raise NeonatalSegError(
                    f"The segment '{segment.GetName()}' is not a tissue of NeonatalSeg, and {int(mask.sum())} voxels "
                    "of this slice belong to it. Delete it, or paint its voxels as one of the tissues."
                )
        return labels

    @property
    def editable(self) -> np.ndarray:
        """Where the slice can be edited now, 2D bool."""
        return self._editable

    def allow(self, within: str = "") -> None:
        """Let the slice be edited; ``within`` a tissue's key: only where that tissue is now."""
        self._editable = np.ones_like(self._editable)
        if within:
            self._editable = self.read() == next(tissue.index for tissue in PAINTED if tissue.key == within)
        self._write_mask()

    def forbid(self) -> None:
        """Nothing can be painted until the next ``allow``: the mask is there, and empty."""
        if self._place is not None:
            self._editable = np.zeros_like(self._editable)
            self._write_mask()

    def keep(self, editor: Any) -> None:
        """Bring back whatever holds the edits to the plane, should a user or an effect have changed it.

        To be called when the editor's node ``editor`` or the display node has changed, and before an edit: the mask
        segment is there, complete and hidden, the tissues are visible (only visible ones are replaced by painting),
        and the editor's mask is that segment.
        """
        limit(editor)
        if self._place is not None and not self._mask_is_whole():
            self._write_mask()
        display = self.node.GetDisplayNode()
        for key in self.node.GetSegmentation().GetSegmentIDs():
            if display is not None and display.GetSegmentVisibility(key) != (key != MASK_ID):
                display.SetSegmentVisibility(key, key != MASK_ID)

    def turn_view(self) -> Any:
        """Turn a slice view to the slice, in the scan's own plane; returns the slice node, None where there is none."""
        assert self._place is not None, "no slice is shown"
        axis, index = self._place
        scene = self.node.GetScene()
        nodes = [
            scene.GetNthNodeByClass(number, "vtkMRMLSliceNode")
            for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode"))
        ]
        shown = [node for node in nodes if node.IsMappedInLayout()] or nodes
        named = [node for node in shown if node.GetLayoutName() == LAYOUTS[axis]]
        if not shown:
            return None
        view = (named or shown)[0]
        view.SetOrientation(axis.capitalize())
        view.RotateToVolumePlane(self.reference)
        self._view = view
        if axis not in self._fitted:  # once: afterwards the view stays where the user has moved and zoomed it
            self._fitted.add(axis)
            self.fit_view()
        view.JumpSliceByOffsetting(*self._centre(axis, index))
        return view

    def fit_view(self) -> None:
        """Fill the view of the slice that is shown with the scan's own plane."""
        view, place = self._view, self._place
        if view is None or place is None:
            return
        axis, index = place
        view.JumpSliceByCentering(*self._centre(axis, index))
        to_view = np.linalg.inv(matrix_to_array(view.GetSliceToRAS())) @ RAS_TO_LPS @ self.grid.matrix()
        extents_mm = np.abs(to_view[:2, :3]) @ np.array(self.grid.size, float)
        width, height = (max(1, n) for n in view.GetDimensions()[:2])
        scale = MARGIN * float(max(extents_mm[0] / width, extents_mm[1] / height))  # mm a pixel
        view.SetFieldOfView(scale * width, scale * height, view.GetFieldOfView()[2])

    def show_volumes(self, foreground: Any = None) -> None:
        """The scan as background of all slice views, ``foreground`` (T1 beside a T2) faded over it as before."""
        scene = self.node.GetScene()
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            composite = scene.GetNthNodeByClass(number, "vtkMRMLSliceCompositeNode")
            composite.SetBackgroundVolumeID(self.reference.GetID())
            composite.SetForegroundVolumeID(foreground.GetID() if foreground is not None else None)

    def look(self, fill: bool, outline: bool, opacity: float) -> None:
        """How the segments cover the scan in the slice views."""
        display = self.node.GetDisplayNode()
        if display is not None:
            display.SetVisibility2DFill(bool(fill))
            display.SetVisibility2DOutline(bool(outline))
            set_opacity(self.node, opacity)

    def show_difference(self, differing: np.ndarray | None) -> None:
        """Mark voxels of the slice (2D bool) in a segmentation of its own; None takes the marks away."""
        if differing is None or self._place is None:
            if self._difference is not None and self.node.GetScene() is not None:
                self.node.GetScene().RemoveNode(self._difference)
            self._difference = None
            return
        if self._difference is None:
            made = self.node.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", "Where the raters differ")
            made.SetSaveWithScene(False)
            made.SetAttribute(HELPER_ATTRIBUTE, "1")
            made.CreateDefaultDisplayNodes()
            made.GetDisplayNode().SetSaveWithScene(False)
            made.GetDisplayNode().SetOpacity2DFill(0.7)
            self._difference = made
        segmentation = self._difference.GetSegmentation()
        segmentation.RemoveAllSegments()
        segmentation.SetSourceRepresentationName(BINARY_LABEL_MAP)
        segment = slicer.vtkSegment()
        segment.SetName("Raters differ")
        segment.SetColor(*DIFFERENCE_COLOUR)
        segment.SetLabelValue(1)
        segment.AddRepresentation(BINARY_LABEL_MAP, self._slab(differing.astype(np.uint8)))
        segmentation.AddSegment(segment, "differ")

    def remove_mask(self) -> None:
        """Take the mask segment away, so that the node can be saved or used elsewhere without it."""
        self.show_difference(None)
        self._place = None
        self.node.GetSegmentation().RemoveSegment(MASK_ID)

    # Between the scan's voxel order and the node's

    def _turned(self, array: np.ndarray) -> np.ndarray:
        """(z, y, x) in the scan's order to the node's, or back."""
        return array[::-1] if self._flipped else array

    def _oriented(self, array: np.ndarray, start: Sequence[int] = (0, 0, 0)) -> Any:
        """``array`` (z, y, x) in the node's order as oriented image whose first voxel has the index ``start``."""
        image = slicer.vtkOrientedImageData()
        extent: list[int] = []
        for first, length in zip(start, array.shape[::-1], strict=True):
            extent += [int(first), int(first) + length - 1]
        image.SetExtent(*extent)
        scalars = numpy_to_vtk(np.ascontiguousarray(array, np.uint8).ravel(), deep=True)
        scalars.SetName("ImageScalars")
        image.GetPointData().SetScalars(scalars)
        image.SetImageToWorldMatrix(array_to_matrix(self._matrix()))
        return image

    def _matrix(self) -> np.ndarray:
        """From the node's voxel order to RAS, 4 x 4."""
        matrix = RAS_TO_LPS @ self.grid.matrix()
        if self._flipped:
            matrix[:3, 3] += matrix[:3, 2] * (self.grid.size[2] - 1)
            matrix[:3, 2] *= -1
        return matrix

    def _slab(self, values: np.ndarray) -> Any:
        """The slice with ``values`` (2D) as oriented image, one voxel thick, in its place."""
        assert self._place is not None
        axis, index = self._place
        across = voxel_axis(self.grid, axis)
        start = [0, 0, 0]
        start[across] = self.grid.size[2] - 1 - index if across == 2 and self._flipped else index
        return self._oriented(self._turned(np.expand_dims(values, 2 - across)), start)

    def _resampled(self, image: Any) -> np.ndarray:
        """The label values of ``image`` in the slice (2D, the scan's order)."""
        assert self._place is not None
        across = voxel_axis(self.grid, self._place[0])
        slab = self._slab(np.zeros(self._editable.shape, np.uint8))
        found = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            image, slab, found, False, False
        )
        columns, rows, slices = found.GetDimensions()
        array = vtk_to_numpy(found.GetPointData().GetScalars()).reshape(slices, rows, columns)
        return np.array(np.squeeze(self._turned(array), 2 - across))

    def _centre(self, axis: str, index: int) -> tuple[float, float, float]:
        """Of a plane, RAS in mm."""
        voxel = [(length - 1) / 2 for length in self.grid.size]
        voxel[voxel_axis(self.grid, axis)] = index
        point = RAS_TO_LPS @ self.grid.matrix() @ np.array([*voxel, 1.0])
        return float(point[0]), float(point[1]), float(point[2])

    # Writing into the node

    def _write_tissues(self, labels: np.ndarray) -> None:
        """All tissues share one label map, whose values are the class indices; segments that are none of ours go."""
        voxels = self._slab(labels)
        segmentation = self.node.GetSegmentation()
        segmentation.SetSourceRepresentationName(BINARY_LABEL_MAP)
        keys = {tissue.key for tissue in PAINTED}
        modified = self.node.StartModify()
        for key in segmentation.GetSegmentIDs():
            if key not in keys and key != MASK_ID:
                segmentation.RemoveSegment(key)
        for tissue in PAINTED:
            segment = segmentation.GetSegment(tissue.key)
            if segment is None:
                segmentation.AddSegment(_segment(tissue, voxels), tissue.key)
            else:
                segment.SetLabelValue(tissue.index)
                segment.AddRepresentation(BINARY_LABEL_MAP, voxels)
        segmentation.InvalidateNonSourceRepresentations()
        self.node.EndModify(modified)

    def _write_mask(self) -> None:
        """The mask segment: a label map of its own, or it would displace the tissues."""
        image = self._slab(self._editable.astype(np.uint8))
        segmentation = self.node.GetSegmentation()
        segment = segmentation.GetSegment(MASK_ID)
        if segment is None:
            segment = slicer.vtkSegment()
            segment.SetName(MASK_NAME)
            segment.SetLabelValue(1)
            segment.AddRepresentation(BINARY_LABEL_MAP, image)
            segmentation.AddSegment(segment, MASK_ID)
        else:
            segment.SetLabelValue(1)
            segment.AddRepresentation(BINARY_LABEL_MAP, image)
        self.node.GetDisplayNode().SetSegmentVisibility(MASK_ID, False)

    def _mask_is_whole(self) -> bool:
        segment = self.node.GetSegmentation().GetSegment(MASK_ID)
        image = segment.GetRepresentation(BINARY_LABEL_MAP) if segment is not None else None
        if image is None:
            return False
        if image.IsEmpty():
            return not self._editable.any()
        return bool(np.array_equal(self._resampled(image) == segment.GetLabelValue(), self._editable))


def limit(editor: Any) -> None:
    """Tell a vtkMRMLSegmentEditorNode: edits inside the mask segment only, and what is painted replaces all others.

    "All others" are the visible segments: with "all segments" the Segment Editor would eat the mask segment, which is
    hidden and therefore left alone so.
    """
    inside = slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
    if editor.GetMaskMode() != inside:
        editor.SetMaskMode(inside)
    if editor.GetMaskSegmentID() != MASK_ID:
        editor.SetMaskSegmentID(MASK_ID)
    if editor.GetOverwriteMode() != editor.OverwriteVisibleSegments:
        editor.SetOverwriteMode(editor.OverwriteVisibleSegments)


def _find_or_add(scene: Any, scan: str) -> Any:
    """The scan's segmentation node, emptied of what is not ours; a new one where there is none."""
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode")
        if node.GetAttribute(SCAN_ATTRIBUTE) == scan:
            node.GetSegmentation().RemoveAllSegments()
            break
    else:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(f"{scan} annotation"))
        node.SetAttribute(SCAN_ATTRIBUTE, scan)
        node.SetSaveWithScene(False)  # one slice and its mask: the annotation itself lies in the study's folder
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(False)
    return node
