"""What a run of several sessions needs: a pool of patches, averaged weights, whole brains, ages that hold, going on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from NeonatalSegLib.augmentation.randomisation import RandomisationSettings
from NeonatalSegLib.datasets.cache import CachedSubject, build_cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.training.patch_pool import PatchPool, changed, pooled
from NeonatalSegLib.training.patches import PatchDataset
from NeonatalSegLib.training.run import newest, train
from NeonatalSegLib.training.settings import TrainingSettings
from NeonatalSegLib.training.task import SegmentationTask

REAL = RandomisationSettings(
    synthetic=0, hybrid=0, moved=0, skull=0, tight=0, bias=0, gamma=0, motion=0, coarse=0, noise=0, misaligned=0,
    drop_modality=0,
)  # fmt: skip
SETTINGS = TrainingSettings(
    network=NetworkSettings((4, 8, 8), 3.0, (16, 16, 16), heads=1, age_head=True),
    validation=("phantom02",),
    epochs=4,
    steps_per_epoch=4,
    batch_size=1,
    optimizer="adamw",
    learning_rate=1e-2,
    validate_every=2,
    randomisation=RandomisationSettings(),
    whole_brain=(0.0, 1.0),
    ema=0.9,
    pool=5,
    pool_uses=2,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[CachedSubject]:
    return build_cache([], tmp_path_factory.mktemp("cache"), 3.0, phantoms=3, seed=3)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key].nan_to_num(), other[key].nan_to_num()) for key in ("image", "label", "age"))


# The pool


def test_the_pool_gives_the_same_items_drawn_or_read_in_any_order(
    cache: list[CachedSubject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (pooled(PatchDataset(cache, SETTINGS), tmp_path / name) for name in "ab")
    items = [first[number] for number in range(10)]  # the second use of each patch is read from the disk
    assert all(same(items[number], second[number]) for number in (7, 2, 9, 0))
    with monkeypatch.context() as nothing_is_drawn:
        nothing_is_drawn.setattr(PatchPool, "_drawn", None)
        assert all(same(items[number], first[number]) for number in range(10))
    files = sorted((tmp_path / "a").glob("*.npz"))
    assert len(files) == 5
    for file in files[:3]:  # cut off by a crash
        file.write_bytes(file.read_bytes()[:100])
    assert all(same(items[number], first[number]) for number in range(10))


def test_every_patch_of_a_pool_is_used_as_often_as_told_and_never_twice_alike(
    cache: list[CachedSubject], tmp_path: Path
) -> None:
    pool = pooled(PatchDataset(cache, SETTINGS), tmp_path)
    assert isinstance(pool, PatchPool)
    entries = [pool.entry(number) for number in range(20)]
    assert sorted(entries[:10]) == sorted([*range(5), *range(5)])
    assert sorted(entries[10:]) == sorted([*range(5, 10), *range(5, 10)])
    one, other = (number for number in range(10) if entries[number] == 0)
    assert not same(pool[one], pool[other])
    for number in range(31):
        pool[number]
    assert {int(file.stem) // 5 for file in tmp_path.glob("*.npz")} == {2, 3}  # not those of long ago


def test_cheap_changes_keep_image_and_labels_together() -> None:
    labels = torch.zeros((12, 12, 12), dtype=torch.uint8)
    labels[:, 2:9, 1:6] = 3
    item = {"image": torch.stack([labels.half(), 5 - labels.half()]), "label": labels}
    blank = 0
    for seed in range(40):
        out = changed(item, 0.25, np.random.default_rng(seed))
        present = [bool(c.any()) for c in out["image"]]
        assert any(present)
        blank += not all(present)
        for channel, sign in zip(out["image"], (1, -1), strict=True):
            if bool(channel.any()):
                inside, outside = channel[out["label"] == 3].mean(), channel[out["label"] == 0].mean()
                assert sign * float(inside - outside) > 1.5
    assert 10 <= blank <= 30


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_computes_what_the_step_computes(cache: list[CachedSubject]) -> None:
    """Also of a patch that is larger than usual, which is not compiled."""
    plain = dataclasses.replace(SETTINGS, network=dataclasses.replace(SETTINGS.network, age_head=False))
    patches = PatchDataset(cache, dataclasses.replace(plain, randomisation=REAL, pool=0), total=100)
    usual, whole = (
        next(item for item in map(patches.__getitem__, numbers) if (item["label"].shape == (16,) * 3) == is_usual)
        for numbers, is_usual in ((range(100), True), (range(99, 0, -1), False))
    )
    seen = []
    for compiled in (False, True):
        torch.manual_seed(0)
        task = SegmentationTask(dataclasses.replace(plain, compiled=compiled)).train()
        for item in (usual, whole):
            task.network.zero_grad()
            loss = task._loss({key: value[None] for key, value in item.items()})
            loss.backward()
            gradients = [p.grad.clone() for p in task.network.parameters() if p.grad is not None]
            seen.append((loss.detach(), gradients))
    for (loss, gradients), (other, others) in zip(seen[:2], seen[2:], strict=True):
        assert torch.allclose(loss, other, atol=1e-5)
        assert len(gradients) == len(others) > 20
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients, others, strict=True))


def test_compiling_is_refused_with_an_age_head() -> None:
    with pytest.raises(NeonatalSegError, match="without an age head"):
        dataclasses.replace(SETTINGS, compiled=True)


# Patches of the whole brain, shares that go over, ages that hold


def test_whole_brain_patches_show_the_brain_and_come_in_towards_the_end(cache: list[CachedSubject]) -> None:
    settings = dataclasses.replace(SETTINGS, randomisation=REAL, pool=0)
    patches = PatchDataset(cache, settings, total=100)
    shapes = [tuple(patches[number]["label"].shape) for number in range(100)]
    whole = [shape != (16, 16, 16) for shape in shapes]
    assert sum(whole[:50]) + 10 < sum(whole[50:])  # about 12 and 37
    assert all(edge % settings.network.stride == 0 for shape in shapes for edge in shape)
    item = patches[next(number for number in range(99, 0, -1) if whole[number])]
    brains = {int(((np.array(s.labels()) != 0) & (np.array(s.labels()) != 4)).sum()) for s in cache}
    shown = int(((item["label"] != 0) & (item["label"] != 4)).sum())
    assert any(shown > 0.97 * brain for brain in brains)


def test_shares_go_over_from_the_start_to_the_end() -> None:
    start, end = RandomisationSettings(synthetic=0.1, skull=0.4), RandomisationSettings(synthetic=0.3, skull=0.0)
    half = start.towards(end, 0.5)
    assert (half.synthetic, half.skull, half.hybrid) == pytest.approx((0.2, 0.2, start.hybrid))
    assert start.towards(end, 1.0) == end and start.towards(end, 0.0) == start


def test_only_heads_of_their_own_size_and_anatomy_tell_an_age(cache: list[CachedSubject]) -> None:
    def known(randomisation: RandomisationSettings) -> list[bool]:
        patches = PatchDataset(cache, dataclasses.replace(SETTINGS, randomisation=randomisation, pool=0))
        return [bool(torch.isfinite(patches[number]["age"])) for number in range(12)]

    assert all(known(REAL))  # as they are
    smaller = dataclasses.replace(REAL, moved=1.0, scale=(0.7, 0.7))
    assert sum(known(smaller)) <= 6  # three in five are of 0.7, the others of about their size
    assert all(known(dataclasses.replace(REAL, synthetic=1.0, younger=0.0)))  # another contrast is the same anatomy
    assert not any(known(dataclasses.replace(REAL, synthetic=1.0, younger=1.0)))


def test_a_rescaled_patch_pulls_at_no_age(cache: list[CachedSubject], tmp_path: Path) -> None:
    """With nothing but younger brains the age head keeps its first answer; with brains as they are it learns."""
    answers = []
    for younger in (1.0, 0.0):
        randomisation = dataclasses.replace(REAL, synthetic=1.0, younger=younger)
        settings = dataclasses.replace(
            SETTINGS, randomisation=randomisation, whole_brain=(0.0, 0.0), weight_decay=0.0, ema=0.0
        )
        done = train(cache, settings, tmp_path / f"{younger}", workers=0)
        answers.append(float(done.network.forward_with_age(torch.ones(1, 2, 16, 16, 16))[1]))
    assert answers[0] == 40.0
    assert answers[1] != 40.0


def test_what_the_new_settings_need_is_said() -> None:
    with pytest.raises(NeonatalSegError, match="need a randomisation"):
        dataclasses.replace(SETTINGS, randomisation=None)
    with pytest.raises(NeonatalSegError, match="batch_size of 1"):
        dataclasses.replace(SETTINGS, batch_size=2)
    with pytest.raises(NeonatalSegError, match="done_epochs"):
        dataclasses.replace(SETTINGS, done_epochs=4)


# The run


def test_a_stopped_run_with_pool_and_average_ends_as_if_it_had_not_been(
    cache: list[CachedSubject], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(cache, SETTINGS, tmp_path / "whole", workers=0)
    train(cache, SETTINGS, tmp_path / "parts", workers=0, stop_after=1)
    capsys.readouterr()
    train(cache, SETTINGS, tmp_path / "parts", workers=0)
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert told == ["2/4", "3/4", "4/4"]  # it went on: one that starts again ends the same, for the seed is the same
    whole, parts = (torch.load(tmp_path / p / "last.ckpt", weights_only=True) for p in ("whole", "parts"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key])


def test_the_average_is_that_of_its_definition(cache: list[CachedSubject], tmp_path: Path) -> None:
    """Follow single steps, one epoch each: average = decay * average + (1 - decay) * weights."""
    settings = dataclasses.replace(SETTINGS, steps_per_epoch=1, validate_every=4, ema=0.75)
    averages, weights = [], []
    for epoch in range(1, 4):
        train(cache, settings, tmp_path, workers=0, stop_after=epoch)
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        name = next(n for n in saved["state_dict"] if n.endswith("conv.weight"))
        averages.append(saved["state_dict"][name]), weights.append(saved["current_model_state"][name])
    assert not torch.equal(weights[0], weights[1])
    expected = weights[0]  # the first step's
    for average, now in zip(averages[1:], weights[1:], strict=True):
        expected = 0.75 * expected + 0.25 * now
        assert torch.allclose(average, expected, atol=1e-6)


def test_what_ships_and_what_is_validated_is_the_average(cache: list[CachedSubject], tmp_path: Path) -> None:
    done = train(cache, SETTINGS, tmp_path, workers=0)
    saved = torch.load(done.checkpoint, weights_only=True)
    network = {name.removeprefix("network."): value for name, value in saved["state_dict"].items()}
    assert all(torch.equal(value, network[name]) for name, value in done.network.state_dict().items())
    assert not all(
        torch.equal(value, saved["current_model_state"][name]) for name, value in saved["state_dict"].items()
    )
    subject = next(s for s in cache if s.name == "phantom02")
    dsc, age_error = SegmentationTask(SETTINGS, network=done.network)._score(subject)
    assert done.validation_dsc == pytest.approx(dsc, abs=1e-3)
    assert done.validation_age_error_weeks == pytest.approx(age_error, abs=1e-3)


def test_a_network_without_age_head_is_a_start_for_one_with_it(cache: list[CachedSubject], tmp_path: Path) -> None:
    plain = dataclasses.replace(SETTINGS.network, age_head=False)
    old = save_model(build_network(plain), plain, tmp_path / "old", description="Random weights")
    settings = dataclasses.replace(SETTINGS, start=str(old.folder), learning_rate=0.0, ema=0.0)
    done = train(cache, settings, tmp_path / "run", workers=0, stop_after=2)
    before, after = old.load_network().state_dict(), done.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(NeonatalSegError, match="cannot start from"):
        other = dataclasses.replace(settings, network=dataclasses.replace(SETTINGS.network, filters=(4, 8, 16)))
        train(cache, other, tmp_path / "other", workers=0)


def test_a_lost_run_goes_on_where_its_schedule_was(cache: list[CachedSubject], tmp_path: Path) -> None:
    """From the bundle alone: the learning rate and the patches are those of the epochs that are left."""
    settings = dataclasses.replace(SETTINGS, warmup_steps=0)
    train(cache, settings, tmp_path / "run", workers=0, stop_after=3)
    left = dataclasses.replace(settings, done_epochs=2)
    train(cache, left, tmp_path / "left", workers=0, stop_after=1)
    one, other = (torch.load(tmp_path / p / "last.ckpt", weights_only=True) for p in ("run", "left"))
    rates = [c["optimizer_states"][0]["param_groups"][0]["lr"] for c in (one, other)]
    assert rates[0] == rates[1] == pytest.approx(1e-2 * (1 - 12 / 16) ** 0.9)
    drawn = [{file.name for file in (tmp_path / p / "pool").iterdir()} for p in ("run", "left")]
    assert drawn[1] and drawn[1] <= drawn[0]


def test_a_snapshot_of_a_run_that_goes_on_is_its_average(cache: list[CachedSubject], tmp_path: Path) -> None:
    train(cache, SETTINGS, tmp_path, workers=0, stop_after=3)
    model = newest(tmp_path, cache).save(tmp_path / "snapshot")
    facts = model.metadata["neonatalseg"]
    assert facts["epochs_done"] == 3 and facts["training_subjects"] == ["phantom00", "phantom01"]
    average = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.load_network().state_dict().items():
        assert torch.allclose(value, average[f"network.{name}"], atol=1e-3)
    with pytest.raises(NeonatalSegError, match="no run with a finished epoch"):
        newest(tmp_path / "nowhere", cache)
    with pytest.raises(NeonatalSegError, match="phantom00"):
        newest(tmp_path, cache[1:])
