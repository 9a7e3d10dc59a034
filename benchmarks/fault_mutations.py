"""Bundles, studies and ledgers with mistakes in them: the third part of ``benchmarks/faults.py``.

Each is opened, and used, in a forked process that may take 1 GB more than it has: it must work or be refused in words.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.crash_safety import RATER, make_study, pattern
from NeonatalSegLib.annotation.session import AnnotationSession, read_annotations
from NeonatalSegLib.annotation.study import read_study
from NeonatalSegLib.annotation.trust import LeavesStudyError
from NeonatalSegLib.cli.models import _lines
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import read_model, save_model
from NeonatalSegLib.models.registry import installed_models
from NeonatalSegLib.models.versions import list_versions
from NeonatalSegLib.networks.network import NetworkSettings, build_network

MOST_BYTES = 1_000_000_000
TINY = NetworkSettings((2, 4, 4), 1.5, (16, 16, 16), heads=1)
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 62, 1e300, "", "x" * 100_000, "../../etc/passwd", "/dev/zero", "a\nb\x1b[2J", [], [[]], {},
    {"a": {"b": [1]}}, [1 << 40] * 3, ["x"] * 5000, "NaN", 3.5, "\ud800",
)  # fmt: skip
LINEAGE = {
    "strategy": "full", "slices": ["a/axial/3"], "held_out_slices": [], "scans": [{"name": "a", "age_weeks": 40.0}],
    "raters": ["Kim"], "before": {"csf": 0.5}, "after": {"csf": 0.6}, "before_mean": 0.5, "after_mean": 0.6,
}  # fmt: skip


def make_originals(folder: Path) -> None:
    """A model with a lineage and its zip, and a study with two completed slices."""
    facts = {"lineage": {**LINEAGE, "parent": "base", "parent_sha256": "0" * 64, "date": "2026-01-01"}}
    facts |= {
        "training_subjects": ["a"],
        "ages_weeks": [38.0, 42.0],
        "figures": {"T1": {"mean_dsc_no_bg": 0.9, "subjects": 3}},
    }
    save_model(build_network(TINY), TINY, folder / "bundle", description="small", card="# small\n", facts=facts)
    slices = {planned.key: planned for planned in make_study(folder / "made").slices}
    with AnnotationSession.open(folder / "made" / "study", RATER) as session:
        for number, key in enumerate(list(slices)[:3]):
            session.complete(key, pattern(slices[key], number), 1.0)


def mutate(folder: Path, files: list[str], chance: random.Random) -> str:
    """One mistake in one of the files; in words."""
    name = chance.choice([file for file in files if (folder / file).is_file()])
    path = folder / name
    kind = chance.choice(["bytes", "bytes", "cut", "types", "types", "types", "link", "folder", "long", "empty"])
    data = bytearray(path.read_bytes())
    if kind == "types" and path.suffix in (".json", ".jsonl"):
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        number = chance.randrange(len(lines))
        lines[number] = json.dumps(_odd(json.loads(lines[number]), chance))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    elif kind == "cut":
        path.write_bytes(data[: chance.randrange(len(data) + 1)])
    elif kind == "link":
        path.unlink()
        path.symlink_to(chance.choice(["/dev/zero", "/etc/passwd", "/nowhere", str(folder), str(path)]))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "long":
        path.write_bytes(data + chance.choice([b" ", b"\0", b"{"]) * 3_000_000)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
    return f"{kind} in {name}"


def _odd(value: Any, chance: random.Random) -> Any:
    """The same JSON with another value, or another name, somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {("x" * 300 if k == key else k): v for k, v in value.items()}
        return {**value, key: _odd(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(min(len(value), 40))
        return [*value[:place], _odd(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def use_bundle(folder: Path) -> None:
    """All that is done with a model of a stranger: listed, read, packed, taken over, loaded."""
    os.environ["NEONATALSEG_MODELS"] = str(folder / "models")
    shutil.copytree(folder / "bundle", folder / "models" / "odd", symlinks=True)
    models, _ = installed_models()
    list_versions()
    for model in models:
        if model.folder.parent == folder / "models":
            _lines(model, "")
    file = folder / "odd.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((folder / "bundle").rglob("*")):
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                archive.write(path, f"odd/{path.relative_to(folder / 'bundle').as_posix()}")
    refused = None
    for do in (lambda: read_model(folder / "bundle").load_network(), lambda: store.import_model(file, "visitor")):
        try:
            do()
        except NeonatalSegError as error:
            refused = error
    if refused is not None:
        raise refused


def use_zip(folder: Path) -> None:
    os.environ["NEONATALSEG_MODELS"] = str(folder / "models")
    store.import_model(folder / "bundle.zip", "visitor").load_network()


def use_study(folder: Path) -> None:
    """All that is done with a study of a stranger: read for fine-tuning, opened, a slice completed, by two raters."""
    refused = None
    for do in (
        lambda: read_annotations(folder / "study"),
        lambda: _annotate(folder, RATER),
        lambda: _annotate(folder, "Bo"),
    ):
        try:
            do()
        except NeonatalSegError as error:
            refused = error
    if refused is not None:
        raise refused


def _annotate(folder: Path, rater: str) -> None:
    with AnnotationSession.open(folder / "study", rater) as session:
        key = session.items[-1].slice.key
        session.complete(key, session.prefill(key, "model"), 1.0)


LEDGER_FILES = ("ledger.jsonl", "ledger.jsonl", "sub-01_dseg.nii.gz")
KINDS: dict[str, tuple[str, list[str], Callable[[Path], None]]] = {
    "bundle": ("bundle", ["configs/metadata.json"] * 3 + ["models/model.pt", "docs/README.md"], use_bundle),
    "zip": ("bundle.zip", [""], use_zip),
    "study": ("made/study", ["study.json", "plan.json", "prefill/sub-01_dseg.nii.gz"], use_study),
    "ledger": ("made/study", [f"raters/{RATER}/{name}" for name in LEDGER_FILES], use_study),
}  # fmt: skip


def try_once(originals: Path, place: Path, kind: str, chance: random.Random) -> tuple[str, str]:
    """What was changed, and what came of it: "opened", "refused", or what must not be."""
    source, files, use = KINDS[kind]
    shutil.rmtree(place, ignore_errors=True)
    (place / "models").mkdir(parents=True)
    if kind == "zip":
        shutil.copy(originals / source, place)
        change = mutate(place, ["bundle.zip"], chance)
    else:
        target = place / Path(source).name
        shutil.copytree(originals / source, target)
        change = mutate(target, files, chance)
    return change, _in_a_process(lambda: use(place))


def _in_a_process(do: Callable[[], None]) -> str:
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
            limit = int(stream.read().split()[0]) * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            do()
            said = "opened"
        except LeavesStudyError:
            said = "refused"
        except NeonatalSegError as error:
            said = "refused" if str(error).strip() else "refused without a word"
        except BaseException as error:
            import traceback

            said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        os.write(write, said.encode("utf-8", "backslashreplace")[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        said = told.read().decode("utf-8", "replace")
    os.waitpid(process, 0)
    return said or "the process died"


def mutations(tries: int, folder: Path, seed: int = 0) -> dict[str, dict[str, int | list[str]]]:
    """So many mistakes, spread over the kinds; by kind how many were opened and refused, and what must not be."""
    chance = random.Random(seed)
    originals = folder / "originals"
    os.environ["NEONATALSEG_MODELS"] = str(folder / "originals" / "models")
    make_originals(originals)
    shutil.copytree(originals / "bundle", originals / "models" / "bundle")
    store.export_model("bundle", originals / "bundle.zip")
    read_study(originals / "made" / "study")
    found: dict[str, dict[str, Any]] = {kind: {"opened": 0, "refused": 0, "wrong": []} for kind in KINDS}
    for number in range(tries):
        kind = list(KINDS)[number % len(KINDS)]
        change, said = try_once(originals, folder / "place", kind, chance)
        if said in ("opened", "refused"):
            found[kind][said] += 1
        else:
            found[kind]["wrong"].append(f"{number}, {change}: {said}")
    return found
