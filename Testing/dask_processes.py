"""A Dask scheduler and workers, as processes that are started as users start them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

WAIT_S = 120


class DaskProcesses:
    """A scheduler at one address and its workers, which all stand in ``folder``."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.folder, self.address = folder, f"tcp://127.0.0.1:{self._port}"
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        folder.mkdir()

    def start_scheduler(self) -> None:
        """Start one, again at the same address where the last one was killed."""
        host = ("--host", "127.0.0.1", "--port", str(self._port))
        self.scheduler = self._start("scheduler", *host, "--no-dashboard", "--dashboard-address", "127.0.0.1:0")

    def add_worker(self) -> None:
        """Start one, with the other arguments that docs/cluster.md says; :meth:`wait` is for it to be there."""
        self.workers.append(self._start("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"))

    def wait(self) -> None:
        """Until the scheduler answers and all workers that run are there."""
        import distributed

        with distributed.Client(self.address, timeout=f"{WAIT_S}s") as client:
            client.wait_for_workers(sum(worker.poll() is None for worker in self.workers), timeout=WAIT_S)

    def kill_worker(self, number: int) -> None:
        self.workers[number].kill()
        self.workers.pop(number).wait()

    def kill_scheduler(self) -> None:
        """Workers end with their scheduler."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()
        for worker in self.workers:
            worker.wait(WAIT_S)
        self.workers.clear()

    def close(self) -> None:
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "Testing")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
        with (self.folder / f"{kind}.log").open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "dask", kind, *arguments]
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)


@contextlib.contextmanager
def dask_processes(folder: Path, workers: int = 1) -> Iterator[DaskProcesses]:
    """A scheduler with so many workers that are there; all end at the end."""
    processes = DaskProcesses(folder)
    try:
        processes.start_scheduler()
        for _ in range(workers):
            processes.add_worker()
        processes.wait()
        yield processes
    finally:
        processes.close()
