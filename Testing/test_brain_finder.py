"""The brain finder: its network without torch, what it finds, and the heads that it learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from NeonatalSegLib.brain_finder import find, forward, heads
from NeonatalSegLib.brain_finder.find import brain_volume_ml, find_brain
from NeonatalSegLib.brain_finder.grid import FAR_MM, SPACING_MM, STRIDE, finder_input
from NeonatalSegLib.brain_finder.heads import Newborn, drawn_around, head_grid
from NeonatalSegLib.brain_finder.network import FinderNetwork
from NeonatalSegLib.brain_finder.painting import painted
from NeonatalSegLib.brain_finder.pool import HELD_OUT_NEWBORNS, heads_of, newborns_of, write
from NeonatalSegLib.brain_finder.train import train
from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.robustness.alterations import Alteration, altered
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import RIM_MM, foreground


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def inside(phantom: Phantom, image: sitk.Image) -> np.ndarray:
    """What lies inside the synthetic newborn's skull, on an image's grid."""
    on_grid = sitk.Resample(phantom.labels, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return heads.inside_skull(sitk.GetArrayFromImage(on_grid))


@pytest.fixture(scope="module")
def small_newborn(newborn: Phantom) -> Newborn:
    """The synthetic newborn on a head's grid, as ``load_newborn`` gives a real one."""
    grid = head_grid()
    blank = grid.image(np.zeros(grid.shape, np.uint8))

    def onto(image: sitk.Image, how: int) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.Resample(image, blank, sitk.Transform(), how, 0))

    labels = onto(newborn.labels, sitk.sitkNearestNeighbor).astype(np.uint8)
    images = [onto(sitk.Cast(i, sitk.sitkFloat32), sitk.sitkLinear) for i in (newborn.t1, newborn.t2)]
    return Newborn(
        "phantom", labels, np.stack([heads.unit(i, i > 0) for i in images]), heads.inside_skull(labels), grid
    )


def test_numpy_computes_what_torch_computes() -> None:
    torch.manual_seed(0)
    network = FinderNetwork((4, 6, 8, 8)).eval()
    for name, value in network.named_parameters():  # norms that do something
        if value.ndim == 1:
            value.data.uniform_(0.5, 1.5) if name.endswith("weight") else value.data.normal_()
    image = np.random.default_rng(0).random((32, 48, 16)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None, None])[0, 0].numpy()
    shares: list[float] = []
    found = forward.distance_mm(image, {k: v.numpy() for k, v in network.state_dict().items()}, shares.append)
    assert len(shares) == 14 and shares == sorted(shares) and shares[-1] == 1.0
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("modality", ["t1", "t2"])
@pytest.mark.parametrize("head", ["as-is", "skull"])
def test_a_synthetic_newborn_is_found(newborn: Phantom, modality: str, head: str) -> None:
    scan = newborn.scan if head == "as-is" else altered(newborn.scan, Alteration(head="skull"), seed=0)
    image = getattr(scan, modality)
    found = find_brain(image, foreground(image))
    assert found is not None
    away, truth = found.on(Grid.of(image)), inside(newborn, image)
    assert dice(away < 0, truth) > 0.88
    assert np.count_nonzero(truth & (away > RIM_MM)) <= 0.002 * np.count_nonzero(truth)  # hardly anything is lost
    assert found.volume_ml == pytest.approx(brain_volume_ml(found.distance_mm))


def test_how_the_voxels_are_stored_does_not_matter(newborn: Phantom) -> None:
    plain = find_brain(newborn.t2)
    turned = find_brain(sitk.DICOMOrient(newborn.t2, "SLA"))
    assert plain is not None and turned is not None
    grid = Grid.of(newborn.labels)
    assert dice(plain.on(grid) < 0, turned.on(grid) < 0) > 0.99


def test_of_several_things_the_largest_is_the_brain() -> None:
    distance = np.full((40, 40, 40), FAR_MM, np.float32)
    distance[5:20, 5:20, 5:20] = -3.0
    distance[10:12, 10:12, 10:12] = 2.0  # a hole in it
    distance[30:36, 30:36, 30:36] = -3.0
    main = find._main_part(distance)
    assert (main[5:20, 5:20, 5:20] < 0).all()
    assert (main[30:36, 30:36, 30:36] > RIM_MM).all()


def test_an_empty_scan_has_no_brain() -> None:
    assert find_brain(sitk.Image(60, 60, 60, sitk.sitkFloat32)) is None


def test_damaged_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "finder.npz").write_bytes(b"PK\x03\x04 not an archive")
    monkeypatch.setattr(find, "weights_file", lambda: tmp_path / "finder.npz")
    find.weights.cache_clear()
    try:
        with pytest.raises(NeonatalSegError, match=r"finder\.npz"):
            find.weights()
    finally:
        find.weights.cache_clear()


def test_the_finders_grid_lies_where_the_scan_lies(newborn: Phantom) -> None:
    array, grid = finder_input(newborn.t2, foreground(newborn.t2))
    assert array.shape == grid.shape
    assert all(n % STRIDE == 0 for n in array.shape) and grid.spacing_mm == (SPACING_MM,) * 3
    assert array.min() >= 0 and array.max() <= 1.5
    back = sitk.Resample(grid.image(array), newborn.t2, sitk.Transform(), sitk.sitkLinear, 0.0)
    pair = np.corrcoef(sitk.GetArrayFromImage(back).ravel(), sitk.GetArrayFromImage(newborn.t2).ravel())
    assert pair[0, 1] > 0.95


def test_a_field_of_view_of_metres_is_refused() -> None:
    image = sitk.Image(64, 64, 64, sitk.sitkFloat32)
    image.SetSpacing((20.0,) * 3)
    with pytest.raises(NeonatalSegError, match="crop it first"):
        finder_input(image)


def test_a_drawn_head_holds_the_newborn_and_knows_where(small_newborn: Newborn) -> None:
    composed = drawn_around(small_newborn, np.random.default_rng(3))
    brain = small_newborn.brain
    tissue = composed.parts // heads.CLUSTERS
    assert ((tissue == small_newborn.labels) | (small_newborn.labels == 0))[brain].all()
    inner = composed.distance_mm < 0
    assert inner[brain].mean() > 0.999
    fluid = inner & ~brain
    assert (tissue[fluid] == 1).all()  # what was added inside the skull is fluid
    around = (composed.parts >= heads.OUTSIDE) & ~inner
    assert np.count_nonzero(around) > 0.3 * np.count_nonzero(brain)  # a head


def test_shells_go_around_what_the_scan_shows(small_newborn: Newborn) -> None:
    """As the robustness matrix draws a skull: around brain and rim, which stay as the brain's surface does."""
    composed = heads.shells_around(small_newborn, np.random.default_rng(6))
    brain, labels = small_newborn.brain, small_newborn.labels
    shell = composed.parts >= heads.OUTSIDE
    assert set(np.unique(composed.parts[shell])) <= {heads.GAP, heads.BONE, heads.SCALP, heads.SCALP + 1}
    assert not (shell & (labels > 0)).any()
    assert np.count_nonzero(shell) > 0.2 * np.count_nonzero(brain)
    assert ((composed.distance_mm < 0) == brain).mean() > 0.9999
    tissue = composed.parts // heads.CLUSTERS
    assert (tissue == labels)[brain & (labels > 0)].all()


def test_painting_keeps_image_and_distance_together(small_newborn: Newborn) -> None:
    composed = drawn_around(small_newborn, np.random.default_rng(4))
    tensors = (
        torch.from_numpy(composed.parts),
        torch.from_numpy(composed.guides).float() / 255,
        torch.from_numpy(composed.distance_mm).float() / 4,
    )
    shown = []
    for seed in range(8):
        image, distance = painted(*tensors, 1.0, (64, 80, 64), torch.Generator().manual_seed(seed))
        again = painted(*tensors, 1.0, (64, 80, 64), torch.Generator().manual_seed(seed))[0]
        assert image.shape == distance.shape and torch.equal(image, again)
        assert all(n % STRIDE == 0 for n in image.shape)
        assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1.5
        assert distance.abs().max() <= FAR_MM
        shown.append(float((image[distance < -1] > 0).float().mean()))
    assert np.mean(shown) > 0.9  # what is called brain is in the picture


def test_training_goes_on_where_it_was_stopped(small_newborn: Newborn, tmp_path: Path) -> None:
    write(drawn_around(small_newborn, np.random.default_rng(5)), tmp_path / "head-00000.npz")
    train(tmp_path, tmp_path / "run", 2)
    first = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    train(tmp_path, tmp_path / "run", 3)
    second = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (first["step"], second["step"]) == (2, 3)
    moved = [(first["network"][k] - second["network"][k]).abs().max().item() for k in first["network"]]
    assert 0 < max(moved) < 0.1  # one step from there, not a new start
    with np.load(tmp_path / "run" / "finder.npz") as kept:
        assert {name: kept[name].shape for name in kept.files} == {
            name: tuple(value.shape) for name, value in FinderNetwork().state_dict().items()
        }
    train(tmp_path, tmp_path / "other", 1, rate=0.0, start=tmp_path / "run" / "finder.npz")
    with np.load(tmp_path / "run" / "finder.npz") as one, np.load(tmp_path / "other" / "finder.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files)  # began there, and learned nothing


def test_a_held_out_newborn_in_the_held_out_head(data_folder: Path) -> None:
    alberts, templates = data_folder / "alberts", data_folder / "templates"
    newborn = next(n for n in newborns_of(alberts, templates, held_out=True) if n.name == "07")
    assert newborn.name in HELD_OUT_NEWBORNS
    (head,) = heads_of(data_folder / "heads", held_out=True)
    images, truth = heads.whole_head(newborn, head, seed=7)
    tissue = np.isin(newborn.labels, (1, 2, 3, 5, 6, 7, 8, 9)) & truth
    for image in images:
        found = find_brain(newborn.grid.image(image))
        assert found is not None
        away = found.on(newborn.grid)
        assert dice(away < 0, truth) >= 0.92
        assert (away[tissue] > RIM_MM).mean() <= 0.002
