"""Kills and failures at a chosen step, for tests of what survives them (POSIX: a forked process)."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="forks and kills a process")
STEPS = ("replace", "rename", "link", "fsync", "unlink", "rmdir", "mkdir")  # what changes names, and what syncs


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed before its ``step``-th change of a name; False where it ended before."""
    process = os.fork()
    if process == 0:
        _die_at(step)
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed for another reason"
    return os.WIFSIGNALED(status)


def every_kill(work: Callable[[], object], most: int = 400, stride: int = 1) -> Iterator[int]:
    """Each step at which ``work`` can be killed, after it was; the body of the loop looks, and makes all as it was."""
    for step in itertools.islice(itertools.count(1, stride), most):
        if not killed_at(step, work):
            return
        yield step
    raise AssertionError(f"the work takes more than {most} steps")


def at_once(*works: Callable[[], object]) -> list[int]:
    """Run works in processes of their own that begin together; their exit codes (0: ended well, 3: raised)."""
    read, write = os.pipe()
    children = []
    for work in works:
        if (process := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)  # until the parent closes its end
            try:
                work()
            except BaseException:
                os._exit(3)
            os._exit(0)
        children.append(process)
    os.close(read)
    os.close(write)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]


def dead_mark() -> str:
    """The mark of a process of this computer that has ended."""
    from NeonatalSegLib.files import leftovers

    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return leftovers.mark().replace(f"-{os.getpid()}-", f"-{process}-")


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path in it; what a killed process left shows too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _die_at(step: int) -> None:
    count = itertools.count(1)

    def dying(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))
