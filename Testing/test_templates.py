"""Age templates in training: their merged classes, their share of the patches, and what a model then says of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from NeonatalSegLib.datasets.cache import CachedSubject, build_cache, read_cache
from NeonatalSegLib.datasets.templates import MERGED, find_templates
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.robustness.matrix import template_sources
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.training.patches import PatchDataset
from NeonatalSegLib.training.run import TrainingSettings, train
from NeonatalSegLib.training.task import SegmentationTask

TINY = NetworkSettings((4, 8, 8), 2.0, (16, 16, 16), heads=1)
SETTINGS = TrainingSettings(
    network=TINY, epochs=2, steps_per_epoch=2, batch_size=2, optimizer="adamw", learning_rate=1e-3, validate_every=1,
    template_share=0.5,
)  # fmt: skip


def write_scan(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((24, 22, 20), np.uint8)
    labels[3:-3, 3:-3, 3:-3] = 3
    labels[6:12, 6:16, 6:14] = 7
    labels[12:16, 6:16, 6:14] = 6
    random = np.random.default_rng(0)
    for ending, image in (("T1w", labels * 50.0), ("T2w", (labels > 0) * 600 - labels * 40.0)):
        noisy = image + (labels > 0) * random.normal(0, 5, labels.shape)
        sitk.WriteImage(_image(noisy.astype(np.float32)), str(folder / f"{name}_{ending}.nii.gz"))
    sitk.WriteImage(_image(labels), str(folder / f"{name}_dseg.nii.gz"))


def _image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("templates")
    for age in (30, 36):
        write_scan(root / f"age-{age}", f"age-{age}")
    return root


@pytest.fixture(scope="module")
def cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedSubject]:
    """One template and one subject whose labels tell everything apart."""
    (template,) = find_templates(folder, [36])
    whole = dataclasses.replace(template, name="sub-A", merged=(), kind="newborn")
    return build_cache([template, whole], tmp_path_factory.mktemp("cache"), TINY.spacing_mm)


def test_a_cache_remembers_which_classes_are_merged(cache: list[CachedSubject]) -> None:
    again = {s.name: s for s in read_cache(cache[0].folder)}
    assert again["age-36"].merged == MERGED and again["age-36"].age_weeks == 36.0
    assert again["sub-A"].merged == ()
    assert "merged" not in json.loads((cache[0].folder / "cache.json").read_text(encoding="utf-8"))["subjects"]["sub-A"]


def test_a_template_does_not_say_which_of_the_merged_classes_a_voxel_is(cache: list[CachedSubject]) -> None:
    patches = PatchDataset(cache, SETTINGS)
    task = SegmentationTask(SETTINGS, patches=patches)
    names = [s.name for s in patches.everyone]
    items = {names[int(item["subject"])]: item for item in (patches[i] for i in range(20))}
    outputs = [torch.randn(1, 10, 16, 16, 16), torch.randn(1, 10, 8, 8, 8)]
    order = [0, 1, 2, 3, 4, 5, 8, 9, 6, 7]  # cerebellum and brainstem exchanged, deep grey matter and hippocampus too
    exchanged = [out[:, order] for out in outputs]

    def loss(name: str, of: list[torch.Tensor]) -> float:
        batch = {key: value[None] for key, value in items[name].items()}
        return float(task._segmentation_loss(of, batch))

    assert {6, 7} & set(items["age-36"]["label"].unique().tolist())
    assert loss("age-36", exchanged) == pytest.approx(loss("age-36", outputs), abs=1e-5)
    assert abs(loss("sub-A", exchanged) - loss("sub-A", outputs)) > 1e-3


def test_a_batch_of_both_kinds_is_the_mean_of_its_samples(cache: list[CachedSubject]) -> None:
    patches = PatchDataset(cache, SETTINGS)
    task = SegmentationTask(SETTINGS, patches=patches)
    items = [patches[i] for i in range(20)]
    chosen = [next(i for i in items if int(i["subject"]) == place) for place in (0, 1)]
    outputs = [torch.randn(2, 10, 16, 16, 16), torch.randn(2, 10, 8, 8, 8)]
    both = task._segmentation_loss(outputs, {k: torch.stack([i[k] for i in chosen]) for k in chosen[0]})
    single = [
        task._segmentation_loss([out[n : n + 1] for out in outputs], {k: v[None] for k, v in item.items()})
        for n, item in enumerate(chosen)
    ]
    assert float(both) == pytest.approx(float(sum(single)) / 2, abs=1e-5)


def test_templates_get_their_share_of_the_patches(cache: list[CachedSubject]) -> None:
    patches = PatchDataset(cache, dataclasses.replace(SETTINGS, phantom_share=0.3, template_share=0.25))
    random = np.random.default_rng(0)
    drawn = [patches._draw_subject(random).name for _ in range(2000)]
    assert drawn.count("age-36") / 2000 == pytest.approx(0.25, abs=0.03)


def test_a_cache_of_before_kinds_were_written_still_opens(cache: list[CachedSubject], tmp_path: Path) -> None:
    old = shutil.copytree(cache[0].folder, tmp_path / "old")
    index = json.loads((old / "cache.json").read_text(encoding="utf-8"))
    assert {name: entry.pop("kind") for name, entry in index["subjects"].items()}["age-36"] == "template"
    (old / "cache.json").write_text(json.dumps(index), encoding="utf-8")
    assert [(s.name, s.kind) for s in read_cache(old)] == [(s.name, s.kind) for s in read_cache(cache[0].folder)]


def test_a_model_is_not_judged_on_templates_that_trained_it(
    folder: Path, cache: list[CachedSubject], tmp_path: Path
) -> None:
    model = train(cache, SETTINGS, tmp_path / "run", workers=0).save(tmp_path / "model")
    assert model.facts.training_subjects == ("age-36", "sub-A")
    assert "trained on 1 newborns" in model.description
    with pytest.raises(NeonatalSegError, match=r"trained on the template age-36.*--ages 30"):
        template_sources(folder, [30, 36], model)
    assert [s.name for s in template_sources(folder, [30], model)] == ["age-30"]


def test_an_age_without_template_is_told(folder: Path) -> None:
    with pytest.raises(NeonatalSegError, match=r"no template of 31 weeks: .*age-31_T1w.* Ages in .*: 30, 36"):
        find_templates(folder, [30, 31])
    with pytest.raises(NeonatalSegError, match="No age"):
        find_templates(folder, [])
