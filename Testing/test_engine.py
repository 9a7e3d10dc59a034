"""The compute process, with the real worker in its own process.

Faults are put into that real process by a ``sitecustomize.py`` that the interpreter runs when it starts: an import that
never returns, a full disk, noise on its output, a death. Nothing of the project is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from NeonatalSegLib.engine import Client, EngineError, Request, folders, protocol
from NeonatalSegLib.engine.interpreter import find_python
from NeonatalSegLib.engine.worker import describe
from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.files import leftovers
from NeonatalSegLib.networks.openvino_engine import has_wheels

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0  # generous: a cold disk and two busy cores
STOP_S = 8.0  # far less than a user would take for a hang; a quiet machine needs the 1.5 s of grace and a moment

STUCK_IMPORT = """
    import importlib.abc, sys, threading
    class Stuck(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "SimpleITK":
                print("stuck now", file=sys.stderr, flush=True)
                threading.Event().wait()
    sys.meta_path.insert(0, Stuck())
"""

MakeClient = Callable[..., Client]


def fault_environment(folder: Path, code: str) -> dict[str, str]:
    """An environment whose Python runs ``code`` before anything else."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code), encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def temporary_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for private folders in a test, so that anything left there is seen."""
    root = tmp_path / "temporary"
    root.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(root))
    return root


@pytest.fixture
def make_client(tmp_path: Path, temporary_root: Path) -> Iterator[MakeClient]:
    """Clients that are closed after the test; ``fault`` is code for their worker's sitecustomize."""
    made: list[Client] = []

    def make(fault: str | None = None, **arguments: object) -> Client:
        if fault is not None:
            arguments["environment"] = fault_environment(tmp_path / f"fault{len(made)}", fault)
        made.append(Client(**arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for client in made:
        client.close()
    assert list(temporary_root.iterdir()) == []


def first_progress(client: Client, op: str, **fields: object) -> tuple[Request, psutil.Process]:
    """Start ``op``, return when its first progress event came, with the worker's process."""
    started = threading.Event()
    client._on_event = lambda _, event: started.set() if event.name == "progress" else None
    request = client.request(op, **fields)
    assert started.wait(START_S), request.final
    assert client.worker_pid is not None
    return request, psutil.Process(client.worker_pid)


def answers(client: Client) -> None:
    """The worker is alive and understands: an operation that does not exist comes back with words."""
    final = client.request("no such thing").wait(START_S)
    assert final is not None and final.name == "error" and "no such thing" in final.message, final


# ---------------------------------------------------------------- protocol


def test_messages_survive_the_line() -> None:
    message = {"id": 3, "op": "segment", "t1": "/tmp/Zoë\n脳.nii.gz"}
    line = protocol.encode(message)
    assert line.count(b"\n") == 1 and line.isascii()
    assert protocol.decode(line) == message


@pytest.mark.parametrize(
    "line", [b"", b"loading...\n", b"[1, 2]\n", b'{"id": 1}\n', b'{"id": "1", "event": "x"}', b"\xff"]
)
def test_anything_else_is_no_event(line: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.decode_event(line)


def test_errors_are_told_in_words() -> None:
    full = describe(OSError(errno.ENOSPC, "No space left on device", "/tmp/x.nrrd"))
    assert full["kind"] == "user" and "disk is full" in full["message"] and "/tmp/x.nrrd" in full["message"]
    assert "memory" in describe(MemoryError())["message"]
    assert "memory" in describe(RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"))["message"]
    assert describe(NeonatalSegError("The file a.nii is empty.")) == {
        "kind": "user",
        "message": "The file a.nii is empty.",
        "detail": "",
    }
    try:
        raise KeyError("conv1.weight")
    except KeyError as error:
        unexpected = describe(error)
    assert unexpected["kind"] == "internal" and "conv1.weight" in unexpected["message"]
    assert "Traceback" in unexpected["detail"] and "\n" not in unexpected["message"]


def test_engine_imports_nothing_heavy() -> None:
    code = """
        import sys, NeonatalSegLib.engine
        print([name for name in ("torch", "SimpleITK", "numpy", "monai") if name in sys.modules])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# ---------------------------------------------------------------- start, garbage, death


def test_unknown_operation(make_client: MakeClient) -> None:
    answers(make_client())


def test_private_folder_is_private(make_client: MakeClient) -> None:
    client = make_client()
    folder = client.new_folder()
    assert folder.is_dir() and folder.parent.parent.is_dir()
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent.stat().st_mode & 0o777 == 0o700


def test_worker_runs_by_its_path() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    worker = ROOT / "NeonatalSegLib" / "engine" / "worker.py"
    done = subprocess.run(
        [sys.executable, str(worker)],
        input=b'{"id": 1, "op": "nothing"}\n',
        cwd=Path(sys.prefix),
        env=environment,
        capture_output=True,
        timeout=START_S,
        check=False,
    )
    first = protocol.decode_event(done.stdout.splitlines()[0])
    assert done.returncode == 0 and first.name == "ready", done.stderr


def test_stray_prints_do_not_reach_the_pipe() -> None:
    code = """
        import os, sys
        from NeonatalSegLib.engine.worker import claim_streams
        inlet, outlet = claim_streams()
        print("a library's greeting", flush=True)
        os.write(1, b"written by C code")
        os.system("echo a child process")
        outlet.write(inlet.readline().upper())
        outlet.flush()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, input=b"hello\n", cwd=ROOT, capture_output=True, timeout=START_S, check=True)
    assert done.stdout == b"HELLO\n"
    assert b"greeting" in done.stderr and b"C code" in done.stderr and b"a child process" in done.stderr


def test_garbage_between_messages_is_skipped(make_client: MakeClient) -> None:
    noise = r"""
        import os
        os.write(1, b'Loading...\n{"id": 2}\n[1]\n\xff\xfe\nnull\n')
    """
    client = make_client(noise)
    answers(client)
    client.close()
    assert "Loading..." in client.last_log and "null" in client.last_log


def test_only_garbage_ends_after_the_timeout(make_client: MakeClient) -> None:
    client = make_client(
        "import os, threading\nos.write(1, b'nonsense\\n' * 500)\nthreading.Event().wait()", start_timeout_s=2
    )
    with pytest.raises(EngineError, match=r"no answer within 2 s.* 500 lines"):
        client.request("hello").result(START_S)
    assert not client.running


def test_python_that_is_not_there(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(python=tmp_path / "no" / "python3")
    request = client.request("hello")
    final = request.wait(START_S)
    assert final is not None and final.get("kind") == "user"
    assert str(tmp_path / "no" / "python3") in final.message and "\n" not in final.message
    assert request.poll() == [final]


def test_python_inside_slicer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's own executable must never be started as if it were Python: it would open a second Slicer."""
    python = tmp_path / "bin" / ("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
    python.parent.mkdir()
    python.touch(mode=0o755)
    assert find_python() == Path(sys.executable)
    monkeypatch.setenv("SLICER_HOME", str(tmp_path))
    for executable in ("", str(tmp_path / "bin" / "SlicerApp-real")):
        monkeypatch.setattr(sys, "executable", executable)
        assert find_python() == python


def test_what_json_cannot_say_is_refused_at_once(make_client: MakeClient) -> None:
    client = make_client()
    with pytest.raises(TypeError):
        client.request("segment", t1=b"bytes")
    answers(client)


def test_worker_that_dies_at_start(make_client: MakeClient) -> None:
    client = make_client("import os\nos.write(2, b'the library is broken\\n')\nos._exit(3)")
    with pytest.raises(EngineError, match=r"could not start.*exit code 3.*the library is broken"):
        client.request("hello").result(START_S)


def test_python_without_an_engine(make_client: MakeClient) -> None:
    client = make_client("import sys\nfor name in ('torch', 'openvino'):\n    sys.modules[name] = None")
    final = client.request("hello").wait(START_S)
    assert final is not None and final.name == "error" and final["kind"] == "user", final
    wanted = "openvino" if has_wheels() else "torch"
    assert final["missing"] == wanted and f"no package '{wanted}'" in final.message


def test_killed_worker_is_told_and_replaced(make_client: MakeClient) -> None:
    client = make_client(STUCK_IMPORT)
    request, worker = first_progress(client, "hello")
    waiting = client.request("hello")
    worker.kill()
    with pytest.raises(
        EngineError, match=r"stopped unexpectedly: it (was ended by signal 9|ended with exit code)"
    ) as told:
        request.result(10)
    assert "\n" not in str(told.value)
    assert waiting.wait(10) is not None and waiting.final.name == "error"
    assert not request.folder.exists()
    answers(client)
    assert client.worker_pid != worker.pid


# ---------------------------------------------------------------- cancel


def test_cancel_of_a_stuck_worker_kills_it_in_time(make_client: MakeClient) -> None:
    client = make_client(STUCK_IMPORT)
    request, worker = first_progress(client, "hello")
    request.cancel()
    assert request.final is None and worker.is_running()  # it did not wait for the end of the grace
    with pytest.raises(Cancelled):
        request.result(STOP_S)
    assert request.final["forced"] is True
    assert not psutil.wait_procs([worker], timeout=5)[1]
    answers(client)


def test_cancel_before_the_turn_came(make_client: MakeClient) -> None:
    """What the worker is busy with, a fine-tuning of an hour perhaps, is not killed for it."""
    client = make_client()
    first, worker = first_progress(client, "hello")
    second = client.request("hello")
    second.cancel(grace_s=0.0)
    assert second.final is not None and second.final.name == "cancelled" and not second.folder.exists()
    assert first.result(START_S).name == "result" and client.worker_pid == worker.pid


def test_the_one_before_can_still_be_cancelled(make_client: MakeClient) -> None:
    client = make_client(STUCK_IMPORT)
    first, worker = first_progress(client, "hello")
    second = client.request("hello")
    second.cancel()
    assert second.final is not None and second.final["forced"] is False
    first.cancel()
    assert first.wait(STOP_S) is not None and first.final["forced"] is True
    assert not psutil.wait_procs([worker], timeout=5)[1]
    answers(client)


def test_cancel_after_the_end_does_nothing(make_client: MakeClient) -> None:
    client = make_client()
    request = client.request("no such thing")
    final = request.wait(START_S)
    request.cancel(grace_s=0.0)
    assert request.final is final
    answers(client)


# ---------------------------------------------------------------- nothing is left behind


def test_close_leaves_nothing(make_client: MakeClient, temporary_root: Path) -> None:
    client = make_client(STUCK_IMPORT)
    request, worker = first_progress(client, "hello")
    (client.new_folder() / "t1.nrrd").write_bytes(b"image")
    asked = time.perf_counter()
    client.close()
    assert time.perf_counter() - asked < STOP_S
    assert not worker.is_running() and list(temporary_root.iterdir()) == []
    assert request.final is not None and request.final.name == "cancelled"
    client.close()
    with pytest.raises(EngineError, match="closed"):
        client.request("hello")


def test_a_private_folder_that_was_cleaned_away_is_made_again(make_client: MakeClient, temporary_root: Path) -> None:
    client = make_client()
    answers(client)
    worker, (private,) = client.worker_pid, temporary_root.iterdir()
    shutil.rmtree(private)
    answers(client)
    assert client.worker_pid == worker and private.is_dir()
    if os.name == "posix":
        assert private.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(temporary_root)  # all of it: told in words, and no longer once it is back
    with pytest.raises(EngineError, match=r"temporary folder.*free some space"):
        client.request("hello")
    temporary_root.mkdir()
    answers(client)


def test_many_requests_leave_no_file(make_client: MakeClient, temporary_root: Path) -> None:
    client = make_client()
    for _ in range(50):
        answers(client)
    (private,) = temporary_root.iterdir()
    assert list(private.iterdir()) == []


PARENT = """
    import os, subprocess, sys, threading
    from NeonatalSegLib.engine import Client
    started = threading.Event()
    if __name__ == "__main__":
        fault = {**os.environ, "PYTHONPATH": sys.argv[1]}
        client = Client(environment=fault, on_event=lambda *_: started.set())
        request = client.request("hello")
        (request.folder / "t1.nrrd").write_bytes(b"image")
        started.wait()
        if sys.argv[2] == "grandchild":  # holds the worker's stdin open beyond the parent's end
            os.set_inheritable(client._process._popen.stdin.fileno(), True)
            subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False)
        print(client.worker_pid, flush=True)
        if sys.argv[2] != "exit":
            threading.Event().wait()
"""


@pytest.mark.parametrize("end", ["kill", "grandchild", "exit"])
def test_parent_gone(end: str, tmp_path: Path, temporary_root: Path) -> None:
    if end == "grandchild" and os.name != "posix":
        pytest.skip("handles are inherited by other rules on Windows")
    fault = fault_environment(tmp_path / "fault", STUCK_IMPORT)["PYTHONPATH"]
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary_root), "TEMP": str(temporary_root)}
    parent = subprocess.Popen(
        [sys.executable, str(script), fault, end],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None and parent.stdin is not None
    worker = []
    with contextlib.suppress(psutil.NoSuchProcess):  # gone already
        worker = [psutil.Process(int(parent.stdout.readline()))]
    if end != "exit":
        parent.kill()
    parent.wait(10)
    alive = psutil.wait_procs(worker, timeout=10)[1]
    assert not alive, alive[0].status()
    assert list(temporary_root.iterdir()) == []
    parent.stdin.close()
    parent.stdout.close()


def test_stale_folders_of_the_dead_are_removed(temporary_root: Path) -> None:
    """At once, with the scans in them; not those of the living, of other computers, and of other programs."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = leftovers.mark()
    dead = mark.replace(f"-{os.getpid()}-", f"-{gone.pid}-")
    stays = [f"neonatalseg-{mark}-mine", f"neonatalseg-{'0' * 8}-{gone.pid}-{'0' * 8}-x", f"other-{dead}", "other"]
    for name in (f"neonatalseg-{dead}-new", *stays):
        (temporary_root / name).mkdir()
        (temporary_root / name / "t1.nrrd").touch()
    mine = folders.make_private_folder()
    assert sorted(path.name for path in temporary_root.iterdir()) == sorted([*stays, mine.name])
