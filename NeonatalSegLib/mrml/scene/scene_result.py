"""What a finished run leaves in the scene."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from NeonatalSegLib.mrml.scene.results import rows_from_table, table_from_volumes, volume_from_uncertainty
from NeonatalSegLib.mrml.scene.segments import segmentation_from_label_map

ATTRIBUTE = "NeonatalSeg."
EDITED = ATTRIBUTE + "edited"  # on a result that was corrected by hand
RESULT_ROLE = ATTRIBUTE + "result"  # from a table or an uncertainty map to its segmentation


@dataclass(frozen=True)
class Judgement:
    """What was said of a result when it was made; a saved scene keeps it with the segmentation.

    Attributes:
        verdict: pass, check or fail; "" where nothing is known (a scene of an earlier version).
        findings: what speaks against the result, as in the side-car of ``neonatalseg segment``.
        warnings: in words, the most important first.
    """

    verdict: str = ""
    findings: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What a finished run left in the scene.

    Attributes:
        segmentation, table: the new nodes. ``uncertainty``: node or None.
        warnings: sentences about this result, the most important first.
        device, model: texts as told by the compute process.
        seconds: from the click to the segments in the scene; ``times_s`` has the stages.
        warm: the model was loaded already.
        age_weeks: post-menstrual age as the model sees it, None where it tells none.
        volumes_age_weeks: as the volumes of the tissues show it, or None.
        verdict: pass, check or fail: whether the result can be a newborn's brain.
    """

    segmentation: Any
    table: Any
    uncertainty: Any
    warnings: list[str]
    device: str
    model: str
    seconds: float
    times_s: dict[str, float]
    warm: bool
    age_weeks: float | None = None
    verdict: str = "pass"
    volumes_age_weeks: float | None = None

    @property
    def rows(self) -> list[tuple[str, float]]:
        """(name, mL) as shown."""
        return rows_from_table(self.table)


def place_result(
    fields: Mapping[str, Any],
    reference: Any,
    world_to_reference: np.ndarray,
    *,
    started: float,
    times_s: Mapping[str, float],
    warnings: Sequence[str] = (),
) -> Outcome:
    """Bring the files of a finished segmentation into the scene, beside the scan.

    Args:
        fields: the result as ``engine.operations.segmenting.segment`` gives it: paths, volumes, texts.
        reference: the volume node on whose grid the result lies.
        world_to_reference: 4 x 4, from the world to the node's own space when it was handed over.
        started: ``time.perf_counter()`` at the click. times_s: stages timed so far.
        warnings: to be told before those of the result.

    Raises:
        RuntimeError: a file cannot be read; nothing was put into the scene.
    """
    began = time.perf_counter()
    label_map = sitk.ReadImage(fields["label_map"])
    entropy = sitk.ReadImage(fields["uncertainty"]) if fields.get("uncertainty") else None
    name, unique = reference.GetName(), _free_name(reference.GetScene())
    _remove_earlier(reference)
    segmentation = segmentation_from_label_map(label_map, unique(f"{name} tissues"), reference, world_to_reference)
    for key in ("model_name", "model_hash", "device"):
        segmentation.SetAttribute(ATTRIBUTE + key, str(fields.get(key, "")))
    told = [*warnings, *(str(warning) for warning in fields.get("warnings") or [])]
    judged = Judgement(str(fields.get("verdict") or "pass"), list(fields.get("findings") or []), told)
    segmentation.SetAttribute(ATTRIBUTE + "judgement", json.dumps(vars(judged)))
    table = table_from_volumes(fields["volumes_ml"], unique(f"{name} volumes"), reference)
    map_node = None
    if entropy is not None:
        map_node = volume_from_uncertainty(entropy, unique(f"{name} uncertainty"), reference, world_to_reference)
    for companion in (table, map_node):
        if companion is not None:
            companion.SetNodeReferenceID(RESULT_ROLE, segmentation.GetID())
    now = time.perf_counter()
    return Outcome(
        segmentation,
        table,
        map_node,
        told,
        str(fields.get("device", "")),
        str(fields.get("model_name", "")),
        now - started,
        {**times_s, **(fields.get("times_s") or {}), "display": now - began, "total": now - started},
        bool(fields.get("warm")),
        fields.get("age_weeks"),
        judged.verdict,
        fields.get("volumes_age_weeks"),
    )


def judgement_of(segmentation: Any) -> Judgement:
    """What was said of a result; empty where the node does not tell, or tells it in a way that is not ours."""
    try:
        said = json.loads(segmentation.GetAttribute(ATTRIBUTE + "judgement") or "{}")
        findings = [{str(key): str(text) for key, text in one.items()} for one in said.get("findings", [])]
        return Judgement(str(said.get("verdict", "")), findings, [str(text) for text in said.get("warnings", [])])
    except (ValueError, TypeError, AttributeError):
        return Judgement()


def _free_name(scene: Any) -> Callable[[str], str]:
    """Names as they are where nobody has them: the scene's own way goes on counting after a node has gone."""
    return lambda name: name if scene.GetFirstNodeByName(name) is None else str(scene.GenerateUniqueName(name))


def corrected_by_hand(reference: Any) -> list[str]:
    """Names of this scan's earlier results that somebody has corrected: a new one would replace them."""
    return [node.GetName() for node in _earlier(reference) if node.GetAttribute(EDITED)]


def _earlier(reference: Any) -> list[Any]:
    """Earlier results for this scan."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    scene = reference.GetScene()
    nodes = [
        scene.GetNthNodeByClass(index, "vtkMRMLSegmentationNode")
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))
    ]
    ours = [node for node in nodes if node.GetAttribute(ATTRIBUTE + "model_name") is not None]
    return [node for node in ours if node.GetNodeReferenceID(role) == reference.GetID()]


def _remove_earlier(reference: Any) -> None:
    """A new result takes the place of the one before, with its table and map: two of one scan are mixed up."""
    scene = reference.GetScene()
    for segmentation in _earlier(reference):
        for kind in ("vtkMRMLTableNode", "vtkMRMLScalarVolumeNode"):
            nodes = [scene.GetNthNodeByClass(index, kind) for index in range(scene.GetNumberOfNodesByClass(kind))]
            for node in nodes:
                if node.GetNodeReferenceID(RESULT_ROLE) == segmentation.GetID():
                    scene.RemoveNode(node)
        scene.RemoveNode(segmentation)
