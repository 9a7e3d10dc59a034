"""Training: reproducible patches, resuming, what is held out, and a model at the end that segments."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from NeonatalSegLib.augmentation.transforms import AugmentationSettings, DropModalityd, build_augmentation
from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import read_model
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.tissues import UNKNOWN
from NeonatalSegLib.training.patches import cut
from NeonatalSegLib.training.run import EpochSampler, PatchDataset, TrainingSettings, read_settings, train

SETTINGS = TrainingSettings(
    network=NetworkSettings((4, 8, 8), 1.0, (16, 16, 16), heads=1),
    validation=("sub-C",),
    test=("sub-D",),
    epochs=4,
    steps_per_epoch=3,
    batch_size=2,
    optimizer="adamw",
    learning_rate=1e-2,
    validate_every=2,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[CachedSubject]:
    """Four small subjects whose tissue can be told from the intensity."""
    folder = tmp_path_factory.mktemp("cache")
    random = np.random.default_rng(0)
    index = {}
    for name in ("sub-A", "sub-B", "sub-C", "sub-D"):
        labels = np.zeros((20, 22, 24), np.uint8)
        labels[3:-3, 3:-3, 3:-3] = 3
        labels[8:12, 8:14, 8:16] = 7
        image = np.stack([labels / 3.0, 2 - labels / 5.0]) + 0.05 * random.normal(size=(2, *labels.shape))
        np.save(folder / f"{name}_image.npy", image.astype(np.float16))
        np.save(folder / f"{name}_labels.npy", labels)
        index[name] = {"age_weeks": 40.0}
    (folder / "cache.json").write_text(json.dumps({"format": 1, "spacing_mm": 1.0, "subjects": index}))
    return read_cache(folder)


def test_patches_depend_on_their_number_alone(cache: list[CachedSubject]) -> None:
    first, second = PatchDataset(cache, SETTINGS), PatchDataset(cache, SETTINGS)
    second[5], second[2]  # drawn in another order
    for number in (0, 7):
        a, b = first[number], second[number]
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])
    assert not torch.equal(first[0]["image"], first[1]["image"])


def test_a_pass_shows_every_scan_once(cache: list[CachedSubject]) -> None:
    """As the paper's code draws them; with replacement a scan in three is missed in a pass."""
    patches = PatchDataset(cache, dataclasses.replace(SETTINGS, in_turn=True))
    passes = [[int(patches[n]["subject"]) for n in range(start, start + 4)] for start in (0, 4, 8, 12)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes) and len({tuple(one) for one in passes}) > 1


def test_a_patch_is_cut_out_of_its_scan_with_its_labels(tmp_path: Path) -> None:
    """Every voxel has its own value; short axes repeat their ends; what nobody labelled is unknown."""
    values = np.arange(20 * 22 * 10).reshape(20, 22, 10)
    known = np.broadcast_to(np.arange(20)[:, None, None] % 3 == 0, values.shape)
    arrays = {"image": np.stack([values, -values]), "label": (values % 10)[None].astype(np.uint8), "known": known[None]}
    firsts = set()
    for seed in range(20):
        out = cut(arrays, (16, 16, 16), np.random.default_rng(seed))
        image, label = out["image"].numpy(), out["label"].numpy()
        assert image.shape == (2, 16, 16, 16) and (image[1] == -image[0]).all()
        z, y, x = np.unravel_index(image[0].astype(int), values.shape)
        assert (np.diff(z[:, 0, 0]) == 1).all() and (np.diff(y[0, :, 0]) == 1).all()
        assert x[0, 0].tolist() == [0, 0, 0, *range(10), 9, 9, 9]
        assert (label[0] == np.where(z % 3 == 0, image[0] % 10, UNKNOWN)).all()
        firsts.add((z[0, 0, 0], y[0, 0, 0]))
    assert len(firsts) > 10


def test_drawing_patches_keeps_no_scan(cache: list[CachedSubject], tmp_path: Path) -> None:
    """A process that has touched a whole data set holds none of it: 24 scans of 23 MB each (links to one)."""
    program = (
        "import json, sys, numpy as np, psutil\n"
        "from pathlib import Path\n"
        "from NeonatalSegLib.datasets.cache import read_cache\n"
        "from NeonatalSegLib.networks.network import NetworkSettings\n"
        "from NeonatalSegLib.training.patches import PatchDataset\n"
        "from NeonatalSegLib.training.settings import TrainingSettings\n"
        "folder, names = Path(sys.argv[1]), [f'sub-{n:02d}' for n in range(24)]\n"
        "shape = (160, 170, 170)\n"
        "np.save(folder / 'sub-00_image.npy', np.ones((2, *shape), np.float16))\n"
        "np.save(folder / 'sub-00_labels.npy', np.ones(shape, np.uint8))\n"
        "for name in names[1:]:\n"
        "    for key in ('image', 'labels'):\n"
        "        (folder / f'{name}_{key}.npy').hardlink_to(folder / f'sub-00_{key}.npy')\n"
        "index = {'format': 1, 'spacing_mm': 1.0, 'subjects': {n: {'age_weeks': 40.0} for n in names}}\n"
        "(folder / 'cache.json').write_text(json.dumps(index))\n"
        "settings = TrainingSettings(NetworkSettings((4, 8, 8), 1.0, (16, 16, 16), heads=1), in_turn=True)\n"
        "known = {n: np.broadcast_to(np.arange(160)[:, None, None] % 3 == 0, shape) for n in names}\n"
        "patches = PatchDataset(read_cache(folder), settings, known)\n"
        "patches[0]\n"
        "before = psutil.Process().memory_info().rss\n"
        "for number in range(1, 24): patches[number]\n"
        "print((psutil.Process().memory_info().rss - before) / 2**20)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60  # MB; all of them are 530


def test_several_devices_share_an_epoch_without_overlap() -> None:
    samplers = [EpochSampler(12, rank, 3) for rank in range(3)]
    for sampler in samplers:
        sampler.set_epoch(2)
    numbers = [n for s in samplers for n in s]
    assert sorted(numbers) == list(range(24, 36))


def weights(result: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in result.parameters()])


def test_a_run_that_was_stopped_ends_as_if_it_had_not(
    cache: list[CachedSubject], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(cache, SETTINGS, tmp_path / "whole", workers=0)
    train(cache, SETTINGS, tmp_path / "parts", workers=0, stop_after=2)
    capsys.readouterr()
    resumed = train(cache, SETTINGS, tmp_path / "parts", workers=0)
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert told == ["3/4", "4/4"]  # it went on: one that starts again ends the same, for the seed is the same
    last = [torch.load(tmp_path / p / "last.ckpt", weights_only=True)["state_dict"] for p in ("whole", "parts")]
    assert all(torch.equal(last[0][k], last[1][k]) for k in last[0])
    assert whole.validation_dsc == resumed.validation_dsc
    assert torch.equal(weights(whole.network), weights(resumed.network))


def test_every_epoch_is_kept_also_without_improvement(cache: list[CachedSubject], tmp_path: Path) -> None:
    train(cache, SETTINGS, tmp_path, workers=0, stop_after=3)  # validated after the second alone
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2
    assert len(list(tmp_path.glob("*.ckpt"))) == 2


def test_training_leaves_scalars_a_checkpoint_and_a_model(cache: list[CachedSubject], tmp_path: Path) -> None:
    done = train(cache, SETTINGS, tmp_path / "run", workers=0)
    model = done.save(tmp_path / "model")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert done.checkpoint.name.startswith("best")
    ours = read_model(model.folder).metadata["neonatalseg"]
    assert ours["training_subjects"] == ["sub-A", "sub-B"]
    assert ours["test_subjects"] == ["sub-D"]
    assert ours["ages_weeks"] == [40.0, 40.0]
    loaded = model.load_network()
    x = torch.randn(1, 2, 16, 16, 16)
    assert torch.allclose(loaded(x), done.network(x), atol=2e-2)  # float16 on disk


def test_training_lowers_the_loss(
    cache: list[CachedSubject], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(cache, dataclasses.replace(SETTINGS, epochs=10, steps_per_epoch=6), tmp_path, workers=0)
    losses = [
        float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if "loss" in line
    ]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.5


def test_the_papers_optimiser(cache: list[CachedSubject], tmp_path: Path) -> None:
    done = train(cache, dataclasses.replace(SETTINGS, optimizer="sgd"), tmp_path, workers=0, stop_after=2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    group = state["optimizer_states"][0]["param_groups"][0]
    assert (group["momentum"], group["nesterov"]) == (0.99, True)
    assert group["lr"] == pytest.approx(1e-2 * (1 - 6 / 12) ** 0.9)  # half of 4 epochs of 3 steps
    assert done.settings.optimizer == "sgd"


def test_a_folder_of_another_run_is_refused(cache: list[CachedSubject], tmp_path: Path) -> None:
    train(cache, SETTINGS, tmp_path, workers=0, stop_after=1)
    with pytest.raises(NeonatalSegError, match="other settings"):
        train(cache, dataclasses.replace(SETTINGS, seed=1), tmp_path, workers=0)


def test_a_folder_of_a_run_on_other_subjects_is_refused(cache: list[CachedSubject], tmp_path: Path) -> None:
    train(cache, SETTINGS, tmp_path, workers=0, stop_after=1)
    with pytest.raises(NeonatalSegError, match="other subjects"):
        train(cache[1:], SETTINGS, tmp_path, workers=0)
    masks = {"sub-A": np.ones((20, 22, 24), bool)}
    with pytest.raises(NeonatalSegError, match="other subjects, arrays or slices"):
        train(cache, SETTINGS, tmp_path, workers=0, known=masks)


def test_no_session_of_a_kept_out_newborn_trains(cache: list[CachedSubject], tmp_path: Path) -> None:
    renamed = [
        dataclasses.replace(s, name=n) for s, n in zip(cache, ("sub-A", "sub-C_ses-2", "sub-C", "sub-D"), strict=True)
    ]
    for s in renamed[1:2]:  # the arrays of sub-B under another name
        for kind in ("image", "labels"):
            np.save(s.folder / f"{s.name}_{kind}.npy", np.load(s.folder / f"sub-B_{kind}.npy"))
    done = train(renamed, SETTINGS, tmp_path / "run", workers=0, stop_after=1)
    assert [s.name for s in done.subjects] == ["sub-A"]


def test_a_run_does_not_start_from_a_model_that_knows_its_test_newborns(
    cache: list[CachedSubject], tmp_path: Path
) -> None:
    model = train(cache, SETTINGS, tmp_path / "first", workers=0).save(tmp_path / "model")  # trained on sub-A and sub-B
    leaking = dataclasses.replace(SETTINGS, start=str(model.folder), test=("sub-B",))
    with pytest.raises(NeonatalSegError, match="was trained on sub-B, which this run holds out"):
        train(cache, leaking, tmp_path / "second", workers=0)
    fair = dataclasses.replace(SETTINGS, start=str(model.folder))
    going_on = train([s for s in cache if s.name != "sub-B"], fair, tmp_path / "third", workers=0)
    later = going_on.save(tmp_path / "later").metadata["neonatalseg"]
    assert later["training_subjects"] == ["sub-A", "sub-B"]  # what its ancestor saw, it has seen


def test_a_network_without_deep_supervision_trains(cache: list[CachedSubject], tmp_path: Path) -> None:
    plain = dataclasses.replace(SETTINGS, network=dataclasses.replace(SETTINGS.network, heads=0))
    done = train(cache, plain, tmp_path, workers=0, stop_after=1)
    assert done.loss is not None and np.isfinite(done.loss)


def test_kept_out_subjects_must_exist_and_some_must_remain(cache: list[CachedSubject], tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="sub-Z"):
        train(cache, dataclasses.replace(SETTINGS, test=("sub-Z",)), tmp_path)
    with pytest.raises(NeonatalSegError, match="No subject is left"):
        train(cache[2:], SETTINGS, tmp_path)


def test_settings_files(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(SETTINGS.to_json()))
    assert read_settings(file) == SETTINGS
    for change, words in (
        ({"epoch": 3}, "'epoch'"),
        ({"network": "huge"}, "'huge'"),
        ({"optimizer": "adam"}, "'adam'"),
    ):
        file.write_text(json.dumps({**SETTINGS.to_json(), **change}))
        with pytest.raises(NeonatalSegError, match=words):
            read_settings(file)
    file.write_text("{")
    with pytest.raises(NeonatalSegError, match=r"settings\.json"):
        read_settings(file)


def test_the_shipped_configurations_keep_three_newborns_out() -> None:
    files = sorted((Path(__file__).resolve().parent.parent / "Resources" / "Training").glob("*.json"))
    assert files
    for settings in map(read_settings, files):
        assert len(settings.test) >= 3
        assert not set(settings.test) & set(settings.validation)


def example() -> dict[str, torch.Tensor]:
    labels = torch.zeros((1, 20, 20, 20), dtype=torch.uint8)
    labels[:, 5:15, 4:16, 3:12] = 3
    return {"image": torch.cat([labels.float(), 5 - labels.float()]), "label": labels}


def test_image_and_labels_stay_together() -> None:
    """Only spatial changes: the image tells the label of every voxel before, so it must after."""
    settings = dataclasses.replace(
        AugmentationSettings.paper(), flip=(0.5, 0.5, 0.5), elastic=1.0, noise=0, smooth=0, intensity=0
    )
    transform = build_augmentation(settings, (16, 16, 16))
    for seed in range(4):
        transform.set_random_state(seed)
        out = transform(example())
        assert out["image"].shape == (2, 16, 16, 16) and out["label"].shape == (1, 16, 16, 16)
        told = (out["image"][0] > 1.5) == (out["label"][0] == 3)
        assert told.float().mean() > 0.97


def test_intensities_change_together_or_each_for_itself() -> None:
    """The paper's code draws once for T1 and T2; an absent one stays absent either way."""
    only_scaling = {"flip": (0, 0, 0), "elastic": 0.0, "noise": 0.0, "smooth": 0.0, "intensity": 1.0}
    start = example()
    start["image"] = torch.rand((2, 16, 16, 16), generator=torch.Generator().manual_seed(0)) + 1
    start["label"] = start["label"][:, :16, :16, :16]
    apart = []
    for joint in (True, False):
        settings = dataclasses.replace(AugmentationSettings.paper(), joint=joint, **only_scaling)
        transform = build_augmentation(settings, (16, 16, 16))
        transform.set_random_state(3)
        t1, t2 = transform(start)["image"]
        slopes = [
            float((c.max() - c.min()) / (b.max() - b.min())) for c, b in zip((t1, t2), start["image"], strict=True)
        ]
        apart.append(abs(slopes[0] - slopes[1]))
        transform.set_random_state(3)
        blank = transform({**start, "image": start["image"] * torch.tensor([1.0, 0.0])[:, None, None, None]})["image"]
        assert blank[0].any() and not blank[1].any()
    assert apart[0] < 1e-5 < 1e-3 < apart[1]


def test_augmentation_is_seeded() -> None:
    transform = build_augmentation(AugmentationSettings(), (16, 16, 16))
    outs = []
    for seed in (1, 2, 1):
        transform.set_random_state(seed)
        outs.append(transform(example())["image"])
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])


def test_modality_dropout_never_blanks_both() -> None:
    transform = DropModalityd("image", 0.25)
    transform.set_random_state(0)
    counts = {"none": 0, "t1": 0, "t2": 0}
    for _ in range(400):
        kept = [bool(c.any()) for c in transform({"image": torch.ones(2, 2, 2, 2)})["image"]]
        assert any(kept)
        counts["none" if all(kept) else "t1" if not kept[0] else "t2"] += 1
    assert 160 < counts["none"] < 240
    assert 60 < counts["t1"] < 140 and 60 < counts["t2"] < 140
    only_t2 = torch.stack([torch.zeros(2, 2, 2), torch.ones(2, 2, 2)])
    assert all(transform({"image": only_t2})["image"][1].all() for _ in range(50))
