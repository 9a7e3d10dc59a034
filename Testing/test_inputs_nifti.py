"""NIfTI files as they come from scanners, converters and other programs: right, warned of or refused, never guessed.

nibabel is the judge of where a file's voxels lie: another reader of the same standard.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import image_of

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import note_of, read_labels, stage_labels
from NeonatalSegLib.scans.nifti import read_header
from NeonatalSegLib.scans.placement import RAS_TO_LPS, Forms
from NeonatalSegLib.scans.read import header_warnings, read_grid, read_image
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.scans.write import write_image

nib = pytest.importorskip("nibabel")
OBLIQUE = np.array([[-0.8, 0.05, 0.1, 40.0], [0.06, 0.9, -0.2, -30.0], [0.08, 0.15, 1.1, 12.0], [0, 0, 0, 1]])


def voxels(dtype: str = "float32") -> np.ndarray:
    """(x, y, z) as nibabel has it: a block with values that tell every voxel from the others, in air."""
    array = np.zeros((34, 32, 30), dtype)
    array[5:25, 5:25, 5:25] = 100 + np.arange(8000).reshape(20, 20, 20) % 97
    return array


def straight(spacing: tuple[float, float, float] = (0.8, 0.9, 1.1), shift: float = 0.0) -> np.ndarray:
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (12.0 + shift, -20.0, 5.0)
    return affine


def write(
    path: Path,
    q: np.ndarray | None,
    s: np.ndarray | None,
    codes: tuple[int, int] = (1, 1),
    array: np.ndarray | None = None,
) -> Path:
    """A file with these two forms, by nibabel."""
    image = nib.Nifti1Image(voxels() if array is None else array, None)
    image.header.set_zooms((0.8, 0.9, 1.1))
    image.set_qform(q, codes[0] if q is not None else 0)
    image.set_sform(s, codes[1] if s is not None else 0)
    nib.save(image, path)
    return path


def ras(grid: Grid) -> np.ndarray:
    return RAS_TO_LPS @ grid.matrix()


def patched(path: Path, *parts: tuple[int, str, object]) -> Path:
    """The file with numbers written over its header: (offset, struct format, values)."""
    data = bytearray(path.read_bytes())
    for offset, layout, value in parts:
        struct.pack_into(f"<{layout}", data, offset, *(value if isinstance(value, tuple) else (value,)))
    path.write_bytes(bytes(data))
    return path


# --- the file that was asked for, and no other ---------------------------------------------------------------------


def test_a_sibling_of_a_similar_name_is_not_opened(tmp_path: Path) -> None:
    other = write(tmp_path / "x.nii", straight(), straight(), array=voxels() * 2)
    asked = write(tmp_path / "x.nii.gz", straight(), straight())
    nib.save(nib.Nifti1Pair(voxels() * 3, straight()), tmp_path / "x.img")
    for path, factor in ((asked, 1), (other, 2), (tmp_path / "x.img", 3), (tmp_path / "x.hdr", 3)):
        assert sitk.GetArrayFromImage(read_image(path).image).max() == factor * voxels().max()
    assert sitk.GetArrayFromImage(load_scan(t2=asked).reference).max() == voxels().max()
    labels = write(tmp_path / "y_dseg.nii.gz", straight(), straight(), array=np.full((34, 32, 30), 3, np.uint8))
    write(tmp_path / "y_dseg.nii", straight(), straight(), array=np.full((34, 32, 30), 5, np.uint8))
    assert set(np.unique(sitk.GetArrayFromImage(read_labels(labels).image))) == {3}


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(voxels(), straight()), tmp_path / "x.img")
    (tmp_path / "x.hdr").unlink()
    write(tmp_path / "x.nii", straight(), straight())
    with pytest.raises(NeonatalSegError, match=r"no x\.hdr beside it"):
        read_image(tmp_path / "x.img")


def test_the_content_says_what_a_file_is_not_its_name(tmp_path: Path) -> None:
    packed = gzip.compress(write(tmp_path / "a.nii", straight(), straight()).read_bytes())
    (tmp_path / "packed.nii").write_bytes(packed)
    (tmp_path / "plain.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    (tmp_path / "rest.nii.gz").write_bytes(packed + b"padding of a tape, or a signature")
    (tmp_path / "parts.nii.gz").write_bytes(packed[:0] + b"".join(map(gzip.compress, _halves(tmp_path / "a.nii"))))
    for name in ("packed.nii", "plain.nii.gz", "rest.nii.gz", "parts.nii.gz"):
        found = read_image(tmp_path / name)
        assert np.array_equal(sitk.GetArrayFromImage(found.image).T, voxels())
        assert np.allclose(ras(Grid.of(found.image)), straight(), atol=1e-4)


def _halves(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    return data[:1000], data[1000:]


def test_a_byte_that_was_flipped_is_noticed(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(write(tmp_path / "a.nii", straight(), straight()).read_bytes()))
    data[-6] ^= 1  # of the checksum: the voxels themselves unpack
    (tmp_path / "a.nii.gz").write_bytes(bytes(data))
    with pytest.raises(NeonatalSegError, match=r"a\.nii\.gz is truncated or damaged"):
        read_image(tmp_path / "a.nii.gz")


# --- where it lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img"])
@pytest.mark.parametrize("version", [1, 2])
def test_position_and_voxels_are_those_of_another_reader(tmp_path: Path, name: str, version: int) -> None:
    generator = np.random.default_rng(version)
    kinds = {1: (nib.Nifti1Image, nib.Nifti1Pair), 2: (nib.Nifti2Image, nib.Nifti2Pair)}[version]
    for dtype in ("uint8", "int16", "float32", "float64", "uint16", "int32"):
        matrix = np.linalg.qr(generator.normal(size=(3, 3)))[0] * generator.uniform(0.5, 1.5, 3)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = matrix, generator.uniform(-50, 50, 3)
        array = (generator.random((9, 8, 7)) * 200).astype(dtype)
        image = kinds[name.endswith("img")](array, affine)
        image.set_qform(affine, 1)
        image.header.set_slope_inter(*((2.0, -3.0) if dtype == "int16" else (1, 0)))
        nib.save(image, tmp_path / name)
        ours, theirs = read_image(tmp_path / name), nib.load(tmp_path / name)
        assert ours.warnings == ()
        assert np.allclose(ras(Grid.of(ours.image)), theirs.affine, atol=1e-4)
        assert np.allclose(sitk.GetArrayFromImage(ours.image).T, theirs.get_fdata(), rtol=1e-6)
        assert read_grid(tmp_path / name).is_like(Grid.of(ours.image))


def test_the_other_byte_order_and_units(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), straight(), nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "big.nii")
    found = read_image(tmp_path / "big.nii")
    assert np.array_equal(sitk.GetArrayFromImage(found.image).T, voxels())
    small = straight()
    small[:3] /= 1000
    image = nib.Nifti1Image(voxels(), small)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "metres.nii")
    assert np.allclose(ras(read_grid(tmp_path / "metres.nii")), straight(), atol=1e-3)


def test_unknown_orientation_is_refused_or_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", None, None)
    for call in (read_image, read_grid, lambda p: load_scan(t2=p), read_labels):
        with pytest.raises(NeonatalSegError, match=r"a\.nii\.gz does not say how it is oriented.*--assume-orientation"):
            call(path)
    found = load_scan(t2=path, orientation="las")
    matrix = ras(Grid.of(found.reference))
    assert np.allclose(matrix[:3, :3], np.diag([-0.8, 0.9, 1.1]), atol=1e-6)
    assert np.allclose(matrix @ [16.5, 15.5, 14.5, 1], [0, 0, 0, 1], atol=1e-5)  # its centre is at zero
    assert len(found.warnings) == 1 and "does not say how it is oriented" in found.warnings[0]
    assert found.forms is None  # what is written on its grid says the given one
    for wrong in ("RAR", "RA", "XYZ", ""):
        with pytest.raises(NeonatalSegError, match="not an orientation"):
            read_image(path, wrong)


def test_an_old_analyze_pair_does_not_say_its_orientation(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(voxels("int16"), None), tmp_path / "a.img")
    with pytest.raises(NeonatalSegError, match="does not say how it is oriented"):
        read_image(tmp_path / "a.img")
    assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.img", "RAS").image).T, voxels("int16"))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_other_formats_without_an_orientation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image_of(np.ascontiguousarray(voxels().T)), str(path), useCompression=False)
    assert read_image(path).warnings == () and header_warnings(path) == ()
    drop = (b"space: left-posterior-superior", b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n")
    data = path.read_bytes()
    data = data.replace(drop[0], b"space dimension: 3").replace(drop[1], b"")
    path.write_bytes(data)
    with pytest.raises(NeonatalSegError, match="does not say how it is oriented"):
        read_image(path)
    given = Grid.of(read_image(path, "RAS").image)
    assert np.allclose(ras(given)[:3, :3], np.eye(3))
    assert "oriented" in header_warnings(path)[0]


def test_two_forms_that_disagree_are_told_and_both_written_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", straight(shift=20.0), straight(), (1, 2))
    scan = load_scan(t2=path)
    assert len(scan.warnings) == 1 and "disagree by up to 20 mm" in scan.warnings[0]
    assert np.allclose(ras(Grid.of(scan.reference)), straight(), atol=1e-4)
    labels = Grid.of(scan.reference).image(np.ones((30, 32, 34), np.uint8))
    write_image(labels, tmp_path / "a_dseg.nii.gz", forms=scan.forms)
    ours, theirs = nib.load(tmp_path / "a_dseg.nii.gz"), nib.load(path)
    for form in ("get_qform", "get_sform"):
        (mine, code), (other, other_code) = (getattr(i, form)(coded=True) for i in (ours, theirs))
        assert code == other_code and np.allclose(mine, other, atol=1e-4)
    # A label map that says one of the two positions alone is still that scan's.
    alone = write(tmp_path / "q_dseg.nii", straight(shift=20.0), None, array=np.ones((34, 32, 30), np.uint8))
    assert read_labels(tmp_path / "a_dseg.nii.gz").lies_on(read_grid(alone))


def test_a_straight_form_is_used_before_a_sheared_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", straight(), OBLIQUE)
    found = read_image(path)
    assert np.allclose(ras(Grid.of(found.image)), straight(), atol=1e-4)
    assert "disagree" in found.warnings[0] and "qform was used" in found.warnings[0]


def test_the_scanner_s_space_is_used_before_an_atlas_s(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", straight(), straight((1.6, 1.8, 2.2)), (1, 4))
    assert np.allclose(Grid.of(read_image(path).image).spacing_mm, (0.8, 0.9, 1.1), atol=1e-5)


def test_a_sheared_position_alone_is_read_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", None, OBLIQUE)
    scan = load_scan(t2=path)
    assert np.allclose(ras(Grid.of(scan.reference)), OBLIQUE, atol=1e-4)
    assert "not perpendicular" in scan.warnings[0]
    far = OBLIQUE.copy()
    far[:3, 1] = far[:3, 0] + (0, 0.1, 0)
    with pytest.raises(NeonatalSegError, match="from perpendicular"):
        read_image(write(tmp_path / "b.nii", None, far))
    grid = Grid.of(scan.reference)
    part = stage_labels(tmp_path / "c_dseg.nii.gz", np.full(grid.shape, 2, np.uint8), grid, "a note")
    assert note_of(part) == "a note" and read_labels(part).lies_on(grid)
    assert np.allclose(nib.load(part).affine, OBLIQUE, atol=1e-4)


def test_a_form_that_cannot_be_is_left_out(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "a.nii", straight(), straight()), (280, "12f", (0.0,) * 12))
    found = read_image(path)
    assert "unusable sform" in found.warnings[0]
    assert np.allclose(ras(Grid.of(found.image)), straight(), atol=1e-4)
    patched(path, (256, "3f", (5.0, 5.0, 5.0)))
    with pytest.raises(NeonatalSegError, match="unusable"):
        read_image(path)


def test_what_is_written_lies_where_the_image_does(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    for number in range(8):
        direction = np.linalg.qr(generator.normal(size=(3, 3)))[0]  # left- and right-handed ones
        grid = Grid((5, 6, 7), (0.7, 0.8, 1.3), (-10.0, 20.0, 3.0), tuple(direction.ravel()))
        vector = number % 2 == 1
        array = generator.random((7, 6, 5, 3) if vector else (7, 6, 5)).astype(np.float32)
        path = tmp_path / f"{number}.nii.gz"
        write_image(grid.image(array, vector=vector), path)
        other = nib.load(path)
        for matrix in (other.get_qform(), other.get_sform()):
            assert np.allclose(matrix, ras(grid), atol=1e-4)
        back = sitk.ReadImage(str(path))
        assert Grid.of(back).is_like(grid) and np.array_equal(sitk.GetArrayFromImage(back), array)


# --- what the voxels are -------------------------------------------------------------------------------------------


def test_complex_voxels_give_their_magnitude(tmp_path: Path) -> None:
    for dtype in (np.complex64, np.complex128):
        array = voxels() * np.exp(1j * np.linspace(0, 9, voxels().size).reshape(voxels().shape))
        found = read_image(write(tmp_path / "a.nii", straight(), straight(), array=array.astype(dtype)))
        assert np.allclose(sitk.GetArrayFromImage(found.image).T, voxels(), atol=1e-3)
        assert "complex" in found.warnings[0]


def test_colours_and_unknown_types_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((34, 32, 30), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, straight()), tmp_path / "rgb.nii")
    with pytest.raises(NeonatalSegError, match="colour"):
        read_image(tmp_path / "rgb.nii")
    path = patched(write(tmp_path / "a.nii", straight(), straight()), (70, "h", 1536))
    with pytest.raises(NeonatalSegError, match="type 1536"):
        read_image(path)


def test_nan_around_the_head_is_background(tmp_path: Path) -> None:
    array = voxels()
    array[array == 0] = np.nan
    scan = load_scan(t2=write(tmp_path / "a.nii", straight(), straight(), array=array))
    assert np.array_equal(sitk.GetArrayFromImage(scan.reference).T > 100, voxels() > 100)
    assert len(scan.warnings) == 1 and "75 % of the voxels, around the rest" in scan.warnings[0]
    array[10:14, 10:14, 10:20] = np.nan  # and 2 % of the head
    with pytest.raises(NeonatalSegError, match=r"2\.0 % of the voxels of the head"):
        load_scan(t2=write(tmp_path / "b.nii", straight(), straight(), array=array))


def test_a_value_that_float32_cannot_hold(tmp_path: Path) -> None:
    array = voxels("float64")
    array[10, 10, 10] = 1e40
    scan = load_scan(t2=write(tmp_path / "a.nii", straight(), straight(), array=array))
    assert np.isfinite(sitk.GetArrayFromImage(scan.reference)).all()
    assert "1 voxels were NaN or infinite" in scan.warnings[0]
    array[10:13, 10, 10] = 3e38  # which it holds, but not its square
    scan = load_scan(t2=write(tmp_path / "b.nii", straight(), straight(), array=array.astype("float32")))
    assert sitk.GetArrayFromImage(scan.reference).max() < 1000 and "3 voxels" in scan.warnings[0]


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", straight(), straight())
    for size in ((32000, 32000, 32000), (32767, 32767, 3)):
        patched(path, (42, "3h", size))
        with pytest.raises(NeonatalSegError, match="far more than a newborn's scan"):
            read_image(path)
    patched(path, (42, "3h", (340, 320, 300)))
    with pytest.raises(NeonatalSegError, match="truncated"):
        read_image(path)


def test_scaling_that_is_no_number_is_told(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "a.nii", straight(), straight(), array=voxels("int16")), (112, "f", float("inf")))
    found = read_image(path)
    assert "scl_slope" in found.warnings[0] and np.array_equal(sitk.GetArrayFromImage(found.image).T, voxels("int16"))


def test_the_forms_of_a_file_are_those_of_its_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", straight(), straight(), (3, 2))
    forms = Forms.of(read_header(path))
    assert (forms.qform_code, forms.sform_code) == (3, 2)
    assert np.allclose(np.reshape(forms.srow, (3, 4)), straight()[:3], atol=1e-4)


def test_equal_images_give_equal_files(tmp_path: Path) -> None:
    """Neither the time nor the name of a file is in its bytes: results can be compared by their hash."""
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    for name in ("one.nii.gz", "two.nii.gz"):
        write_image(image, tmp_path / name)
    data = (tmp_path / "one.nii.gz").read_bytes()
    assert data == (tmp_path / "two.nii.gz").read_bytes()
    assert data[3] == 0 and data[4:8] == bytes(4)  # RFC 1952: no name in it, no time
