"""Kills at random moments, with two writers in half of them: the first part of ``benchmarks/faults.py``.

Every scene has a folder, works that run in forked processes, and a look at what is left. A work tells through a pipe
what it begins and what it has ended; what was ended must be there after the kill.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.crash_safety import GRID, RATER, SCAN, make_study, pattern
from NeonatalSegLib.annotation.session import AnnotationSession, create_study, read_annotations
from NeonatalSegLib.annotation.study import read_study
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.together import finish_left
from NeonatalSegLib.models import archive, store
from NeonatalSegLib.models.bundle import Model, read_model, save_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.scans.scan import make_scan
from NeonatalSegLib.segmentation.outputs import is_as_written, write_outputs
from NeonatalSegLib.segmentation.segmenter import Segmentation
from NeonatalSegLib.tissues import TISSUES

FIRST_S, MOST_S = 0.25, 5.0  # the longest time from the start of the works to the kill, at first and at most
TINY = NetworkSettings((2, 4, 4), 1.5, (16, 16, 16), heads=1)
Say = Callable[[str], None]


def own_store(folder: Path) -> None:
    """Models, and what their user agreed to, below ``folder`` from now on."""
    os.environ["NEONATALSEG_MODELS"] = str(folder / "models")


def small_model(folder: Path, value: float) -> Model:
    """A model of one small tensor: what is written and hashed is a real bundle, what it computes plays no part."""
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.full((4, 4), value))
    return save_model(network, TINY, folder, description=str(value), card=f"# {value}\n")


class Annotate:
    """Slices completed by one rater. The second writer is one who deleted the first one's lock, or is refused."""

    loses = "completed slices"

    def __init__(self, folder: Path) -> None:
        own_store(folder)
        self.slices = {planned.key: planned for planned in make_study(folder).slices}
        self.study, self.number, self.claims = folder / "study", 0, dict[str, set[int]]()

    def before(self, chance: random.Random, writers: int) -> None:
        self.number += 1000
        self.unlock = writers == 2 and chance.random() < 0.5

    def work(self, writer: int, say: Say) -> None:
        if writer and self.unlock:
            time.sleep(0.02)
            (self.study / "raters" / RATER / "lock").unlink(missing_ok=True)
        with AnnotationSession.open(self.study, RATER) as session:
            keys = list(self.slices)[writer::2] + list(self.slices)[1 - writer :: 2]
            for number, key in enumerate(keys * 3, self.number + 500 * writer):
                say(f"complete {key} {number}")
                session.complete(key, pattern(self.slices[key], number), seconds=1.0)
                say(f"completed {key} {number}")

    def look(self, said: list[list[str]]) -> list[str]:
        ended: set[str] = set()
        for word, key, number in (line for line in said if len(line) == 3):
            self.claims.setdefault(key, set()).add(int(number))
            if word == "completed":
                ended.add(key)
        self.ended = getattr(self, "ended", set()) | ended
        wrong = []
        with AnnotationSession.open(self.study, RATER) as session:
            states = {item.slice.key: item.state for item in session.items}
            record = session._record.done
            for key in self.ended:
                patterns = [pattern(self.slices[key], n) for n in self.claims[key]]
                if states[key] != "done" or not any(np.array_equal(record[key].labels, p) for p in patterns):
                    wrong.append(f"the slice {key} was completed and is {states[key]}")
        if self.ended and read_annotations(self.study)[0].grid != GRID:
            wrong.append("the annotations are of another grid")
        return wrong


class Make:
    """One study, made by one process or by two at once; the user's own copies of scans lie in its folder."""

    loses = "studies that were made"

    def __init__(self, folder: Path) -> None:
        own_store(folder)
        make_study(folder)
        self.known, self.folder, self.number = read_study(folder / "study"), folder, 0
        self.prefill = self.known.prefill(SCAN)

    def before(self, chance: random.Random, writers: int) -> None:
        self.number += 1
        self.new = self.folder / f"new{self.number}"
        (self.new / "scans").mkdir(parents=True)
        (self.new / "scans" / "sub-01_T2w.nii.gz").write_bytes(b"mine")

    def work(self, writer: int, say: Say) -> None:
        create_study(self.new, self.known.plan, self.known.scans, {SCAN: self.prefill})
        say("made")

    def look(self, said: list[list[str]]) -> list[str]:
        wrong = []
        there = (self.new / "study.json").exists()
        if ["made"] in said and not there:
            wrong.append("a study that was made is gone")
        if not there:
            create_study(self.new, self.known.plan, self.known.scans, {SCAN: self.prefill})
        if not (read_study(self.new).prefill(SCAN) == self.prefill).all():
            wrong.append("the pre-fill is another one")
        if (self.new / "scans" / "sub-01_T2w.nii.gz").read_bytes() != b"mine":
            wrong.append("a file of the user's was touched")
        shutil.rmtree(self.new)
        return wrong


class Store:
    """Models accepted, discarded, rolled back and saved over, by one process or two."""

    loses = "models that were accepted"

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder / "models", 0
        own_store(folder)
        self.origin = small_model(folder / "origin", 0.5)
        small_model(self.folder / "kept", 0.5)

    def before(self, chance: random.Random, writers: int) -> None:
        self.names = [f"m{self.number + n}" for n in range(6)]
        self.number += 6
        for name in self.names:
            shutil.copytree(self.origin.folder, self.folder / name)

    def work(self, writer: int, say: Say) -> None:
        for name in self.names if writer == 0 else self.names[::-1]:
            with contextlib.suppress(NeonatalSegError):
                if writer == 0:
                    store.accept(name)
                    say(f"accepted {name}")
                    small_model(self.folder / "kept", 0.25)
                else:
                    say(f"discard {name}")
                    store.discard(name)

    def look(self, said: list[list[str]]) -> list[str]:
        wrong = []
        events = [(e.event, e.name) for e in store.history()]
        doomed = {name for word, name in (line for line in said if len(line) == 2) if word == "discard"}
        for word, name in (line for line in said if len(line) == 2):
            if word != "accepted":
                continue
            if ("accept", name) not in events or (name not in doomed and not (self.folder / name).is_dir()):
                wrong.append(f"{name} was accepted and is gone")
        find_model().check_weights()
        for model in (p for p in self.folder.iterdir() if not p.name.startswith(".")):
            read_model(model).check_weights()
        if store.current_name() in doomed and not (self.folder / store.current_name()).is_dir():
            wrong.append("the current model is gone")
        for name in self.names:
            if name != store.current_name():
                shutil.rmtree(self.folder / name, ignore_errors=True)
        return wrong


class Export:
    """One zip, written again and again from two versions of a model."""

    loses = "exports"

    def __init__(self, folder: Path) -> None:
        own_store(folder)
        self.folder = folder
        for number in (1, 2):
            small_model(folder / "models" / f"e{number}", float(number))
        self.file = store.export_model("e1", folder / "out.zip")

    def before(self, chance: random.Random, writers: int) -> None:
        pass

    def work(self, writer: int, say: Say) -> None:
        for number in range(200):
            store.export_model(f"e{1 + (number + writer) % 2}", self.file, force=True)
            say("written")

    def look(self, said: list[list[str]]) -> list[str]:
        name = archive.name_in_zip(self.file)
        archive.read_zip(self.file, self.folder / "read")
        model = read_model(self.folder / "read")
        model.check_weights()
        shutil.rmtree(self.folder / "read")
        return [] if model.description == {"e1": "1.0", "e2": "2.0"}[name] else ["the zip mixes two models"]


class Batch:
    """The files of one scan's result, written by one process or by two."""

    loses = "results"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "out"
        grey = np.random.default_rng(1).random(GRID.shape, np.float32)
        self.scan = make_scan(None, GRID.image(grey), name="sub-01")
        write_outputs(self._result(1), self.scan, self.folder, picture=False)
        (self.folder / "notes.txt").write_text("mine")

    def _result(self, number: int) -> Segmentation:
        labels = np.random.default_rng(number).integers(0, 10, GRID.shape, np.uint8)
        return Segmentation(GRID.image(labels), {t.key: float(number) for t in TISSUES}, model_hash=str(number))

    def before(self, chance: random.Random, writers: int) -> None:
        pass

    def work(self, writer: int, say: Say) -> None:
        for number in range(200):
            write_outputs(self._result(2 + (number + writer) % 5), self.scan, self.folder, picture=False)
            say("written")

    def look(self, said: list[list[str]]) -> list[str]:
        from NeonatalSegLib.files.settings import read_object

        finish_left(self.folder)
        facts = read_object(self.folder / "sub-01_dseg.json", "side-car")
        wrong = [] if is_as_written(self.folder, facts) else ["label map, volumes and side-car are not of one result"]
        if f"\t{facts['Model']['SHA256']}.000" not in (self.folder / "sub-01_volumes.tsv").read_text():
            wrong.append("the volumes are another result's")
        if left := [p.name for p in self.folder.iterdir() if p.name.startswith(".")]:
            wrong.append(f"{left[0]} is left")
        if (self.folder / "notes.txt").read_text() != "mine":
            wrong.append("a file of the user's was touched")
        return wrong


SCENES = {"annotate, complete": Annotate, "make a study": Make, "accept, discard, save": Store, "export": Export,
          "batch": Batch}  # fmt: skip


def kill_once(scene: Any, chance: random.Random, writers: int) -> tuple[int, list[str]]:
    """Start the works, kill one of them at a random moment (the other a little later), and look.

    The moment is drawn from a span that follows how fast this computer is just now, so that a few works end before it.

    Returns:
        How many works had ended, and what is wrong: works that crashed by themselves, and what the look found.
    """
    scene.before(chance, writers)
    children = [_start(scene, writer) for writer in range(writers)]
    longest = getattr(scene, "longest", FIRST_S)
    time.sleep(chance.uniform(0, longest))
    chance.shuffle(children)
    said: list[list[str]] = []
    for process, stream in children:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with os.fdopen(stream, "rb") as told:
            lines = told.read().decode().splitlines(keepends=True)
        said += [line.split() for line in lines if line.endswith("\n")]
        time.sleep(chance.uniform(0, 0.03))
    crashed = [" ".join(line) for line in said if line[:1] == ["crashed"]]
    said = [line for line in said if line[:1] != ["crashed"]]
    ended = sum(line[0] in ("completed", "made", "accepted", "written") for line in said if line)
    scene.longest = min(MOST_S, longest * 1.4) if ended == 0 else longest / 1.4 if ended > 6 else longest
    try:
        return ended, crashed + scene.look(said)
    except Exception as error:  # a figure like any other: told, and the campaign goes on
        return ended, [*crashed, f"{type(error).__name__}: {error}"]


def _start(scene: Any, writer: int) -> tuple[int, int]:
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        try:
            with contextlib.suppress(NeonatalSegError):  # a second writer that is refused has ended
                scene.work(writer, lambda text: os.write(write, f"{text}\n".encode()))
        except BaseException as error:  # whatever it is, it is told: a work that does nothing loses nothing either
            os.write(write, f"crashed {error!a}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    return process, read
