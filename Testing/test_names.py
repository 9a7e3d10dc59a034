"""Names that become files' names: one rule for scans, raters and models."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_distinct, check_name, check_path, safe_name
from NeonatalSegLib.scans.scan import load_scan, scan_name


@pytest.mark.parametrize("name", ["sub-01", "sub-01_ses-2", "Zoë 2", "a", "x" * 80, "v1.2"])
def test_names_that_are_taken(name: str, tmp_path: Path) -> None:
    assert check_name(name, "scan") == name
    (tmp_path / name).write_text("")
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "../a", "CON", "nul.txt", " a", "a.", "a ", "-out", "=1+1", "@a", "x" * 81]
    + ["a\nb", "a\tb", "a:b", "a\x1b[31m", "a$b", "a\udcff"],
)
def test_names_that_are_refused_are_made_safe_where_derived(name: str) -> None:
    with pytest.raises(NeonatalSegError, match="cannot be the name of a scan"):
        check_name(name, "scan")
    assert check_name(safe_name(name), "scan")


def test_a_model_s_name_is_plain() -> None:
    for name in ("a b", "zoë", "a_"):
        with pytest.raises(NeonatalSegError, match="cannot be the name of a model"):
            check_name(name, "model", plain=True)


def test_two_names_for_one_file_are_refused() -> None:
    check_distinct(["a", "b"], "scan")
    for one, other in (("Baby", "baby"), ("a", "a"), ("zo\u00eb", "zoe\u0308")):
        with pytest.raises(NeonatalSegError, match="Two scans"):
            check_distinct([one, other], "scan")


def test_a_scan_s_name_is_told_before_its_files_are_read(tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="'a/b' cannot be the name of a scan"):
        load_scan(t2=tmp_path / "missing.nii", name="a/b")
    assert scan_name(Path("T2 (copy): baby_T2w.nii.gz")) == "T2 _copy__ baby"
    assert scan_name(Path("sub-01_t2w.nii.gz")) == "sub-01"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_path_that_is_not_utf8_is_refused_in_words(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.nii"))
    with pytest.raises(NeonatalSegError, match="not UTF-8"):
        check_path(path)
    with pytest.raises(NeonatalSegError, match="zero byte"):
        check_path("a\0b")
