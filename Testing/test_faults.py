"""The hammer of ``benchmarks/faults.py``, small: kills with one and two writers, a full disk, files with mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import faults

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, mounts a small disk and reads /proc")


def test_kills_lose_nothing(tmp_path: Path) -> None:
    figures = faults.kills(15, tmp_path / "kills", seed=1)
    assert [text for k in figures.values() for text in k.wrong] == []
    assert all(k.one_writer and k.two_writers for k in figures.values())
    assert sum(k.ended for k in figures.values()) > 0, "the kills tell nothing"


def test_a_full_disk_tears_nothing(tmp_path: Path) -> None:
    _, found = faults.fill(2, tmp_path / "full", seed=1)
    assert [text for tries in found.values() for text in tries.wrong] == []
    assert len(found) == 12 and sum(tries.told for tries in found.values())


def test_mistakes_in_files_are_told_in_words(tmp_path: Path) -> None:
    found = faults.mutations(24, tmp_path / "mutations", seed=1)
    assert [text for f in found.values() for text in f["wrong"]] == []
    assert sum(f["opened"] for f in found.values()) and sum(f["refused"] for f in found.values())
