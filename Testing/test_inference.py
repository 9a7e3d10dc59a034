"""The Segmenter with the shipped model: what comes out, and what happens when memory or the user run out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_models import random_model
from torch import nn

from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.models.registry import DEFAULT_MODEL
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.torch_engine import predict_windows
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.scan import load_scan, make_scan
from NeonatalSegLib.segmentation.device import choose_device
from NeonatalSegLib.segmentation.plausibility import cut_brain_warning
from NeonatalSegLib.segmentation.segmenter import (
    Segmentation,
    Segmenter,
    SegmentOptions,
    entropy,
    window_sizes,
)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(device="cpu")


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Random weights and large voxels: quick, where it does not matter what the network has learned."""
    return Segmenter(random_model(tmp_path_factory.mktemp("model") / "tiny"), "cpu")


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return draw_newborn(40.0, seed=11, spacing_mm=3.0)


@pytest.fixture(scope="module")
def whole(segmenter: Segmenter, newborn: Phantom) -> Segmentation:
    return segmenter.segment(newborn.scan, SegmentOptions(probabilities=True, uncertainty=True))


def labels_of(segmentation: Segmentation) -> np.ndarray:
    return sitk.GetArrayFromImage(segmentation.label_map)


def test_the_result_lies_on_the_t2_and_is_right_in_the_main(whole: Segmentation, newborn: Phantom) -> None:
    assert Grid.of(whole.label_map).is_like(Grid.of(newborn.t2))
    assert whole.label_map.GetPixelID() == sitk.sitkUInt8
    dsc = dice_per_class(labels_of(whole), sitk.GetArrayFromImage(newborn.labels))
    assert mean_dice_no_background(dsc) > 0.6  # a drawing, not a newborn: this is about wiring
    assert set(whole.times_s) == {"prepare", "network", "back"}
    assert whole.model_name == DEFAULT_MODEL and len(whole.model_hash) == 64


def test_volumes_are_those_of_the_label_map(whole: Segmentation) -> None:
    counted = np.bincount(labels_of(whole).ravel(), minlength=10)
    assert list(whole.volumes_ml.values()) == pytest.approx(counted * 1.0 / 1000)


def test_maps_agree_with_the_labels(whole: Segmentation) -> None:
    assert whole.probabilities is not None and whole.uncertainty is not None
    probabilities = sitk.GetArrayFromImage(whole.probabilities)
    assert np.array_equal(probabilities.argmax(-1), labels_of(whole))
    uncertainty = sitk.GetArrayFromImage(whole.uncertainty)
    assert uncertainty.min() >= 0 and uncertainty.max() <= 1
    sure = probabilities.max(-1) > 0.99
    assert uncertainty[sure].max() < uncertainty[~sure].mean()


@pytest.mark.parametrize("key", ["t1", "t2"])
def test_one_modality_is_enough(segmenter: Segmenter, newborn: Phantom, key: str) -> None:
    found = segmenter.segment(make_scan(**{key: getattr(newborn, key)}))
    dsc = dice_per_class(labels_of(found), sitk.GetArrayFromImage(newborn.labels))
    assert mean_dice_no_background(dsc) > 0.4
    assert found.registration_quality is None


def test_the_same_head_turned_gives_the_same_labels(
    segmenter: Segmenter, whole: Segmentation, newborn: Phantom
) -> None:
    turned = segmenter.segment(make_scan(sitk.DICOMOrient(newborn.t1, "SAR"), sitk.DICOMOrient(newborn.t2, "SAR")))
    back = sitk.GetArrayFromImage(sitk.DICOMOrient(turned.label_map, "LPS"))
    assert (back == labels_of(whole)).mean() > 0.999


def test_progress_rises_to_one_and_may_cancel(random: Segmenter, coarse: Phantom) -> None:
    seen: list[tuple[str, float]] = []
    random.segment(coarse.scan, progress=lambda stage, fraction: seen.append((stage, fraction)))
    fractions = [f for _, f in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {s for s, _ in seen} == {"prepare", "network", "back"}

    def stop(stage: str, fraction: float) -> None:
        if stage == "network":
            raise Cancelled

    with pytest.raises(Cancelled):
        random.segment(coarse.scan, progress=stop)
    assert len(np.unique(labels_of(random.segment(coarse.scan)))) > 1  # and works on afterwards


def mirrored(image: sitk.Image) -> sitk.Image:
    """Left and right exchanged in space: sitk.Flip turns the axes along, and the head stays the same."""
    turned = sitk.GetImageFromArray(np.flip(sitk.GetArrayViewFromImage(image), 2))
    turned.CopyInformation(image)
    return turned


def test_flips_make_the_prediction_symmetric(random: Segmenter, coarse: Phantom) -> None:
    """Of random weights, which without flips are far from symmetric."""
    heads = coarse.scan, make_scan(mirrored(coarse.t1), mirrored(coarse.t2))
    apart = {}
    for flips in (False, True):
        options = SegmentOptions(flips=flips, probabilities=True)
        one, other = (random.segment(head, options).probabilities for head in heads)
        assert one is not None and other is not None
        back = np.flip(sitk.GetArrayViewFromImage(other), 2)
        apart[flips] = np.abs(sitk.GetArrayViewFromImage(one) - back).mean()
    assert apart[True] < 0.02 * apart[False]


class Hungry(nn.Module):
    """A network on a machine with room for ``limit`` voxels: larger windows run out of memory."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.shapes = limit, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        if x[0, 0].numel() > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return torch.cat([x, x.new_zeros((1, 8, *x.shape[2:]))], 1)


def test_out_of_memory_falls_back_to_smaller_windows_and_says_so(newborn: Phantom) -> None:
    segmenter = Segmenter(device="cpu", engine="torch")
    segmenter.engine.network = network = Hungry(64**3)
    warnings = segmenter.segment(newborn.scan).warnings
    assert any("Memory ran out" in w and "64 voxels" in w for w in warnings)
    assert max(np.prod(s) for s in network.shapes[-1:]) <= 64**3


def test_too_little_memory_for_anything_is_told(newborn: Phantom) -> None:
    segmenter = Segmenter(device="cpu", engine="torch")
    segmenter.engine.network = Hungry(10)
    with pytest.raises(NeonatalSegError, match="too little memory"):
        segmenter.segment(newborn.scan)


class Voxelwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], 1)


@pytest.mark.parametrize("shape", [(20, 33, 50), (70, 40, 17), (64, 64, 64)])
def test_windows_give_what_the_whole_volume_gives(shape: tuple[int, int, int]) -> None:
    """For a network that looks at single voxels, however the windows lie."""
    settings = NetworkSettings((4, 8, 8), 1.0, (32, 32, 32), heads=1)
    image = torch.randn(2, *shape)
    found = predict_windows(Voxelwise(), image, settings)
    expected = torch.softmax(torch.cat([image, -image]), 0)
    assert found.shape == (4, *shape)
    assert torch.allclose(found, expected, atol=1e-3)


def test_windows_are_the_training_patch_unless_the_model_was_trained_for_one() -> None:
    network = NetworkSettings((16, 32, 64, 128, 256), 0.8, (96, 96, 96))
    assert window_sizes(network, (130, 170, 120)) == [(96,) * 3, (64,) * 3, (32,) * 3]
    assert window_sizes(network, (130, 170, 120), one_window=True)[:2] == [(144, 176, 128), (96,) * 3]
    assert window_sizes(network, (340, 350, 240), one_window=True)[0] == (96,) * 3  # a whole head: too much memory


def test_devices_are_not_promised_in_vain() -> None:
    assert choose_device("auto")[0].type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(NeonatalSegError, match="no device 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(NeonatalSegError, match="No GPU can be used"):
            choose_device("cuda")


def test_entropy_is_zero_when_certain_and_one_when_not() -> None:
    assert entropy(np.eye(10)[0]) == pytest.approx(0, abs=1e-4)
    assert entropy(np.full(10, 0.1)) == pytest.approx(1, abs=1e-5)


def test_a_cut_brain_is_noticed(newborn: Phantom) -> None:
    labels = sitk.GetArrayFromImage(newborn.labels)
    assert not cut_brain_warning(labels)
    assert cut_brain_warning(labels[: int(0.7 * len(labels))])
    assert cut_brain_warning(labels[:, :, labels.shape[2] // 3 :])


def test_two_newborns_in_one_scan_are_noticed(random: Segmenter, data_folder: Path) -> None:
    def path(subject: str, contrast: str) -> Path:
        return data_folder / "alberts" / subject / "anat" / f"{subject}_{contrast}.nii.gz"

    mixed = load_scan(path("sub-ALBERT07", "T1w"), path("sub-ALBERT16", "T2w"))
    assert any("different newborns" in w for w in random.segment(mixed).warnings)
    with pytest.raises(NeonatalSegError, match="--strict"):
        random.segment(mixed, SegmentOptions(strict=True))


def test_an_age_outside_training_is_told(segmenter: Segmenter, newborn: Phantom) -> None:
    young = make_scan(t2=newborn.t2, age_weeks=28)
    assert any("28 weeks is outside" in w for w in segmenter.segment(young).warnings)
