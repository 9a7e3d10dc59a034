"""A study for the scan in the scene: its images become files, then the compute process plans and pre-fills slices."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer

from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.study import Study
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.annotate.study_volumes import remember_file
from NeonatalSegLib.mrml.scene.scene_result import ATTRIBUTE, EDITED
from NeonatalSegLib.mrml.scene.segments import label_map_from_segmentation
from NeonatalSegLib.mrml.scene.volumes import file_warnings, image_from_volume
from NeonatalSegLib.mrml.segment.runner import check_inputs
from NeonatalSegLib.mrml.shared.compute import Engine
from NeonatalSegLib.mrml.shared.engine_task import EngineTask
from NeonatalSegLib.panel.signals import Signal
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.scan import scan_name
from NeonatalSegLib.scans.write import replace_image


@dataclass
class _Making:
    """One study under way."""

    folder: Path
    files: dict[str, Path]
    nodes: dict[str, Any]
    fields: Mapping[str, Any]
    thread: threading.Thread | None = None
    written: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    task: EngineTask | None = None
    cancelled: bool = False


class StudyMaker:
    """Makes one study at a time; ``poll`` is to be called from a timer, nothing waits.

    Args:
        engine: gives the compute process.

    Signals: ``progressed(stage, fraction, seconds_left)``; then exactly one of ``finished(result of the operation)``,
    ``failed(message)`` and ``cancelled()``. Where it does not finish, no file is left behind.
    """

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._making: _Making | None = None
        self._left_over: list[EngineTask] = []
        self.progressed, self.finished, self.failed, self.cancelled = Signal(), Signal(), Signal(), Signal()

    def start(
        self,
        folder: Path,
        t1: Any,
        t2: Any,
        settings: BudgetSettings,
        *,
        model: str,
        device: str,
        prefill: str,
        result: Any = None,
    ) -> None:
        """Begin, with the volume nodes ``t1`` and ``t2`` (one at least).

        ``result``: a segmentation node that may be this scan's; it is used instead of computing it again where the same
        model made it and nobody has corrected it.

        Raises:
            NeonatalSegError: an input that cannot be used, or a folder that is not empty.
        """
        check_inputs(t1, t2)
        _check_empty(folder)
        nodes = {key: node for key, node in (("t1", t1), ("t2", t2)) if node is not None}
        name = file_name((nodes.get("t2") or nodes["t1"]).GetName())
        files = {key: folder / "scans" / f"{name}_{key.upper()}w.nii.gz" for key in nodes}
        scan = {"name": name, "age_weeks": None, **{key: str(files[key]) if key in files else None for key in _KEYS}}
        fields = {
            "study": str(folder),
            "scans": [scan],
            "settings": settings.to_json(),
            "model": model or None,
            "device": device,
            "prefill": prefill,
        }
        images = {key: image_from_volume(node) for key, node in nodes.items()}
        labels = None
        if prefill == "model" and _is_result_of(result, nodes.get("t2") or nodes["t1"]):
            labels = label_map_from_segmentation(result)
        # A volume that was moved since has other voxels than its result.
        if labels is not None and Grid.of(labels).is_like(Grid.of(images.get("t2") or images["t1"])):
            files["result"] = folder / "scans" / f".{name}_result.nii.gz"
            images["result"] = labels
            made_by = result.GetAttribute(ATTRIBUTE + "model_hash")
            fields["predicted"] = {"label_maps": {name: str(files["result"])}, "model_hash": made_by}
        self._making = making = _Making(folder, files, nodes, fields)
        making.thread = threading.Thread(target=_write, args=(making, images), name="study images", daemon=True)
        making.thread.start()
        self.progressed.emit("inputs", None, None)

    def start_round(self, folder: Path, before: Study, *, model: str, device: str) -> None:
        """Begin the round after a study: as many slices of its scans again, where the model is unsure.

        ``model``: name of a model, or the folder of a study that names one; "" for the user's default.

        Raises:
            NeonatalSegError: a folder that is not empty.
        """
        _check_empty(folder)
        scans = [
            {"name": scan.name, "age_weeks": scan.age_weeks, **{key: _text(getattr(scan, key)) for key in _KEYS}}
            for scan in before.scans
        ]
        fields = {
            "study": str(folder),
            "scans": scans,
            "settings": replace(before.plan.settings, selection="uncertainty", exclude=()).to_json(),
            "model": model or None,
            "device": device,
            "prefill": "model",
            "earlier": [str(before.folder)],
        }
        self._making = making = _Making(folder, {}, {}, fields)
        making.written.set()  # the images are files already
        self.progressed.emit("inputs", None, None)

    def cancel(self) -> None:
        """Ask to stop; ``cancelled`` follows from ``poll``."""
        making = self._making
        if making is not None and not making.cancelled:
            making.cancelled = True
            if making.task is not None:
                making.task.cancel()

    def abandon(self) -> None:
        """Stop and tell nobody: the module is closed."""
        making, self._making = self._making, None
        if making is not None:
            if making.task is not None:
                making.task.abandon()
                self._left_over.append(making.task)
            _clear(making)

    def poll(self) -> None:
        """Look after what is under way. Never waits."""
        self._left_over = [task for task in self._left_over if not task.poll()]
        making = self._making
        if making is None or not making.written.is_set():
            return
        if making.task is None:
            if making.failure is not None:
                self._end(making, self.failed, f"The scan could not be written into {making.folder}: {making.failure}.")
            elif making.cancelled:
                self._end(making, self.cancelled)
            else:
                making.task = EngineTask(
                    self._engine().request("plan", **making.fields),
                    on_progress=self._on_progress,
                    on_result=self._on_result,
                    on_error=lambda message, fields: self._end(making, self.failed, message),
                    on_cancelled=lambda: self._end(making, self.cancelled),
                )
        else:
            making.task.poll()

    def _on_progress(self, steps: Sequence[Mapping[str, Any]]) -> None:
        last = steps[-1]
        self.progressed.emit(last.get("stage", ""), last.get("fraction"), last.get("seconds_left"))

    def _on_result(self, fields: dict[str, Any]) -> None:
        making, self._making = self._making, None
        assert making is not None
        for key, node in making.nodes.items():
            remember_file(node, making.files[key])
        if "result" in making.files:
            making.files["result"].unlink(missing_ok=True)
        told = [text for node in making.nodes.values() for text in file_warnings(node)]
        self.finished.emit({**fields, "warnings": [*told, *fields.get("warnings", [])]})

    def _end(self, making: _Making, signal: Signal, *arguments: str) -> None:
        self._making = None
        _clear(making)
        signal.emit(*arguments)


_KEYS = ("t1", "t2")


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise NeonatalSegError(f"The folder {folder} is not empty: choose an empty one, or make a new one.")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _is_result_of(result: Any, reference: Any) -> bool:
    """True where a node is a result of Segment for this volume as the model gave it."""
    if result is None or result.GetAttribute(EDITED) or not result.GetAttribute(ATTRIBUTE + "model_hash"):
        return False
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    return bool(result.GetNodeReferenceID(role) == reference.GetID())


def file_name(name: str) -> str:
    """A volume's name as the name of a scan in a study: without its modality, and only of what any disk takes."""
    return scan_name(Path(name.replace("/", "_"))).replace(" ", "_")


def _write(making: _Making, images: Mapping[str, sitk.Image]) -> None:
    """On a thread: the images as compressed NIfTI files."""
    try:
        (making.folder / "scans").mkdir(parents=True, exist_ok=True)
        for key, image in images.items():
            if making.cancelled:
                break
            replace_image(image, making.files[key])
    except Exception as error:  # told on the thread that polls
        making.failure = error
    finally:
        making.written.set()


def _clear(making: _Making) -> None:
    """Remove the images that were written, and the folders where nothing else is in them."""
    if making.thread is not None:
        making.thread.join()
    with contextlib.suppress(OSError):
        for path in making.files.values():
            path.unlink(missing_ok=True)
        (making.folder / "scans").rmdir()
        making.folder.rmdir()
