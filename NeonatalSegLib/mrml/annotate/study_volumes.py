"""The images of a study's scan as volume nodes: those that are in the scene already, or loaded from their files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.annotation.plan import Plan
from NeonatalSegLib.annotation.session import StudyScan
from NeonatalSegLib.mrml.scene.file_grid import FILE_ATTRIBUTE, REMEMBERED, lies_on
from NeonatalSegLib.mrml.scene.volumes import volume_from_image
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.read import read_image
from NeonatalSegLib.scans.scan import check_image


def scan_volumes(scan: StudyScan, plan: Plan, scene: Any) -> dict[str, Any]:
    """The volume nodes of a scan, "t1" and "t2", as far as it has them.

    Raises:
        NeonatalSegError: a file is missing or unreadable, or the scan is not the one for which the plan was made.
    """
    nodes = {}
    for key, path in (("t1", scan.t1), ("t2", scan.t2)):
        if path is None:
            continue
        is_reference = path == scan.reference
        node = _found(path, scene)
        if node is None or (is_reference and not lies_on(node, plan.grids[scan.name])):
            image, _ = check_image(read_image(path).image, str(path))
            if is_reference:
                plan.check_scan(scan.name, Grid.of(image))
            node = volume_from_image(right_handed(image), f"{scan.name}_{key.upper()}w", scene)
            remember_file(node, path)
        nodes[key] = node
    return nodes


def remember_file(node: Any, path: Path) -> None:
    """Note that ``node`` holds what is in the file ``path``; by a hash: scenes are sent on, and paths are private."""
    node.SetAttribute(FILE_ATTRIBUTE, _hash_of(path))
    REMEMBERED[_hash_of(path)] = path


def _hash_of(path: Path) -> str:
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()


def right_handed(image: sitk.Image) -> sitk.Image:
    """The same voxels in the same places, the last axis turned round where the axes are left-handed.

    Slicer's own reader does this too; Slicer's world mirrors the x and y of LPS, which leaves the handedness.
    """
    return image[:, :, ::-1] if np.linalg.det(np.reshape(image.GetDirection(), (3, 3))) < 0 else image


def _found(path: Path, scene: Any) -> Any:
    """A scalar volume that holds this file: made by us, or loaded by the user."""
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode")
        storage = node.GetStorageNode()
        name = storage.GetFileName() if storage is not None else None
        same = node.GetAttribute(FILE_ATTRIBUTE) == _hash_of(path) or (name and Path(name).resolve() == path.resolve())
        if node.GetImageData() is not None and same:
            return node
    return None
