"""Files that two programs write, that a kill tears, or that a stranger made: nothing of anybody's is lost or opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from faults import dead_mark, every_kill, files_in, posix

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic, leftovers, together
from NeonatalSegLib.files.ledger import Ledger, read_ledger
from NeonatalSegLib.files.lock import Lock
from NeonatalSegLib.files.settings import parse_object, read_object

A, B, C = {"slice": "a"}, {"slice": "b"}, {"slice": "c"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_a_second_writers_lines_are_not_cut(path: Path) -> None:
    first, second = Ledger(path, 0), Ledger(path, 0)
    second.append(A)
    second.append(B)
    with pytest.raises(OSError, match="another program wrote"):
        first.append(C)
    assert read_ledger(path)[0] == [A, B]
    with pytest.raises(OSError, match="another program wrote"):  # and it stays so
        first.append(C)
    lines, length = read_ledger(path)
    Ledger(path, length).append(C)
    assert read_ledger(path)[0] == [*lines, C]


@pytest.mark.parametrize("torn", [b'{"slice": "b', b"\0\0\0\0", b'{"slice": "b"}', b"{}}\n"])
def test_only_a_torn_line_is_cut(path: Path, torn: bytes) -> None:
    Ledger(path, 0).append(A)
    with path.open("ab") as stream:
        stream.write(torn)
    lines, length = read_ledger(path)
    Ledger(path, length).append(C)
    assert lines == [A] and read_ledger(path)[0] == [A, C]


def test_a_whole_line_after_a_torn_one_is_kept(path: Path) -> None:
    ledger = Ledger(path, 0)
    ledger.append(A)
    with path.open("ab") as stream:
        stream.write(b'{"torn\n{"slice":"b"}\n')
    before = path.read_bytes()
    with pytest.raises(OSError, match="another program wrote"):
        ledger.append(C)
    assert path.read_bytes() == before


def test_a_ledger_that_became_shorter_is_not_written(path: Path) -> None:
    ledger = Ledger(path, 0)
    ledger.append(A)
    path.write_bytes(b"")
    with pytest.raises(OSError, match="shortened"):
        ledger.append(B)
    assert path.read_bytes() == b""


def test_a_lock_that_was_lost_is_noticed(tmp_path: Path) -> None:
    """A user who is told to delete the file of a program that has ended, and deletes that of one that runs."""
    file = tmp_path / "lock"
    first = Lock(file)
    first.check()
    file.unlink()
    with pytest.raises(OSError, match="took this study over"):
        first.check()
    second = Lock(file)
    first.release()
    second.check()  # the first did not empty it
    file.write_text(json.dumps({"process": 1, "host": "elsewhere"}))  # a drive that carries no locks
    with pytest.raises(OSError, match="took this study over"):
        second.check()
    second.release()
    assert "elsewhere" in file.read_text(encoding="utf-8")


@posix
def test_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("mine")
    for name in ("lock", "ledger.jsonl"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match="link"):
        Lock(tmp_path / "lock")
    with pytest.raises(OSError, match="link"):
        Ledger(tmp_path / "ledger.jsonl", 0).append(A)
    with pytest.raises(NeonatalSegError, match="link"):
        read_ledger(tmp_path / "ledger.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):  # and does not wait for a writer
        Lock(tmp_path / "pipe")
    assert victim.read_text(encoding="utf-8") == "mine"


@posix
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": Infinity}', "not a finite number"),
        ('{"format": 1e999}', "not a finite number"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "too deeply"),
        ('{"a": ' * 200 + "1" + "}" * 200, "too deeply"),
        ("[1]", "not a JSON object"),
        (f'{{"a": {"9" * 5000}}}', "digits"),
        ("\udcff", ""),
    ],
)
def test_json_from_elsewhere_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "study.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(NeonatalSegError, match=f"The study .*study.json could not be read: .*{words}"):
        read_object(tmp_path / "study.json", "study")


@posix
def test_a_pipe_or_a_giant_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(NeonatalSegError, match="not a regular file"):
        read_object(tmp_path / "pipe.json", "study")
    with (tmp_path / "big.json").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no room
    with pytest.raises(NeonatalSegError, match="larger than"):
        read_object(tmp_path / "big.json", "study")
    assert parse_object(b'{"a": [1.5, null]}') == {"a": [1.5, None]}


@posix
def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    target = tmp_path / "table.tsv"
    left = tmp_path / f"{atomic.PART}{dead_mark()}-table.tsv"
    others = [tmp_path / f"{atomic.PART}{leftovers.mark()}-table.tsv", tmp_path / ".part-notes"]
    for file in (left, *others):
        file.write_text("half")
    atomic.write_text(target, "whole\n")
    assert (
        target.read_text(encoding="utf-8") == "whole\n" and not left.exists() and all(file.exists() for file in others)
    )


@posix
def test_a_link_that_lies_in_wait_is_not_written_through(tmp_path: Path) -> None:
    """The name of the temporary file cannot be guessed, and the link in the target's place is replaced itself."""
    victim, target = tmp_path / "thesis.txt", tmp_path / "table.tsv"
    victim.write_text("mine")
    for name in (".part-table.tsv", "table.tsv.part", "table.tsv"):
        (tmp_path / name).symlink_to(victim)
    atomic.write_text(target, "new\n")
    assert (
        victim.read_text(encoding="utf-8") == "mine"
        and not target.is_symlink()
        and target.read_text(encoding="utf-8") == "new\n"
    )


NAMES = ("a.nii.gz", "models/b.tsv", "c.json")
OLD, NEW = (dict.fromkeys(NAMES, word) for word in (b"old", b"new"))


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def move_all(folder: Path) -> None:
    staging = together.make_staging(folder)
    write(staging, NEW)
    together.move_together(staging, NAMES)


@posix
@pytest.mark.parametrize("before", [OLD, {}, {"c.json": b"old"}], ids=["all", "none", "one"])
def test_a_kill_between_moves_is_finished_by_the_next_start(tmp_path: Path, before: dict[str, bytes]) -> None:
    seen = set()
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", before)
    for _ in every_kill(lambda: move_all(tmp_path / "out")):
        together.finish_left(tmp_path / "out")
        there = files_in(tmp_path / "out")
        assert there in (before, NEW)
        seen.add(tuple(there.items()))
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        write(tmp_path / "out", before)
    assert {tuple(sorted(before.items())), tuple(sorted(NEW.items()))} <= {tuple(sorted(s)) for s in seen}


def test_a_failure_between_moves_puts_all_back(tmp_path: Path) -> None:
    write(tmp_path, {"a.nii.gz": b"old", "c.json/in the way": b"x"})  # a folder where the last file goes
    with pytest.raises(OSError, match="folder of that name"):
        move_all(tmp_path)
    visible = {name: content for name, content in files_in(tmp_path).items() if not name.startswith(".")}
    assert visible == {"a.nii.gz": b"old", "c.json/in the way": b"x"}


@posix
@pytest.mark.parametrize("name", ["../thesis.txt", "models/../../thesis.txt"])
def test_a_prepared_list_moves_nothing_out_of_its_folder(tmp_path: Path, name: str) -> None:
    """From the hidden folder the name leads to the received file, from the folder around it to the user's own."""
    out = tmp_path / "received"
    staging = out / f"{together.PREFIX}{dead_mark()}"
    write(tmp_path, {"thesis.txt": b"mine"})  # before the list: what is younger than a list is left alone anyway
    write(out, {"thesis.txt": b"evil", "models/x": b""})
    write(staging, {"models/x": b"", ".moving.json": json.dumps({"names": [name]}).encode()})
    together.finish_left(out)
    assert files_in(tmp_path) == {"thesis.txt": b"mine", "received/thesis.txt": b"evil", "received/models/x": b""}
