"""From volume nodes to segments: the logic behind the Segment button, without Qt.

The caller has a timer (or a loop) call ``poll``; nothing here waits. Voxels are copied on the calling thread, because
VTK wants that; writing them to files and looking at their contrast happens on a thread of its own.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.scene.scene_result import place_result
from NeonatalSegLib.mrml.scene.volumes import check_volume, file_warnings, image_from_volume, parent_to_world
from NeonatalSegLib.mrml.shared.compute import Engine, EngineRequest, Turn, start_engine
from NeonatalSegLib.mrml.shared.engine_task import EngineTask
from NeonatalSegLib.panel.signals import Signal
from NeonatalSegLib.scans.write import write_image

CANCELLED = "Cancelled. The scene is as it was before."


@dataclass
class _Run:
    """One segmentation under way."""

    nodes: dict[str, Any]
    folder: Path
    world_to_reference: np.ndarray
    ask: Callable[[Path | None, Path | None], EngineRequest]
    thread: threading.Thread | None = None
    written: threading.Event = field(default_factory=threading.Event)
    files: dict[str, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failure: BaseException | None = None
    task: EngineTask | None = None
    cancelled: bool = False
    times_s: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def reference(self) -> Any:
        return self.nodes.get("t2") or self.nodes["t1"]


class SegmentationLogic:
    """Runs one segmentation at a time and puts its result into the scene.

    Args:
        scene: the MRML scene; results go where the input node is.
        engine: makes the compute process when first needed.

    Signals: ``progressed(stage, fraction, seconds_left)``, ``finished(Outcome)``, ``failed(message)``,
    ``cancelled(why)``, ``devices_known(result of hello)``, ``devices_failed(message, missing package or "")``.
    After each start exactly one of finished, failed and cancelled comes, from inside ``poll``, ``scene_closed`` or
    ``nodes_removed``.
    """

    def __init__(self, scene: Any = None, engine: Callable[[], Engine] = start_engine) -> None:
        self.scene = scene if scene is not None else slicer.mrmlScene
        self._make_engine = engine
        self._engine: Engine | None = None
        self.turn = Turn()  # of the sections that share the compute process
        self._run: _Run | None = None
        self._hello: EngineTask | None = None
        self._left_over: list[EngineTask] = []
        self.progressed, self.finished, self.failed = Signal(), Signal(), Signal()
        self.cancelled, self.devices_known, self.devices_failed = Signal(), Signal(), Signal()

    @property
    def running(self) -> bool:
        """True between a start and its end."""
        return self._run is not None

    @property
    def waiting(self) -> bool:
        """True where ``poll`` has something to look after."""
        return self.running or self._hello is not None or bool(self._left_over)

    def ask_devices(self) -> None:
        """Start the compute process and ask which devices and models it has; the answer comes as a signal."""
        if self._hello is None:
            self._hello = EngineTask(
                self.engine().request("hello"),
                on_result=self.devices_known.emit,
                on_error=lambda message, fields: self.devices_failed.emit(message, str(fields.get("missing", ""))),
                on_cancelled=lambda: self.devices_failed.emit("", ""),
            )

    def start(
        self,
        t1: Any = None,
        t2: Any = None,
        *,
        model: str | None = None,
        device: str = "auto",
        options: Mapping[str, bool] | None = None,
    ) -> None:
        """Segment the volume nodes ``t1`` and ``t2`` (one at least); returns at once.

        ``options`` are fields of SegmentOptions. Raises NeonatalSegError where an input cannot be used, or one runs.
        """
        if self._run is not None:
            raise NeonatalSegError("A segmentation is running already: cancel it, or wait until it is done.")
        nodes = {key: node for key, node in (("t1", t1), ("t2", t2)) if node is not None}
        check_inputs(t1, t2)
        images = {key: image_from_volume(node) for key, node in nodes.items()}
        try:
            folder = self.engine().new_folder()
        except OSError as error:
            raise NeonatalSegError(
                f"No temporary folder could be made ({error}). Free some space on that disk and segment again."
            ) from error
        reference = nodes.get("t2") or nodes["t1"]

        def ask(first: Path | None, second: Path | None) -> EngineRequest:
            return self.engine().segment(
                t1=first,
                t2=second,
                model=model or None,
                device=device,
                options=dict(options or {}),
                name=reference.GetName(),
                folder=folder,
            )

        run = _Run(nodes, folder, np.linalg.inv(parent_to_world(reference)), ask)
        run.warnings = [text for node in nodes.values() for text in file_warnings(node)]
        run.thread = threading.Thread(target=_write_inputs, args=(run, images), name="inputs", daemon=True)
        self._run = run
        run.thread.start()
        self.progressed.emit("inputs", None, None)

    def cancel(self) -> None:
        """Ask the running segmentation to stop; ``cancelled`` follows from ``poll``."""
        run = self._run
        if run is None or run.cancelled:
            return
        run.cancelled = True
        if run.task is not None:
            run.task.cancel()

    def abandon(self, why: str) -> None:
        """Stop, and write nothing whatever still comes; ``cancelled(why)`` is emitted at once."""
        run, self._run = self._run, None
        if run is None:
            return
        run.cancelled = True
        if run.task is not None:
            run.task.abandon()
            self._left_over.append(run.task)
        else:
            _join(run)
            shutil.rmtree(run.folder, ignore_errors=True)
        self.cancelled.emit(why)

    def scene_closed(self) -> None:
        """The scene closes: the run, if any, must write nothing into the next one."""
        self.abandon("The scene was closed, so the segmentation was stopped.")

    def nodes_removed(self) -> None:
        """Nodes have left the scene: stop where one of the inputs is gone."""
        run = self._run
        if run is None:
            return
        if gone := [node for node in run.nodes.values() if not self.scene.IsNodePresent(node)]:
            self.abandon(f"{gone[0].GetName()} was deleted, so the segmentation was stopped.")

    def poll(self) -> None:
        """Look after what is under way and emit what happened; to be called ten times a second. Never waits."""
        hello, run = self._hello, self._run
        if hello is not None and hello.poll():
            self._hello = None
        self._left_over = [task for task in self._left_over if not task.poll()]
        if run is None:
            return
        if run.task is None:
            self._hand_over(run)
        else:
            run.task.poll()

    def close(self) -> None:
        """Stop everything and end the compute process."""
        self.abandon("The module was closed.")
        engine, self._engine = self._engine, None
        self._hello, self._left_over = None, []
        if engine is not None:
            engine.close()

    def engine(self) -> Engine:
        """The compute process that all sections share, made when first needed; it ends with ``close``."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    def _hand_over(self, run: _Run) -> None:
        """The inputs are being written; when they are there, ask."""
        if not run.written.is_set():
            return
        if run.cancelled or run.failure is not None:
            self._run = None
            _join(run)
            shutil.rmtree(run.folder, ignore_errors=True)
            if run.cancelled:
                self.cancelled.emit(CANCELLED)
            else:
                self.failed.emit(_input_failure(run))
            return
        run.times_s["transfer"] = time.perf_counter() - run.started
        self.progressed.emit("start", None, None)
        run.task = EngineTask(
            run.ask(run.files.get("t1"), run.files.get("t2")),
            on_progress=self._on_progress,
            on_result=lambda fields: self._end(run, fields),
            on_error=lambda message, fields: self._end(run, None, message),
            on_cancelled=lambda: self._end(run, None),
        )

    def _on_progress(self, steps: Sequence[Mapping[str, Any]]) -> None:
        last = steps[-1]
        self.progressed.emit(last.get("stage", ""), last.get("fraction"), last.get("seconds_left"))

    def _end(self, run: _Run, fields: dict[str, Any] | None, failure: str = "") -> None:
        """Without ``fields`` and ``failure`` it was cancelled; so it was where a result came too late."""
        self._run = None
        if run.cancelled or (fields is None and not failure):
            self.cancelled.emit(CANCELLED)
        elif fields is None:
            self.failed.emit(failure)
        else:
            self._deliver(run, fields)

    def _deliver(self, run: _Run, fields: dict[str, Any]) -> None:
        try:
            _join(run)  # long done
            outcome = place_result(
                fields,
                run.reference,
                run.world_to_reference,
                started=run.started,
                times_s=run.times_s,
                warnings=run.warnings,
            )
        except (OSError, RuntimeError, NeonatalSegError) as error:
            self.failed.emit(f"The result could not be brought into the scene ({error}). Segment again.")
            return
        self.finished.emit(outcome)


def check_inputs(t1: Any, t2: Any) -> None:
    """Refuse, in words, inputs that cannot be segmented; nothing is copied.

    Raises:
        NeonatalSegError: none given, the same volume twice, or an unusable one (see ``volumes.check_volume``).
    """
    if t1 is None and t2 is None:
        raise NeonatalSegError("Choose a T1, a T2 or both: there is nothing to segment yet.")
    if t1 is not None and t1 is t2:
        raise NeonatalSegError(
            f"{t1.GetName()} is chosen as T1 and as T2. Choose it once only, and leave the other empty where there is "
            "no such scan."
        )
    for node in (t1, t2):
        if node is not None:
            check_volume(node)


def _write_inputs(run: _Run, images: Mapping[str, sitk.Image]) -> None:
    """On a thread: the images as uncompressed NRRD files."""
    try:
        for key, image in images.items():
            run.files[key] = run.folder / f"{key}.nrrd"
            write_image(image, run.files[key], level=0)
    except Exception as error:  # told on the thread that polls
        run.failure = error
    finally:
        run.written.set()


def _join(run: _Run) -> None:
    """Wait for the thread that writes: its files must not outlive the folder. Well under a second."""
    if run.thread is not None:
        run.thread.join()


def _input_failure(run: _Run) -> str:
    return (
        f"The scan could not be handed over through the temporary folder {run.folder} ({run.failure}). Most often the "
        "disk is full: free some space and segment again."
    )
