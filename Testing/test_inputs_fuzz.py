"""200 damaged headers: read, warned of or refused in words; no other error, no end of the process, nothing written."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import image_of
from test_inputs_dicom import SLICES, image, save

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.read import header_warnings, read_grid
from NeonatalSegLib.scans.scan import load_scan

CASES = int(os.environ.get("NEONATALSEG_FUZZ", "200")) // 5


def attempt(path: Path) -> str:
    """How reading ends; anything but an image or a NeonatalSegError goes through."""
    endings = []
    for call in (lambda: load_scan(t2=path), lambda: read_labels(path), lambda: read_grid(path)):
        try:
            call()
            endings.append("read")
        except NeonatalSegError as error:
            assert 20 < len(str(error)) < 2000 and "Traceback" not in str(error)
            endings.append("refused")
    assert isinstance(header_warnings(path), tuple)
    return endings[0]


def damaged(data: bytes, generator: np.random.Generator, span: int) -> bytes:
    """1 to 40 bytes of the first ``span`` replaced, or a stretch of them."""
    out = bytearray(data)
    if generator.random() < 0.5:
        for at in generator.integers(0, span, generator.integers(1, 40)):
            out[at] = generator.integers(256)
    else:
        start = int(generator.integers(0, span - 4))
        stop = min(span, start + int(generator.integers(1, 40)))
        out[start:stop] = generator.bytes(stop - start)
    return bytes(out)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_damaged_headers_of_files(tmp_path: Path, suffix: str) -> None:
    generator = np.random.default_rng(1)
    array = (generator.random((24, 22, 26)) * 1000).astype(np.int16)
    whole = tmp_path / f"whole{suffix.removesuffix('.gz')}"
    sitk.WriteImage(image_of(array), str(whole), useCompression=False)
    data, endings = whole.read_bytes(), set()
    for number in range(CASES):
        path = tmp_path / f"{number}{suffix}"
        content = damaged(data, generator, 352)
        path.write_bytes(gzip.compress(content, 1) if suffix.endswith("gz") else content)
        endings.add(attempt(path))
        path.unlink()
    assert endings == {"read", "refused"}  # so that the damage is neither too small nor too large to tell
    assert [p.name for p in tmp_path.iterdir()] == [whole.name]


def test_damaged_tags_of_dicom(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    folder = save(tmp_path / "series", *(image(number) for number in range(SLICES)))
    files = sorted(folder.iterdir())
    whole = {file: file.read_bytes() for file in files}
    endings = set()
    for _ in range(CASES):
        hit = files[: int(generator.integers(1, SLICES))]
        for file in hit:
            file.write_bytes(damaged(whole[file], generator, len(whole[file]) - 300))
        endings.add(attempt(folder))
        for file in hit:
            file.write_bytes(whole[file])
    assert "refused" in endings
    assert sorted(folder.iterdir()) == files
