"""The scans of a study on Dask workers: each keeps a warm model and segments one scan at a time.

Workers see the images and the results' folder under the same paths as the process that asks. A worker that ends gives
its scan back to the others; a scan that failed on one is tried once more on another; a scheduler that is gone is waited
for. What is finished is on the disk, so that the same command given again does the rest.
"""

from __future__ import annotations

import itertools
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from NeonatalSegLib import __version__
from NeonatalSegLib.clusters import Workers, connect, cores
from NeonatalSegLib.errors import NeonatalSegError, reason_of
from NeonatalSegLib.files import leftovers
from NeonatalSegLib.models.registry import current_model, find_model
from NeonatalSegLib.segmentation.batch import DONE, Outcomes, attempt, state_of
from NeonatalSegLib.segmentation.device import gpu_of_worker, gpus
from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions
from NeonatalSegLib.segmentation.study_scans import StudyScan

LOOK_S = 2.0  # between two looks at who is there, while no scan ends
WAIT_FOR_SCHEDULER_S = 600.0  # for one that was there and is gone
RUNNING = ".neonatalseg-running-"  # begins the name of a file in the results' folder while a command is at work


@dataclass(frozen=True)
class Order:
    """What a worker needs to know besides the scan.

    Attributes:
        model: folder of the bundle; None for the accepted one, about which each worker then says what there is to say.
        sha256: of the model's weights.
        threads: most on a CPU; None for all that the worker may use.
        gpus: of the computer on which all workers are, to be shared out among them; 0 where each sees its own.
        token: name of a file in ``out``: who does not see it writes elsewhere.
    """

    model: Path | None
    sha256: str
    device: str
    engine: str
    threads: int | None
    gpus: int
    out: Path
    token: str
    options: SegmentOptions
    overwrite: bool
    version: str = __version__


class StudyWorkers:
    """Segments a study's scans on workers; for ``batch.run_study``.

    Args:
        where: the workers.
        model, device, engine: as for ``Segmenter``, which every worker opens for itself.
        threads: most of each worker on a CPU; default: on this computer its share, elsewhere what the worker may use.

    Raises:
        NeonatalSegError: no such model.
    """

    def __init__(
        self,
        where: Workers,
        model: str | Path | None = None,
        device: str = "auto",
        engine: str = "auto",
        *,
        threads: int | None = None,
    ) -> None:
        name, self.notices = current_model() if model is None else (model, [])
        self.model = find_model(name)
        self.where, self.device, self.engine = where, device, engine
        self._threads = threads
        self._folder = None if model is None else self.model.folder.absolute()

    def segment_all(
        self,
        scans: Sequence[StudyScan],
        out: Path,
        options: SegmentOptions,
        report: Callable[[str], None],
        *,
        overwrite: bool,
    ) -> Outcomes:
        """The scans as they end, each with why it failed or "".

        Raises:
            NeonatalSegError: as ``clusters.connect``; or the scheduler is gone and does not come back.
        """
        if not scans:
            return
        out = out.absolute()
        here = self.where.are_ours and self.where.slurm is None
        threads = self._threads or (max(1, cores() // self.where.local) if here else None)
        gpus_here = gpus() if here and self.device in ("auto", "cuda") else 0
        leftovers.sweep(out, RUNNING)
        token = out / f"{RUNNING}{leftovers.mark()}"
        order = Order(
            self._folder,
            self.model.hash,
            self.device,
            self.engine,
            threads,
            gpus_here,
            out,
            token.name,
            options,
            overwrite,
        )
        try:
            token.touch()
        except OSError as error:
            raise NeonatalSegError(f"{out} could not be written ({reason_of(error)}).") from error
        try:
            yield from self._through(order, [_absolute(scan) for scan in scans], report)
        finally:
            token.unlink(missing_ok=True)

    def _through(self, order: Order, scans: Sequence[StudyScan], report: Callable[[str], None]) -> Outcomes:
        left, gone_since = {scan.name: scan for scan in scans}, 0.0
        while left:
            try:
                with connect(self.where, threads=order.threads or 1) as client:
                    gone_since = 0.0
                    for scan, failure in _Round(client, order, report).outcomes(list(left.values())):
                        del left[scan.name]
                        yield scan, failure
            except _SchedulerGoneError:
                report(f"The scheduler {self.where.scheduler} is gone: waiting for it. What is finished is kept.")
                gone_since = time.monotonic()
            except NeonatalSegError as error:
                if not gone_since or time.monotonic() - gone_since > WAIT_FOR_SCHEDULER_S:
                    raise NeonatalSegError(f"{error} What is finished is kept; the same command goes on.") from error


class _SchedulerGoneError(Exception):
    """The connection was lost; what it knew of our scans is lost with it."""


@dataclass
class _Try:
    scan: StudyScan
    only: frozenset[str] = frozenset()  # addresses of the workers that may have it; empty: all
    failed_on: str = ""


class _Round:
    """Scans given to the workers of one client, until all have ended."""

    def __init__(self, client: Any, order: Order, report: Callable[[str], None]) -> None:
        self._client, self._order, self._report = client, order, report
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tries: dict[str, _Try] = {}
        self._futures: dict[str, Any] = {}
        self._number = itertools.count()
        self._told_of_none = False

    def outcomes(self, scans: Sequence[StudyScan]) -> Outcomes:
        self._look()
        for scan in scans:
            self._submit(_Try(scan))
        while self._tries:
            try:
                future = self._ended.get(timeout=LOOK_S)
            except queue.Empty:
                self._look()
                continue
            one = self._tries.pop(future.key, None)
            if one is None:
                continue
            del self._futures[future.key]
            failure, worker = self._outcome(future)
            if failure and worker and not one.failed_on and self._try_elsewhere(one, failure, worker):
                continue
            yield one.scan, failure

    def _submit(self, one: _Try) -> None:
        key = f"{one.scan.name}-{self._order.token}-{next(self._number)}"
        only = sorted(one.only) or None
        self._tries[key] = one
        self._futures[key] = self._client.submit(segment_here, self._order, one.scan, key=key, pure=False, workers=only)
        self._futures[key].add_done_callback(self._ended.put)

    def _outcome(self, future: Any) -> tuple[str, str]:
        """Why a scan failed or "", and on which worker where one has said so."""
        from distributed import KilledWorker

        if future.status == "cancelled":  # nobody but a lost connection does that
            raise _SchedulerGoneError
        error = future.exception()
        if isinstance(error, KilledWorker):
            return "The worker ended while it segmented this scan, and so did the next: out of memory?", ""
        if error is not None:
            return f"The worker could not begin: {type(error).__name__}: {error}", ""
        return future.result()

    def _try_elsewhere(self, one: _Try, failure: str, worker: str) -> bool:
        others = frozenset(self._workers()) - {worker}
        if not others:
            return False
        self._report(f"{one.scan.name}: failed on {worker} ({failure}); tried once more on another worker")
        self._submit(_Try(one.scan, others, worker))
        return True

    def _look(self) -> None:
        """Say where no worker is there; free what waits for workers that are gone."""
        there = self._workers()
        if not there and not self._told_of_none:
            self._report("No worker is there yet: waiting for one.")
        self._told_of_none = not there
        for key, one in list(self._tries.items()):
            if one.only and there and one.only.isdisjoint(there):
                del self._tries[key], self._futures[key]
                self._submit(_Try(one.scan, failed_on=one.failed_on))

    def _workers(self) -> list[str]:
        try:
            return list(self._client.nthreads())
        except (OSError, TimeoutError, RuntimeError) as error:  # also Dask's own, of a client that was closed
            raise _SchedulerGoneError from error


def _absolute(scan: StudyScan) -> StudyScan:
    """With paths that hold in another working directory."""
    paths = {key: path.absolute() for key in ("t1", "t2", "dataset") if (path := getattr(scan, key))}
    return replace(scan, **paths)


# --- in the worker ---------------------------------------------------------------------------------------------------

_one_at_a_time = threading.Lock()  # whatever number of threads a worker has: the model serves one scan
_warm: dict[tuple[Path | None, str, str, str, int | None], Segmenter] = {}


def segment_here(order: Order, scan: StudyScan) -> tuple[str, str]:
    """Segment one scan in this worker: "" or why that failed, and the worker's address."""
    from distributed import get_worker

    worker = get_worker()
    with _one_at_a_time:
        return _segment(order, scan, worker.name), worker.address


def _segment(order: Order, scan: StudyScan, name: object) -> str:
    try:
        if not (order.out / order.token).exists():
            raise NeonatalSegError(
                f"{platform.node()} does not see the same {order.out} as the computer that asks: results must be on a "
                "drive that all share, under one path."
            )
        segmenter = _segmenter(order, name)
        if state_of(segmenter.model, scan, order.out, order.options) == DONE:
            return ""  # by a worker whose scheduler could not pass it on
    except NeonatalSegError as error:
        return str(error)
    return attempt(segmenter, scan, order.out, order.options, overwrite=order.overwrite)


def _segmenter(order: Order, name: object) -> Segmenter:
    """The warm one, opened for the first scan.

    Raises:
        NeonatalSegError: as ``Segmenter``; another version or another model than of the process that asks.
    """
    if order.version != __version__:
        raise NeonatalSegError(
            f"{platform.node()} has NeonatalSeg {__version__}, and the command {order.version}: install one version."
        )
    wanted = (order.model, order.sha256, order.device, order.engine, order.threads)
    if wanted not in _warm:
        _warm.clear()
        if order.gpus > 1:  # before anything asks the driver
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(name, order.gpus, visible)
        segmenter = Segmenter(order.model, order.device, order.engine, threads=order.threads)
        if segmenter.model.hash != order.sha256:
            raise NeonatalSegError(f"On {platform.node()} the model {segmenter.model.folder} is another one.")
        _warm[wanted] = segmenter
    return _warm[wanted]
