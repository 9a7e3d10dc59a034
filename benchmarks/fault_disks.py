"""A full disk under every command that writes: the second part of ``benchmarks/faults.py``.

On Linux as root a file system of 20 MB in memory is mounted for it. Elsewhere the size of a single file is limited
instead, which stops a write in the middle as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.crash_safety import GRID, RATER, SCAN, make_study, pattern
from benchmarks.fault_kills import Batch, own_store, small_model
from NeonatalSegLib.annotation.session import AnnotationSession, create_study
from NeonatalSegLib.annotation.study import read_study
from NeonatalSegLib.datasets import cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.folders import Evaluation, TissueResult
from NeonatalSegLib.models import store
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.scans.write import replace_image
from NeonatalSegLib.segmentation.outputs import write_outputs
from NeonatalSegLib.tissues import TISSUES

SIZE_MB = 20
HIDDEN = (".part-", ".neonatalseg-", ".building-", ".new-", ".trash-")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A disk of 20 MB at ``folder``; gives how it was made: "tmpfs", or "file size limit" where none may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "neonatalseg-faults", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield "tmpfs" if mounted else "file size limit"
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def commands(folder: Path) -> dict[str, Callable[[int], object]]:
    """What writes, on files that are there already: each takes the number of the try."""
    own_store(folder)
    slices = {planned.key: planned for planned in make_study(folder / "made").slices}
    keys, known = list(slices), read_study(folder / "made" / "study")
    prefill = known.prefill(SCAN)
    batch = Batch(folder)
    grey = GRID.image(np.random.default_rng(2).random(GRID.shape, np.float32))
    replace_image(grey, folder / "grey.nrrd")
    origin = small_model(folder / "origin", 0.5)
    small_model(folder / "models" / "one", 1.0)
    small_model(folder / "models" / "two", 2.0)
    network = _network_of(origin)
    zipped = store.export_model("one", folder / "out.zip")
    known.plan.write(folder / "plan.json")
    index = {"format": 1, "spacing_mm": 1.0, "subjects": {}}
    rows = [TissueResult(f"s{n}", t.key, 0.9, 1.0, 0.5, 1.0, 1.0) for n in range(200) for t in TISSUES]

    def annotate(number: int) -> None:
        with AnnotationSession.open(folder / "made" / "study", RATER) as session:
            session.complete(keys[number % len(keys)], pattern(slices[keys[number % len(keys)]], number), 1.0)

    def cached(number: int) -> None:
        arrays = np.full((2, 40, 40, 40), number, np.float16), np.zeros((40, 40, 40), np.uint8)
        saved = cache._save(folder / "cache", "sub-01", *arrays, None)
        cache._write_index(folder / "cache", {**index, "subjects": {"sub-01": {"age_weeks": float(number), **saved}}})

    (folder / "cache").mkdir()
    for first in (annotate, cached):
        first(0)
    return {
        "annotate": annotate,
        "make a study": lambda n: create_study(folder / f"new{n}", known.plan, known.scans, {SCAN: prefill}),
        "segment, batch": lambda n: write_outputs(batch._result(n), batch.scan, batch.folder, picture=False),
        "export an image": lambda n: replace_image(grey, folder / "grey.nrrd"),
        "save a model": lambda n: small_model(folder / "models" / "two", float(n)),
        "finetune": lambda n: store.add_version(network, origin.network, origin, {"seconds": float(n)}),
        "models accept": lambda n: store.accept(("one", "two")[n % 2]),
        "models export": lambda n: store.export_model("one", zipped),
        "models import": lambda n: store.import_model(zipped, f"visitor{n}"),
        "evaluate": lambda n: Evaluation(rows, True, []).write_tsv(folder / "scores.tsv"),
        "plan": lambda n: known.plan.write(folder / "plan.json"),
        "train, prepare": cached,
    }


@dataclass
class Tries:
    """How often the disk was full, how often the command said so, and what was wrong."""

    tries: int = 0
    told: int = 0
    wrong: list[str] = field(default_factory=list)


def fill_once(
    name: str, command: Callable[[int], object], folder: Path, number: int, free: int, how: str
) -> tuple[bool, list[str]]:
    """Run a command with ``free`` bytes left; whether it said so, and what is wrong with that and what it left."""
    before = _state(folder)
    filler = folder / "filler"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "tmpfs":
        with filler.open("wb") as stream:
            room = shutil.disk_usage(folder).free - free
            os.posix_fallocate(stream.fileno(), 0, max(1, room))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, limit[1]))
    said = None
    try:
        command(number)
    except NeonatalSegError as error:
        said = str(error)
    except OSError as error:  # train prepares arrays: its command line tells an OSError as it is
        said = f"{type(error).__name__}: {error}"
    except Exception as error:
        return False, [f"{name}: {type(error).__name__}: {error}"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        filler.unlink(missing_ok=True)
    after = _state(folder)
    wrong = []
    if said is not None:
        changed = [path for path in before if after.get(path) != before[path]]
        if name == "train, prepare":  # several arrays and one index: each whole, and the index names what is old
            changed = [path for path in changed if path not in after]
        wrong += [f"{name}: said {said!r}, and changed {path}" for path in changed[:1]]
        wrong += [
            f"{name}: left {path}"
            for path in after
            if path not in before and path.rsplit("/", 1)[-1].startswith(HIDDEN)
        ]
    return said is not None, wrong + _broken(name, folder)


def _broken(name: str, folder: Path) -> list[str]:
    """Whether all that is there can be read, whatever was said."""
    try:
        with AnnotationSession.open(folder / "made" / "study", RATER) as session:
            session.label_map(SCAN)
        for model in (p for p in (folder / "models").iterdir() if not p.name.startswith(".")):
            find_model(model.name).check_weights()
        find_model().check_weights()
        cache.read_cache(folder / "cache")[0].image().sum()
        for made in folder.glob("new*"):
            if (made / "study.json").exists():
                read_study(made).prefill(SCAN)
            shutil.rmtree(made)
        for path in (folder / "models").glob("visitor*"):
            shutil.rmtree(path)
    except Exception as error:
        return [f"{name}: afterwards {type(error).__name__}: {error}"]
    return []


def _state(folder: Path) -> dict[str, bytes]:
    """Every file but locks and the notes of who is at work, by its path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("lock", ".lock", "filler")
    }


def _network_of(model: object) -> object:
    import torch

    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.full((4, 4), 0.5))
    return network


def fill(tries: int, folder: Path, seed: int = 0) -> tuple[str, dict[str, Tries]]:
    """So many tries under every command; how the disk was made, and by command what came of it."""
    chance, found = random.Random(seed), dict[str, Tries]()
    folder.mkdir(parents=True, exist_ok=True)
    with small_disk(folder) as how:
        place = folder / "disk"
        place.mkdir()
        for name, command in commands(place).items():
            found[name] = Tries(tries)
            for number in range(1, tries + 1):
                free = int(10 ** chance.uniform(1, 5.5))
                told, wrong = fill_once(name, command, place, number, free, how)
                found[name].told += told
                found[name].wrong += wrong
    return how, found
