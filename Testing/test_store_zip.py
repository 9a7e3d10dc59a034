"""Models in zip files: passed on whole, and refused where a stranger made them."""

from __future__ import annotations

import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from store_models import add, copies, save_parent, visible, weight

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.history import user_folder
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_parent(tmp_path_factory.mktemp("parent"))


def test_a_model_travels_in_a_zip(parent: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = add(parent)
    (model.folder / "private.txt").write_text("not to be passed on")
    file = store.export_model(model.name, tmp_path, names=True)
    assert file == tmp_path / "base-ft001.zip" and list(tmp_path.iterdir()) == [file]
    first = file.read_bytes()
    assert store.export_model(model.name, file, names=True).read_bytes() == first
    with zipfile.ZipFile(file) as archive:
        assert "base-ft001/private.txt" not in archive.namelist() and len(archive.namelist()) == 4
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "elsewhere"))
    there = store.import_model(file)
    assert (there.name, there.hash, there.metadata) == (model.name, model.hash, model.metadata)
    assert weight(there) == 0.5 and store.status(there.name) == "candidate" and store.current_name() == DEFAULT_MODEL
    assert store.import_model(file).folder == there.folder and visible() == ["base-ft001"]


def test_a_name_that_is_taken_by_other_weights(parent: Model, tmp_path: Path) -> None:
    file = store.export_model(add(parent, 0.25).name, tmp_path)
    store.discard("base-ft001")
    (user_folder() / "base-ft001").mkdir()  # even an empty folder of that name is not written into
    with pytest.raises(NeonatalSegError, match="new name"):
        store.import_model(file)
    assert store.import_model(file, "visitor").name == "visitor"
    assert weight(find_model("visitor")) == 0.25
    renamed = store.import_model(file, rename=True)  # as the panel does
    assert renamed.name == f"base-ft001-{renamed.hash[:6]}" and weight(renamed) == 0.25
    assert store.import_model(file, rename=True).folder == renamed.folder
    store.discard(renamed.name)
    for name in (DEFAULT_MODEL, DEFAULT_MODEL.upper()):
        with pytest.raises(NeonatalSegError, match="other weights"):
            store.import_model(file, name)
    for name in ("../evil", "a/b", ".hidden", "con", "LPT1.x", "a b", "end.", "x" * 81):
        with pytest.raises(NeonatalSegError, match="cannot be the name of a model"):
            store.import_model(file, name)
    assert visible() == ["base-ft001", "visitor"]


Entries = list[tuple[zipfile.ZipInfo, bytes]]


def entry(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.filename = info.orig_filename = name  # as an attacker writes it, unchanged by zipfile
    info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    return info, data


def extra(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Callable[[Entries], Entries]:
    return lambda entries: [*entries, entry(name, data, mode)]


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Entries], Entries]:
    return lambda entries: [(e, change(d) if e.filename.endswith(name) else d) for e, d in entries]


def without(name: str) -> Callable[[Entries], Entries]:
    return lambda entries: [(e, d) for e, d in entries if not e.filename.endswith(name)]


LINK = stat.S_IFLNK | 0o777
MALICIOUS: dict[str, tuple[Callable[[Entries], Entries], str]] = {
    "absolute": (extra("/tmp/evil"), "not a plain path"),
    "parent": (extra("base/../../evil"), "not a plain path"),
    "drive": (extra("C:/evil"), "not a plain path"),
    "backslash": (extra("base\\..\\..\\evil"), "not a plain path"),
    "link": (extra("base/models/link", b"/etc/passwd", LINK), "a link"),
    "weights-link": (
        lambda e: [*without("model.pt")(e), entry("base/models/model.pt", b"/etc/passwd", LINK)],
        "a link",
    ),
    "fifo": (extra("base/pipe", b"", stat.S_IFIFO | 0o644), "a link or a device"),
    "twice": (extra("base/models/model.pt"), "twice"),
    "twice-by-case": (extra("base/Models/model.PT"), "twice"),
    "many": (lambda e: [*e, *(entry(f"base/f{n}") for n in range(200))], "holds 204 files"),
    "large": (replaced("metadata.json", lambda d: d + b" " * 4_000_001), "more than 4 MB"),
    "two-bundles": (extra("other/configs/metadata.json", b"{}"), "found 2"),
    "no-bundle": (without("metadata.json"), "found 0"),
    "no-weights": (without("model.pt"), r"model\.pt is missing"),
    "hash": (replaced("model.pt", lambda d: d[:-1] + bytes([d[-1] ^ 1])), "corrupt or was exchanged"),
    "labels": (replaced("metadata.json", lambda d: d.replace(b'"csf"', b'"tumour"')), "another label table"),
    "newer": (replaced("metadata.json", lambda d: d.replace(b'"format": 1', b'"format": 2')), "Update NeonatalSeg"),
    "nonsense": (replaced("metadata.json", lambda d: d[:100]), "not a NeonatalSeg model"),
    "packing": (lambda e: [(_lzma(i), d) for i, d in e], "unusual way"),
}


def _lzma(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    info.compress_type = zipfile.ZIP_LZMA
    return info


@pytest.mark.parametrize("how", MALICIOUS)
def test_a_zip_that_is_not_what_it_should_be_is_refused(parent: Model, tmp_path: Path, how: str) -> None:
    change, words = MALICIOUS[how]
    file = tmp_path / "box" / "stranger.zip"
    file.parent.mkdir()
    entries = [
        entry(f"base/{p.relative_to(parent.folder).as_posix()}", p.read_bytes())
        for p in parent.folder.rglob("*")
        if p.is_file()
    ]
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own about a name that is there twice
        for info, data in change(entries):
            archive.writestr(info, data)
    with pytest.raises(NeonatalSegError, match=words) as told:
        store.import_model(file)
    assert "stranger.zip" in str(told.value) and ".new-" not in str(told.value)
    assert visible() == [] and not Path("/tmp/evil").exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["box", "stranger.zip"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no zip", "could not be opened as a zip"),
        ("missing", "could not be opened as a zip"),
        ("truncated", "could not be opened as a zip"),
        ("flipped", "is damaged at"),
        ("encrypted", "is encrypted or packed"),
        ("size", "is damaged at"),
    ],
)
def test_a_damaged_zip_is_refused(parent: Model, tmp_path: Path, how: str, told: str) -> None:
    copies(parent, "one")
    file = store.export_model("one", tmp_path)
    store.discard("one")
    data = bytearray(file.read_bytes())
    central = data.index(b"PK\x01\x02")
    if how == "no zip":
        data = bytearray(b"weights")
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "flipped":  # a bit within the packed weights
        data[data.index(b"one/models/model.pt") + 200] ^= 16
    elif how == "encrypted":
        data[central + 8] |= 1
    elif how == "size":  # the table says that the first file is shorter than it is
        data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    file.write_bytes(data)
    if how == "missing":
        file.unlink()
    with pytest.raises(NeonatalSegError, match=told):
        store.import_model(file)
    assert visible() == []
