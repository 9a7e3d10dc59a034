"""A model bundle as one zip file: written whole or not at all, and read as something a stranger may have made.

``configs/inference.json`` is a program for MONAI: the one in a zip is never taken over. Every bundle gets ours.
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_file
from NeonatalSegLib.models.bundle import CONFIG_FILE
from NeonatalSegLib.resources import bundle_config

# What a bundle consists of, and how large each part may be (bytes). The paper's larger network takes 63 MB.
KNOWN_FILES = {
    "configs/metadata.json": 4_000_000,
    "models/model.pt": 1_000_000_000,
    "models/openvino.zip": 1_000_000_000,
    "docs/README.md": 4_000_000,
    "LICENSE": 1_000_000,
}
NEEDED_FILES = ("configs/metadata.json", "models/model.pt")
MOST_ENTRIES = 200
_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # the same bundle gives the same bytes


def write_zip(folder: Path, name: str, file: Path, instead: Mapping[str, bytes] = {}) -> None:
    """Write the known files of the bundle ``folder`` under ``name``/; an existing file is replaced at the end.

    Args:
        instead: what to write for some of them.

    Raises:
        OSError: a file cannot be read or written; nothing is left behind.
    """

    def write(part: Path) -> None:
        files = {known: folder / known for known in KNOWN_FILES if (folder / known).is_file()}
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for known, file_there in {**files, CONFIG_FILE: bundle_config()}.items():
                entry = zipfile.ZipInfo(f"{name}/{known}", _SAME_DATE)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, instead.get(known) or file_there.read_bytes())

    write_file(file, write)


def name_in_zip(file: Path) -> str:
    """The model's name: the one folder at the top of the zip that holds a bundle."""
    with _opened(file) as archive:
        return _bundle(archive, file)[0]


def read_zip(file: Path, folder: Path) -> None:
    """Write the bundle's known files out of ``file`` into the empty ``folder``, and our own ``inference.json``.

    Nothing else is ever written.

    Raises:
        NeonatalSegError: not a zip, not one bundle, encrypted or damaged, too many or too large files, or an entry that
            no honest zip holds (absolute, with "..", a link, the same name twice).
        OSError: ``folder`` cannot be written.
    """
    with _opened(file) as archive:
        for known, entry in _bundle(archive, file)[1].items():
            target = folder / known  # from our own table, never a path out of the zip
            target.parent.mkdir(parents=True, exist_ok=True)
            _extract(archive, entry, target, file)
    shutil.copyfile(bundle_config(), folder / CONFIG_FILE)


def _opened(file: Path) -> zipfile.ZipFile:
    try:
        if not file.is_file():  # a device would be read for ever
            raise ValueError("it is missing, or not a regular file")
        return zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise NeonatalSegError(
            f"{file} could not be opened as a zip file ({error}): expected a model that was exported by NeonatalSeg."
        ) from error


def _bundle(archive: zipfile.ZipFile, file: Path) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The model's name and its known entries, after every entry was looked at."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise NeonatalSegError(f"{file} was refused: it holds {len(entries)} files, a model at most {MOST_ENTRIES}.")
    seen: set[str] = set()
    for entry in entries:
        _check_entry(entry, file)
        if (key := entry.filename.rstrip("/").lower()) in seen:
            raise NeonatalSegError(f"{file} was refused: it holds {entry.filename!r} twice.")
        seen.add(key)
    tops = [p.parts[0] for e in entries if (p := PurePosixPath(e.filename)).parts[1:] == ("configs", "metadata.json")]
    if len(tops) != 1:
        raise NeonatalSegError(
            f"{file} is not an exported model: expected one folder with {' and '.join(NEEDED_FILES)}, "
            f"found {len(tops)} such folders."
        )
    known = {k: e for e in entries for k in KNOWN_FILES if e.filename == f"{tops[0]}/{k}"}
    if missing := [k for k in NEEDED_FILES if k not in known]:
        raise NeonatalSegError(f"{file} is not a whole model: {tops[0]}/{missing[0]} is missing. Export it again.")
    for key, entry in known.items():
        if entry.file_size > KNOWN_FILES[key]:
            raise _too_large(entry, KNOWN_FILES[key], file)
    return tops[0], known


def _check_entry(entry: zipfile.ZipInfo, file: Path) -> None:
    """Refuse what no honest zip holds. The name as it was stored: zipfile cuts it at a NUL and turns backslashes."""
    stored = entry.orig_filename
    path = PurePosixPath(stored)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", stored) or not path.parts:
        raise NeonatalSegError(f"{file} was refused: the entry {stored!r} is not a plain path inside of it.")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise NeonatalSegError(f"{file} was refused: the entry {stored!r} is a link or a device, not a file.")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NeonatalSegError(f"{file} is encrypted or packed in an unusual way: export the model again.")


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, file: Path) -> None:
    """Write one entry; zipfile gives no more bytes than the size that was checked."""
    try:
        with archive.open(entry) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise NeonatalSegError(
            f"{file} is damaged at {entry.filename!r} ({error}): copy or export it again."
        ) from error


def _too_large(entry: zipfile.ZipInfo, most: int, file: Path) -> NeonatalSegError:
    return NeonatalSegError(
        f"{file} was refused: {entry.filename!r} unpacks to more than {most / 1e6:.0f} MB, the most for such a file."
    )
