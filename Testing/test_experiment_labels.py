"""Training on sparse labels: which slices are labelled, and that nothing else is learned from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_experiments import SETTINGS, write_cache

from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.trial import label_masks
from NeonatalSegLib.training.run import train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def test_sparse_training_sees_no_unlabelled_voxel(cache: Path, tmp_path: Path) -> None:
    """Other labels outside the slices change nothing; other labels inside them do."""
    subjects = read_cache(cache)[:2]
    masks = label_masks(subjects, {"axis": "axial", "percent": 33, "selection": "equidistant", "seed": 0}, 3.0)
    settings = dataclasses.replace(SETTINGS.training, epochs=2, validate_every=2)

    def trained(name: str, change: Callable[[np.ndarray, np.ndarray], None]) -> torch.Tensor:
        folder = shutil.copytree(cache, tmp_path / f"{name}-cache")
        for subject in subjects:
            labels = np.load(folder / f"{subject.name}_labels.npy")
            change(labels, masks[subject.name])
            np.save(folder / f"{subject.name}_labels.npy", labels)
        done = train(read_cache(folder)[:2], settings, tmp_path / name, known=masks, workers=0)
        return torch.cat([p.detach().flatten() for p in done.network.parameters()])

    def outside(labels: np.ndarray, mask: np.ndarray) -> None:
        labels[~mask] = 9 - labels[~mask]

    def inside(labels: np.ndarray, mask: np.ndarray) -> None:
        labels[mask] = 9 - labels[mask]

    plain = trained("plain", lambda labels, mask: None)
    assert torch.equal(plain, trained("outside", outside))
    assert not torch.equal(plain, trained("inside", inside))


def test_masks_are_whole_slices_of_the_central_part_and_a_third(cache: Path) -> None:
    subjects = read_cache(cache)
    for axis, place, length in (("axial", 0, 20), ("coronal", 1, 22), ("sagittal", 2, 24)):
        masks = label_masks(subjects, {"axis": axis, "percent": 33, "selection": "random", "seed": 1}, 3.0)
        for mask in masks.values():
            rows = mask.any(axis=tuple(a for a in range(3) if a != place))
            assert rows.sum() == round(0.33 * length)
            assert not rows[0] and not rows[-1]
            assert mask.sum() == rows.sum() * mask.size / length  # whole planes and nothing else
    fixed = {"axis": "random", "percent": 33, "selection": "random", "seed": 5}
    again = [label_masks(subjects, fixed, 3.0) for _ in range(2)]
    assert all(np.array_equal(again[0][name], again[1][name]) for name in again[0])
    axes = {tuple(bool(m.any(axis=o).all()) for o in ((1, 2), (0, 2), (0, 1))) for m in again[0].values()}
    assert len(axes) > 1  # one axis for each scan, and not the same for all


def test_wrong_masks_are_refused(cache: Path, tmp_path: Path) -> None:
    subjects = read_cache(cache)[:2]
    shape = subjects[0].labels().shape
    for masks, words in (
        ({"sub-7": np.ones(shape, bool)}, "not trained on"),
        ({"sub-0": np.ones((2, 2, 2), bool)}, "expected bool"),
        ({"sub-0": np.zeros(shape, bool)}, "Nothing is labelled in sub-0"),
    ):
        with pytest.raises(NeonatalSegError, match=words):
            train(subjects, SETTINGS.training, tmp_path / words, known=masks, workers=0)


def test_random_slices_leave_gaps_and_equidistant_ones_do_not(tmp_path: Path) -> None:
    """On an axis of 290 slices, a third of them: the published runs' largest gaps were 6 to 18 slices."""
    labels = np.ones((290, 16, 16), np.uint8)
    np.save(tmp_path / "sub-0_labels.npy", labels)
    subject = CachedSubject("sub-0", tmp_path, 40.0)
    largest: dict[str, list[int]] = {"random": [], "equidistant": []}
    for selection, gaps in largest.items():
        for seed in range(8):
            slices = {"axis": "axial", "percent": 33, "selection": selection, "seed": seed}
            mask = label_masks([subject], slices, 3.0)["sub-0"]
            assert mask.strides[1:] == (0, 0)  # hundreds of masks take no memory
            gaps.append(int(np.diff(np.flatnonzero(mask[:, 0, 0])).max()))
    assert min(largest["random"]) >= 6 and max(largest["equidistant"]) <= 3
