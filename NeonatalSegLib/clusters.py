"""Dask workers for work that takes long: processes of this computer, those of a scheduler that runs, or jobs of Slurm.

What a site needs besides (network interface, modules to load, certificates) comes from Dask's own configuration files,
``~/.config/dask/*.yaml``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
# One task a worker, the next one when it is through. A task that ended two workers (for its memory) is not given to a
# third. Tasks of minutes that hold the interpreter are no reason to warn.
TASKS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": 1,
    "distributed.admin.tick.limit": "1h",
    "distributed.worker.profile.enabled": False,
}
# Processes that start afresh (no fork), and may start others themselves.
LOCAL_PROCESSES = {"distributed.worker.multiprocessing-method": "spawn", "distributed.worker.daemon": False}


@dataclass(frozen=True)
class SlurmJobs:
    """Jobs of Slurm, one worker each.

    Attributes:
        partition, account: as ``sbatch`` takes them; None leaves them to the site.
        gpus: so many jobs with one GPU each; 0 for jobs without.
        jobs: how many, where no GPUs are asked for.
        cpus, memory, time: of each job.
    """

    partition: str | None = None
    account: str | None = None
    gpus: int = 0
    jobs: int = 1
    cpus: int = 4
    memory: str = "16GB"
    time: str = "24:00:00"

    @staticmethod
    def of_text(text: str) -> SlurmJobs:
        """From ``partition=gpu,gpus=8``: attributes and their values, with commas.

        Raises:
            NeonatalSegError: no such attribute, or a value that it cannot have.
        """
        known = {field.name: field.type for field in fields(SlurmJobs)}
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key not in known or not value or any(sign in value for sign in "\n\r"):
                raise NeonatalSegError(
                    f"--slurm {text!r}: {part!r} is not understood. Expected NAME=VALUE with commas, such as "
                    f"partition=gpu,gpus=8; the names are {', '.join(known)}."
                )
            if known[key] == "int" and not value.isdecimal():
                raise NeonatalSegError(f"--slurm {text!r}: {key} must be a whole number, got {value!r}.")
            values[key] = int(value) if known[key] == "int" else value
        slurm = SlurmJobs(**values)
        if slurm.number < 1 or slurm.cpus < 1:
            raise NeonatalSegError(f"--slurm {text!r}: at least one job with one cpu is needed.")
        return slurm

    @property
    def number(self) -> int:
        """How many jobs, which is how many workers."""
        return self.gpus or self.jobs


@dataclass(frozen=True)
class Workers:
    """Where workers are: so many processes of this computer, or at a scheduler's address, or jobs of Slurm."""

    local: int = 1
    scheduler: str | None = None
    slurm: SlurmJobs | None = None

    @property
    def are_ours(self) -> bool:
        """Whether they, and their scheduler, live as long as this process."""
        return self.scheduler is None

    def __str__(self) -> str:
        if self.scheduler:
            return f"workers of the scheduler {self.scheduler}"
        if self.slurm:
            return f"{self.slurm.number} jobs of Slurm"
        return f"{self.local} workers on this computer"


@contextlib.contextmanager
def connect(workers: Workers, *, threads: int = 1, extra: str = "cluster") -> Iterator[Any]:
    """A ``distributed.Client`` of the workers; those that were started for it end with it.

    Args:
        threads: of each process of this computer, for the libraries that ask the environment.
        extra: of pyproject.toml, named where Dask is not installed.

    Raises:
        NeonatalSegError: Dask is not installed, the scheduler does not answer, or Slurm takes no jobs.
    """
    try:
        import dask
        from distributed import Client
    except ModuleNotFoundError as error:
        raise NeonatalSegError(f"Several processes need Dask: pip install 'neonatalseg[{extra}]'.") from error
    environment = {"distributed.nanny.pre-spawn-environ": dict.fromkeys(THREAD_VARIABLES, threads)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({**TASKS, **LOCAL_PROCESSES, **environment}))
        target: Any = workers.scheduler
        if target is None:
            target = stack.enter_context(_slurm(workers.slurm) if workers.slurm else _local(workers.local))
        try:
            client = stack.enter_context(Client(target))
        except (OSError, TimeoutError, ValueError) as error:  # the last: an address of no known form
            raise NeonatalSegError(
                f"The Dask scheduler at {workers.scheduler} does not answer: {error}. Is 'dask scheduler' running "
                "there, and may this computer reach that port?"
            ) from error
        yield client


def _local(number: int) -> Any:
    """Processes that talk in certificates made for this call: another user of the computer cannot give them work."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=number,
        threads_per_worker=1,
        processes=True,
        memory_limit=None,  # what a scan needs it needs: Dask must not end workers for their memory
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        security=_certificates(),
        silence_logs=logging.CRITICAL,  # who calls tells what went wrong
    )


def _certificates() -> Any:
    from distributed.security import Security

    try:
        return Security.temporary()
    except ImportError as error:
        raise NeonatalSegError("Workers need the package cryptography: pip install 'neonatalseg[cluster]'.") from error


@contextlib.contextmanager
def _slurm(jobs: SlurmJobs) -> Iterator[Any]:
    with slurm_cluster(jobs) as cluster:
        # Always so many: a job that ended (its node, its time) is asked for anew.
        cluster.adapt(minimum_jobs=jobs.number, maximum_jobs=jobs.number)
        yield cluster


def slurm_cluster(jobs: SlurmJobs) -> Any:
    """The jobs as dask-jobqueue asks for them, none yet; ``job_script()`` of it shows the script.

    Raises:
        NeonatalSegError: dask-jobqueue is not installed, or cannot make such jobs.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ModuleNotFoundError as error:
        raise NeonatalSegError("--slurm needs dask-jobqueue: pip install 'neonatalseg[cluster]'.") from error
    try:
        return SLURMCluster(
            queue=jobs.partition,
            account=jobs.account,
            cores=1,  # threads of the worker: one task at a time
            processes=1,
            job_cpu=jobs.cpus,
            memory=jobs.memory,
            walltime=jobs.time,
            job_extra_directives=["--gres=gpu:1"] if jobs.gpus else [],
            job_script_prologue=[f"export {name}={jobs.cpus}" for name in THREAD_VARIABLES],
            job_name="neonatalseg",
            python=sys.executable,
            security=_certificates(),
            shared_temp_directory=str(Path.home()),  # the certificates, where the jobs can read them
            scheduler_options={"dashboard": False, "dashboard_address": ":0"},
            worker_extra_args=["--no-dashboard"],
        )
    except (ValueError, OSError) as error:
        raise NeonatalSegError(f"Slurm's jobs could not be prepared: {error}") from error


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
