"""Many runs of one function, resumable run by run, in this process or on Dask workers.

A folder of runs holds ``config.json`` and, for every run, ``runs/<key>/`` with ``job.json``, ``result.json`` (written
whole or not at all, only when the run has ended well) and whatever the run keeps there. A run that has a result is
not run again; a folder whose configuration or job is another one is refused.

Several runs at once are Dask's work: a cluster of processes on this machine, or the workers of a scheduler that is
already running. For several GPUs or machines that share a file system:

    dask scheduler
    CUDA_VISIBLE_DEVICES=0 dask worker tcp://HOST:8786 --nthreads 1 --no-nanny      # one worker for every GPU
    neonatalseg experiment baseline ... --scheduler tcp://HOST:8786
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from NeonatalSegLib.clusters import Workers, connect
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.settings import read_object

Work = Callable[[dict[str, Any], Path], dict[str, Any]]


def run_jobs(
    function: Work,
    jobs: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    config: Mapping[str, Any],
    parallel: int = 1,
    scheduler: str | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Run what has no result yet; returns every job's result by key, in the order of ``jobs``.

    Args:
        function: importable by name (other processes import it); called as ``function(job, folder)`` with a job and
            the existing folder of its run; returns what JSON can hold.
        jobs: what JSON can hold, by key; a key is a folder's name.
        out: the folder of runs.
        config: what all the jobs have in common; a folder of another configuration is refused.
        parallel: processes on this machine, one thread each; 1 runs here, without Dask and with all threads.
        scheduler: address of a Dask scheduler whose workers see ``out`` under the same path; ``parallel`` is ignored.
        tell: given one line for every run that ends.

    Raises:
        NeonatalSegError: another configuration, a key that is no folder's name, Dask is not installed or the
            scheduler does not answer; or runs have failed. The others have then been run, and ``error.txt`` in the
            folder of a failed one holds its traceback.
    """
    if parallel < 1:
        raise NeonatalSegError(f"{parallel} runs at once are too few: give 1 or more.")
    out = Path(out).absolute()  # a worker may stand in another folder
    folders = {key: out / "runs" / _checked(key) for key in jobs}
    _claim(out / "config.json", config, "another configuration")
    for key, job in jobs.items():
        _claim(folders[key] / "job.json", job, "a run of another job")
    waiting = [key for key in jobs if not (folders[key] / "result.json").is_file()]
    if len(waiting) < len(jobs):
        report(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done already")
    started, failed = time.monotonic(), []
    todo = {key: (dict(jobs[key]), folders[key]) for key in waiting}
    for number, (key, error) in enumerate(_run(function, todo, parallel, scheduler), 1):
        left = (time.monotonic() - started) / number * (len(waiting) - number)
        report(f"{number}/{len(waiting)} {key}: {'failed: ' + error if error else 'done'}, {left / 60:.0f} min left")
        if error:
            failed.append(f"{key} ({error})")
    if failed:
        raise NeonatalSegError(
            f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}. Their folders below {out / 'runs'} hold "
            "error.txt. Run the same command again to try only these."
        )
    return {key: read_object(folder / "result.json", "result of a run", nan=True) for key, folder in folders.items()}


def check_folder(out: str | Path, config: Mapping[str, Any]) -> None:
    """NeonatalSegError where ``out`` holds runs of another configuration; writes nothing."""
    file = Path(out) / "config.json"
    if file.exists():
        _claim(file, config, "another configuration")


Todo = Mapping[str, tuple[dict[str, Any], Path]]


def _run(function: Work, todo: Todo, parallel: int, scheduler: str | None) -> Iterator[tuple[str, str]]:
    """(key, what went wrong or nothing) of every job, as they end."""
    if scheduler is None and (parallel == 1 or len(todo) < 2):
        for key, (job, folder) in todo.items():
            yield key, _one(function, job, folder)
    elif todo:
        yield from _run_with_dask(function, todo, min(parallel, len(todo)), scheduler)


def _run_with_dask(function: Work, todo: Todo, parallel: int, scheduler: str | None) -> Iterator[tuple[str, str]]:
    with connect(Workers(parallel, scheduler), extra="experiments") as client:
        from distributed import as_completed

        futures = {
            client.submit(_one, function, job, folder, key=f"{folder}", pure=False): key
            for key, (job, folder) in todo.items()
        }
        for future in as_completed(futures):
            failure = future.exception()  # of Dask itself: a worker that died with the job, say
            yield futures[future], f"{type(failure).__name__}: {failure}" if failure else future.result()


def _one(function: Work, job: dict[str, Any], folder: Path) -> str:
    """Run one job and write its result; returns what went wrong, in one line, or nothing."""
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        result = function(job, folder)
        _write(folder / "result.json", result)
    except Exception as error:  # one run's failure must not end the others
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {error}"
    return ""


def _checked(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        raise NeonatalSegError(f"A run cannot be called {key!r}: letters, digits, '.', '_' and '-' alone.")
    return key


def _claim(file: Path, data: Mapping[str, Any], what: str) -> None:
    """Write ``data``, or refuse a file that holds something else."""
    wanted = json.loads(json.dumps(data))
    if not file.exists():
        _write(file, wanted)
        return
    found = _in_todays_settings(read_object(file, "description of runs", nan=True), wanted)
    if found != wanted:
        differing = sorted(k for k in {**found, **wanted} if found.get(k) != wanted.get(k))
        raise NeonatalSegError(
            f"{file.parent} holds {what} (it differs in: {', '.join(differing)}): choose a new folder, or remove it."
        )


def _in_todays_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a folder says, with the settings of a training that came into being after it: they had their defaults."""
    old, new = found.get("training"), wanted.get("training")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return found
    from NeonatalSegLib.training.settings import TrainingSettings

    try:
        known = TrainingSettings.from_json({"validate_every": old.get("epochs", 1), **old}).to_json()
    except NeonatalSegError:  # it has settings that are no more
        return found
    return {**found, "training": {k: v for k, v in json.loads(json.dumps(known)).items() if k in new}}


def _write(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(data, indent=1))
