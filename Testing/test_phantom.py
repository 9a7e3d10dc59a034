"""The synthetic newborn: anatomy, growth, contrast, and that it is the same head on every grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn, write_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, TISSUES

CSF, CORTEX, WM, RIM, VENTRICLES, CEREBELLUM, DEEP_GM, BRAINSTEM, HIPPOCAMPUS = range(1, 10)
AGES = (28.0, 34.0, 40.0)

# Published growth of 593 newborns (Multi-BOUNTI's fits, derived means in mL) at 28, 34 and 40 weeks. Its labels are
# drawn by other rules than the phantom's, and a phantom is a drawing: within 40 % is near enough.
PUBLISHED_ML = {
    CORTEX: (22.0, 58.0, 106.0),
    WM: (67.0, 115.0, 151.0),
    DEEP_GM: (4.9, 9.4, 13.7),
    CEREBELLUM: (3.2, 9.2, 17.4),
    BRAINSTEM: (2.9, 5.0, 6.8),
    CSF: (44.0, 69.0, 105.0),
    VENTRICLES: (3.2, 3.6, 4.3),
}
PUBLISHED_INTRACRANIAL_ML = (149.0, 284.0, 425.0)


@pytest.fixture(scope="module")
def newborns() -> dict[float, Phantom]:
    return {age: draw_newborn(age, seed=0, spacing_mm=1.0) for age in AGES}


@pytest.fixture(scope="module")
def plain() -> Phantom:
    return draw_newborn(36.0, seed=4, spacing_mm=1.0)


def as_array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def volumes_ml(labels: sitk.Image) -> np.ndarray:
    counts = np.bincount(as_array(labels).ravel(), minlength=NUMBER_OF_CLASSES)
    return counts * np.prod(labels.GetSpacing()) / 1000


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("age", AGES)
def test_every_class_is_drawn(newborns: dict[float, Phantom], age: float) -> None:
    assert np.unique(as_array(newborns[age].labels)).tolist() == [tissue.index for tissue in TISSUES]


@pytest.mark.parametrize("age", AGES)
def test_volumes_lie_near_the_published_growth(newborns: dict[float, Phantom], age: float) -> None:
    measured = volumes_ml(newborns[age].labels)
    column = AGES.index(age)
    for label, published in PUBLISHED_ML.items():
        assert measured[label] == pytest.approx(published[column], rel=0.4), TISSUES[label].name
    inside = sum(measured[tissue.index] for tissue in PHYSIOLOGICAL)
    assert inside == pytest.approx(PUBLISHED_INTRACRANIAL_ML[column], rel=0.15)
    assert 0.3 < measured[HIPPOCAMPUS] < 3.0


@pytest.mark.parametrize("label", [CORTEX, WM, VENTRICLES, CEREBELLUM, DEEP_GM, HIPPOCAMPUS])
def test_paired_structures_lie_on_both_sides(newborns: dict[float, Phantom], label: int) -> None:
    image = newborns[40.0].labels
    i = np.nonzero(as_array(image) == label)[2]
    x = image.GetOrigin()[0] + i * image.GetSpacing()[0]  # LPS, not oblique: x grows to the left
    left_share = np.mean(x > 0)
    assert 0.35 < left_share < 0.65


def test_structures_lie_where_an_anatomist_expects_them(newborns: dict[float, Phantom]) -> None:
    labels = as_array(newborns[40.0].labels)
    centre = {label: np.argwhere(labels == label).mean(0) for label in range(1, NUMBER_OF_CLASSES)}  # z, y, x
    assert centre[CEREBELLUM][0] < centre[DEEP_GM][0] and centre[CEREBELLUM][1] > centre[BRAINSTEM][1]
    assert centre[BRAINSTEM][0] < centre[DEEP_GM][0] < centre[CORTEX][0]
    assert centre[HIPPOCAMPUS][0] < centre[DEEP_GM][0] < centre[VENTRICLES][0]


def test_ventricles_lie_inside_the_brain_and_cortex_covers_white_matter(newborns: dict[float, Phantom]) -> None:
    labels = as_array(newborns[40.0].labels)

    def neighbours(label: int) -> np.ndarray:
        mask = labels == label
        shell = ndimage.binary_dilation(mask) & ~mask
        return np.bincount(labels[shell], minlength=NUMBER_OF_CLASSES) / np.count_nonzero(shell)

    around_ventricles = neighbours(VENTRICLES)
    assert around_ventricles[CORTEX] + around_ventricles[RIM] + around_ventricles[0] < 0.02
    around_white_matter = neighbours(WM)
    assert around_white_matter[CORTEX] > 0.75
    assert around_white_matter[RIM] == around_white_matter[0] == 0


def test_outside_is_exactly_zero_and_enclosed_by_the_rim(newborns: dict[float, Phantom]) -> None:
    phantom = newborns[40.0]
    labels, t1, t2 = (as_array(image) for image in (phantom.labels, phantom.t1, phantom.t2))
    assert np.array_equal(t1 == 0, labels == 0) and np.array_equal(t2 == 0, labels == 0)
    beside = ndimage.binary_dilation(labels == 0) & (labels > 0)
    assert set(np.unique(labels[beside])) == {RIM}
    edge = np.ones(labels.shape, bool)
    edge[1:-1, 1:-1, 1:-1] = False
    assert not labels[edge].any()


@pytest.mark.parametrize("age", AGES)
def test_brain_is_one_piece(newborns: dict[float, Phantom], age: float) -> None:
    labels = as_array(newborns[age].labels)
    tissue = np.isin(labels, [t.index for t in TISSUES if t.brain or t.index == VENTRICLES])
    assert ndimage.label(tissue | (labels == CSF))[1] == 1
    largest = np.bincount(ndimage.label(tissue)[0].ravel())[1:].max()
    # the cerebellum of the youngest may stand free of the brainstem in its cistern
    assert largest / np.count_nonzero(tissue) > 0.85


def test_folding_grows_with_age(newborns: dict[float, Phantom]) -> None:
    def surface_ratio(age: float) -> float:
        """Boundary of the cerebrum against that of its closed outline: a voxel gyrification index."""
        cerebrum = np.isin(as_array(newborns[age].labels), [CORTEX, WM, DEEP_GM, VENTRICLES, HIPPOCAMPUS])
        radius = round(6 / newborns[age].labels.GetSpacing()[0])
        padded = np.pad(cerebrum, radius + 1)
        near = ndimage.distance_transform_edt(~padded) <= radius
        outline = ndimage.distance_transform_edt(near) > radius
        faces = [sum(np.count_nonzero(np.diff(m.astype(np.int8), axis=a)) for a in range(3)) for m in (padded, outline)]
        return faces[0] / faces[1]

    def cortical_share(age: float) -> float:
        measured = volumes_ml(newborns[age].labels)
        return measured[CORTEX] / (measured[CORTEX] + measured[WM])

    young, middle, term = (surface_ratio(age) for age in AGES)
    assert young + 0.2 < middle < term - 0.2
    assert cortical_share(28.0) < cortical_share(34.0) < cortical_share(40.0)


def test_contrast_is_a_newborns(newborns: dict[float, Phantom]) -> None:
    phantom = newborns[40.0]
    labels = as_array(phantom.labels)
    t1, t2 = (
        {label: float(np.median(as_array(image)[labels == label])) for label in range(1, NUMBER_OF_CLASSES)}
        for image in (phantom.t1, phantom.t2)
    )
    assert t2[VENTRICLES] > t2[WM] > t2[CORTEX] and t2[CSF] > 1.3 * t2[WM]
    assert t1[VENTRICLES] < t1[WM] < t1[CORTEX] and t1[CSF] < 0.9 * t1[WM]
    assert t2[BRAINSTEM] < t2[DEEP_GM] < t2[WM]
    assert t1[BRAINSTEM] > t1[DEEP_GM] > t1[WM]


def test_noise_and_bias_are_as_asked() -> None:
    def draw(noise: float, bias: float) -> np.ndarray:
        return as_array(draw_newborn(30.0, spacing_mm=1.5, noise=noise, bias=bias).t2).astype(float)

    clean = draw(0.0, 0.0)
    inside = clean > 100
    residual = (draw(0.05, 0.0) - clean)[inside]
    assert residual.std() == pytest.approx(0.05 * 500, rel=0.15)
    gain = draw(0.0, 0.3)[inside] / clean[inside]
    assert 0.69 < gain.min() < gain.max() < 1.32  # stored as whole numbers
    assert gain.max() - gain.min() > 0.1


def test_same_seed_is_identical_and_another_differs() -> None:
    plain, again, other = (draw_newborn(36.0, seed=seed, spacing_mm=1.6) for seed in (4, 4, 5))
    for name in ("t1", "t2", "labels"):
        assert np.array_equal(as_array(getattr(plain, name)), as_array(getattr(again, name)))
    assert again.name == plain.name != other.name
    overlap = dice(as_array(plain.labels) == CORTEX, as_array(other.labels) == CORTEX)
    assert overlap < 0.8


@pytest.mark.parametrize(
    "grid",
    [
        {"orientation": "RAS", "spacing_mm": 1.0},
        {"orientation": "PIR", "spacing_mm": (0.8, 1.3, 1.0)},
        {"oblique_degrees": 25.0, "spacing_mm": 0.8},
    ],
    ids=["RAS", "anisotropic PIR", "oblique"],
)
def test_every_grid_shows_the_same_head(plain: Phantom, grid: dict[str, object]) -> None:
    drawn = draw_newborn(36.0, seed=4, **grid)
    back = sitk.Resample(drawn.labels, plain.labels, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    moved, reference = as_array(back), as_array(plain.labels)
    scores = {t.key: dice(moved == t.index, reference == t.index) for t in PHYSIOLOGICAL}
    # half a voxel of shift costs a ribbon of two voxels far more than a lump
    thin = {"csf", "cortical_gm", "ventricles", "hippocampus"}
    assert all(score > (0.7 if key in thin else 0.85) for key, score in scores.items()), scores
    assert np.mean(list(scores.values())) > 0.85


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "AIL"])
def test_axes_point_where_asked(orientation: str) -> None:
    labels = draw_newborn(28.0, spacing_mm=(3.0, 4.0, 5.0), orientation=orientation).labels
    named = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(labels.GetDirection())
    assert named == orientation
    assert labels.GetSpacing() == (3.0, 4.0, 5.0)


def test_skull_is_drawn_on_request_and_leaves_the_labels_alone(plain: Phantom) -> None:
    whole = draw_newborn(36.0, seed=4, spacing_mm=1.0, skull=True)
    assert np.array_equal(as_array(whole.labels), as_array(plain.labels))
    t1, labels = as_array(whole.t1), as_array(whole.labels)
    from_brain = ndimage.distance_transform_edt(labels == 0)
    bone = np.median(t1[(from_brain > 1) & (from_brain < 2)])
    scalp = np.median(t1[(from_brain > 4) & (from_brain < 5)])
    assert scalp > 3 * bone


def test_scan_carries_images_and_age(plain: Phantom) -> None:
    scan = plain.scan
    assert scan.age_weeks == 36.0 and scan.name == plain.name
    assert scan.reference.GetSize() == plain.labels.GetSize()


def test_written_files_read_back(tmp_path: Path) -> None:
    paths = write_newborn(tmp_path / "demo", age_weeks=32.0, spacing_mm=2.0, orientation="LAS")
    assert sorted(path.name for path in paths.values()) == [
        "sub-phantom_T1w.nii.gz",
        "sub-phantom_T2w.nii.gz",
        "sub-phantom_dseg.nii.gz",
    ]
    drawn = draw_newborn(32.0, spacing_mm=2.0, orientation="LAS")
    labels = sitk.ReadImage(str(paths["labels"]))
    assert np.array_equal(as_array(labels), as_array(drawn.labels))
    assert labels.GetOrigin() == pytest.approx(drawn.labels.GetOrigin(), abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"age_weeks": 60.0}, "60"),
        ({"spacing_mm": 0.0}, "spacing"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing"),
        ({"orientation": "LLS"}, "LLS"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_impossible_requests_are_refused_in_words(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(NeonatalSegError, match=words):
        draw_newborn(**arguments)
