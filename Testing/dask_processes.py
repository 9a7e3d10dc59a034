"""A Dask scheduler with one worker, as processes that are started as users start them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT


@contextlib.contextmanager
def dask_scheduler(folder: Path) -> Iterator[tuple[str, int]]:
    """Address of the scheduler and process of the worker; both work in ``folder``, which is made."""
    import distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    folder.mkdir()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "Testing")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        started = []
        for arguments in (
            ("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
            ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"),
        ):
            log = stack.enter_context((folder / f"{arguments[0]}.log").open("w"))
            command = [sys.executable, "-m", "dask", *arguments]
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            started.append(stack.enter_context(process))
            stack.callback(process.kill)  # before the wait for its end; nothing where it has ended
        with distributed.Client(address, timeout="120s") as client:
            client.wait_for_workers(1, timeout=120)
        yield address, started[1].pid
