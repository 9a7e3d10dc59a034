"""Random patches: what a network is shown is what its labels say, at any size, contrast, head and scanner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from NeonatalSegLib.augmentation import acquisition, randomisation, synthesis
from NeonatalSegLib.augmentation.randomisation import Randomisation, RandomisationSettings, Volume
from NeonatalSegLib.datasets.cache import CachedSubject, build_cache
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.losses import DiceCELoss
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.training.patches import PatchDataset, drawn
from NeonatalSegLib.training.run import TrainingSettings, read_settings, train

SPACING_MM = 3.0
PATCH = (32, 32, 32)
NETWORK = NetworkSettings((4, 8, 8), SPACING_MM, PATCH, heads=1)
# Nothing but turning, scaling and bending.
STILL = RandomisationSettings(
    synthetic=0, hybrid=0, skull=0, tight=0, bias=0, gamma=0, motion=0, coarse=0, noise=0, misaligned=0, drop_modality=0
)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[CachedSubject]:
    return build_cache([], tmp_path_factory.mktemp("cache"), SPACING_MM, phantoms=2, seed=3)


@pytest.fixture(scope="module")
def volume(cache: list[CachedSubject]) -> Volume:
    return Volume.of(np.array(cache[0].image()), np.array(cache[0].labels()), SPACING_MM)


def draw(volume: Volume, settings: RandomisationSettings, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return Randomisation(settings, SPACING_MM, PATCH)(volume, seed)[:2]


class TestPatch:
    def test_shape_type_and_seed(self, volume: Volume) -> None:
        image, labels = draw(volume, RandomisationSettings())
        assert image.shape == (2, *PATCH)
        assert image.dtype == torch.float32
        assert labels.shape == PATCH
        assert labels.dtype == torch.uint8
        again, labels_again = draw(volume, RandomisationSettings())
        assert torch.equal(image, again)
        assert torch.equal(labels, labels_again)
        assert not torch.equal(image, draw(volume, RandomisationSettings(), seed=2)[0])

    def test_always_finite_and_labels_known(self, volume: Volume) -> None:
        """Also where a patch shows next to nothing of the head."""
        for seed in range(40):
            image, labels = draw(volume, RandomisationSettings(), seed)
            assert bool(torch.isfinite(image).all())
            assert int(labels.max()) <= 9
            assert bool(image.any())

    def test_never_both_contrasts_gone(self, volume: Volume) -> None:
        gone = [
            tuple(not bool(c.any()) for c in draw(volume, replace(STILL, drop_modality=0.5), seed)[0])
            for seed in range(20)
        ]
        assert set(gone) == {(True, False), (False, True)}

    def test_absent_contrast_stays_absent(self, cache: list[CachedSubject]) -> None:
        image = np.array(cache[0].image())
        image[0] = 0
        alone = Volume.of(image, np.array(cache[0].labels()), SPACING_MM)
        for seed in range(10):
            t1, t2 = draw(alone, RandomisationSettings(synthetic=0, hybrid=0.5, drop_modality=0.5), seed)[0]
            assert not bool(t1.any())
            assert bool(t2.any())

    def test_real_patch_lies_on_its_labels(self, volume: Volume) -> None:
        """Ventricles are bright in T2 and dark in T1 wherever the patch was taken, however it was turned and scaled."""
        seen = 0
        for seed in range(20):
            (t1, t2), labels = draw(volume, STILL, seed)
            fluid, white = labels == synthesis.VENTRICLES, labels == 3
            if int(fluid.sum()) > 30 and int(white.sum()) > 30:
                seen += 1
                assert float(t2[fluid].mean()) > float(t2[white].mean())
                assert float(t1[fluid].mean()) < float(t1[white].mean())
        assert seen >= 5

    def test_patch_that_is_not_moved_is_cut_from_the_scan(self, volume: Volume) -> None:
        """Voxel by voxel, but for its brightness and a mirror: nothing is blurred by interpolation."""
        image, labels = draw(volume, replace(STILL, moved=0.0), seed=6)
        whole, shape = volume.labels[0], volume.labels.shape[1:]
        found = []
        for mirrored in (whole, whole.flip(2)):
            for z, y, x in np.ndindex(*(n - p + 1 for n, p in zip(shape, PATCH, strict=True))):
                if torch.equal(mirrored[z : z + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]], labels):
                    source = volume.image[1] if mirrored is whole else volume.image[1].flip(2)
                    found.append(source[z : z + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]].float())
        assert found
        brain = labels > 0
        assert np.corrcoef(image[1][brain], found[0][brain])[0, 1] > 0.9999

    def test_patch_without_skull_lies_within_the_scan(self, volume: Volume) -> None:
        """As the windows of a segmentation do; around a skull there is room, since it reaches into it."""
        room = round(randomisation.ROOM_MM / SPACING_MM)
        small = Randomisation(replace(STILL, moved=0.0), SPACING_MM, (8, 8, 8))
        marked = torch.zeros_like(volume.labels)
        inner = tuple(slice(room, n - room) for n in volume.labels.shape[1:])
        marked[(0, *inner)] = 3
        scan = replace(volume, labels=marked)
        assert all(bool((small(scan, seed).labels == 3).all()) for seed in range(30))
        skull = Randomisation(replace(STILL, moved=0.0, skull=1.0), SPACING_MM, (8, 8, 8))
        assert not all(bool((skull(scan, seed).labels == 3).all()) for seed in range(30))

    def test_tight_mask_cuts_image_and_labels_alike(self, volume: Volume) -> None:
        image, labels = draw(volume, replace(STILL, tight=1.0), seed=4)
        outside = labels == 0
        assert bool(outside.any())
        assert float(image[1][outside].std()) < 0.1 * float(image[1][~outside].std())
        assert int(outside.sum()) > int((draw(volume, STILL, seed=4)[1] == 0).sum())

    def test_skull_adds_and_does_not_cover(self, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(randomisation, "ROOM_MM", 0.0)  # both in the same place
        plain, labels = draw(volume, STILL, seed=5)
        skull, same = draw(volume, replace(STILL, skull=1.0), seed=5)
        assert torch.equal(labels, same)
        brain, outside = labels > 0, labels == 0
        assert np.corrcoef(plain[1][brain], skull[1][brain])[0, 1] > 0.95
        assert float(skull[1][outside].std()) > 3 * float(plain[1][outside].std())

    def test_a_clean_patch_has_its_own_head_and_scanner(self, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(randomisation, "ROOM_MM", 0.0)  # all in the same place
        worst = replace(STILL, moved=0.0, skull=1.0, bias=1.0, motion=1.0, noise=1.0, coarse=1.0, clean=1.0)
        plain, labels = draw(volume, replace(worst, skull=0, bias=0, motion=0, noise=0, coarse=0), seed=7)
        clean, same = draw(volume, worst, seed=7)
        assert torch.equal(labels, same)
        brain = labels > 0
        assert np.corrcoef(plain[1][brain], clean[1][brain])[0, 1] > 0.9999
        changed = draw(volume, replace(worst, clean=0.0), seed=7)
        assert np.corrcoef(plain[1][brain], changed[0][1][brain])[0, 1] < 0.999
        hybrid = draw(volume, replace(worst, hybrid=1.0), seed=7)[0]  # drawn images are never clean
        assert float(hybrid[1][labels == 0].std()) > 1.5 * float(clean[1][labels == 0].std())

    def test_settings_that_cannot_be(self) -> None:
        with pytest.raises(NeonatalSegError, match="1 at most"):
            RandomisationSettings(synthetic=0.7, hybrid=0.6)
        with pytest.raises(NeonatalSegError, match="is not a range"):
            RandomisationSettings(scale=(1.2, 0.8))


class TestSynthesis:
    def test_younger_cortex_is_thinner_and_fluid_spaces_larger(self) -> None:
        labels = torch.full((32, 32, 32), 3, dtype=torch.uint8)
        labels[:8], labels[8:13] = synthesis.CSF, synthesis.CORTICAL_GM
        labels[20:27, 12:20, 12:20] = synthesis.VENTRICLES
        count = torch.bincount(labels.long().reshape(-1), minlength=10)
        ratios = []
        for seed in range(8):
            young = torch.bincount(synthesis.simulate_younger(labels, chance(seed)).long().reshape(-1), minlength=10)
            ratios.append((young / count)[[synthesis.CORTICAL_GM, synthesis.CSF, synthesis.VENTRICLES]])
        cortex, csf, ventricles = torch.stack(ratios).mean(0).tolist()
        assert cortex < 0.97
        assert csf > 1
        assert ventricles > 1

    def test_clusters_stay_within_their_tissue(self, volume: Volume) -> None:
        labels = volume.labels[0]
        parts = synthesis.clusters(labels, volume.image[1].float(), chance())
        assert torch.equal(parts // synthesis.CLUSTERS, labels.long())
        assert any(len(torch.unique(parts[labels == k])) > 1 for k in range(1, 10))

    def test_contrasts_differ_and_air_is_dark(self, volume: Volume) -> None:
        labels = volume.labels[0]
        parts = synthesis.clusters(labels, volume.image[1].float(), chance())
        white, grey = [], []
        for seed in range(12):
            image = synthesis.random_contrast(parts, chance(seed))
            assert float(image[labels == 0].mean()) < 0.1
            white.append(float(image[labels == 3].mean()))
            grey.append(float(image[labels == synthesis.CORTICAL_GM].mean()))
        brighter = np.array(white) > np.array(grey)
        assert 0 < brighter.sum() < 12

    def test_head_leaves_the_brain_alone(self) -> None:
        inside = np.zeros((30, 30, 30), bool)
        inside[10:20, 10:20, 10:20] = True
        image = np.where(inside, 100.0, 0.0).astype(np.float32)
        head = synthesis.add_head(image, inside, (2.0, 2.0, 2.0), np.random.default_rng(0))
        assert np.array_equal(head[inside], image[inside])
        shell = (head > 5) & ~inside
        assert shell.sum() > inside.sum()
        assert not shell[0].any()  # no thicker than scalps are: 20 mm away there is air
        other = synthesis.add_head(image, inside, (2.0, 2.0, 2.0), np.random.default_rng(1))
        assert not np.array_equal(head, other)


class TestAcquisition:
    def test_scale_is_the_heads_size(self) -> None:
        ball = torch.zeros((1, 60, 60, 60), dtype=torch.uint8)
        z, y, x = torch.meshgrid(*(torch.arange(60) - 29.5,) * 3, indexing="ij")
        ball[0][z**2 + y**2 + x**2 < 10**2] = 1
        sizes = []
        for seed in range(30):
            geometry = acquisition.Geometry.draw(
                (60, 60, 60), (56, 56, 56), (0.7, 0.7), chance(seed), torch.device("cpu")
            )
            if geometry.scale != pytest.approx(0.7):
                continue
            small = geometry.sample(ball, "nearest")
            sizes.append(int(small.sum()) / int(ball.sum()))
        assert len(sizes) > 5
        assert np.median(sizes) == pytest.approx(0.7**3, rel=0.1)

    def test_thick_slices_blur_along_one_axis_and_keep_the_mean(self) -> None:
        image = torch.rand((40, 40, 40), generator=chance())
        for seed in range(6):
            coarse = acquisition.coarse_slices(image, 0.8, chance(seed))
            assert coarse.shape == image.shape
            assert float(coarse.mean()) == pytest.approx(float(image.mean()), rel=0.02)
            assert float(coarse.std()) < 0.9 * float(image.std())

    def test_ghosts_keep_the_head_where_it_is(self) -> None:
        image = torch.zeros((48, 48, 48))
        image[16:32, 16:32, 16:32] = 1.0
        for seed in range(6):
            moved = acquisition.ghosts(image, chance(seed))
            assert not torch.allclose(moved, image, atol=0.02)
            at = torch.nonzero(moved > 0.5).float().mean(0)
            assert torch.allclose(at, torch.full((3,), 23.5), atol=2.5)

    def test_bias_and_noise_and_gamma_keep_it_positive(self) -> None:
        image = torch.rand((24, 24, 24), generator=chance())
        for change in (acquisition.bias_field, acquisition.noise, acquisition.gamma):
            changed = change(image, chance(2))
            assert float(changed.min()) >= 0
            assert not torch.allclose(changed, image, atol=1e-3)


class TestTraining:
    SETTINGS = TrainingSettings(
        network=NETWORK, epochs=2, steps_per_epoch=3, validate_every=2, batch_size=2, phantoms=2, phantom_share=1.0,
        optimizer="adamw", learning_rate=1e-3, randomisation=RandomisationSettings(),
    )  # fmt: skip

    def test_settings_survive_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(self.SETTINGS.to_json()), encoding="utf-8")
        assert read_settings(file) == self.SETTINGS
        file.write_text(json.dumps({"randomisation": {"skul": 1}}), encoding="utf-8")
        with pytest.raises(NeonatalSegError, match="skul"):
            read_settings(file)

    def test_patches_on_the_device_are_those_of_the_loader(self, cache: list[CachedSubject]) -> None:
        ready = PatchDataset(cache, self.SETTINGS)[5]
        named = PatchDataset(cache, self.SETTINGS, on_device=True)
        item = named[5]
        later = drawn(self.SETTINGS, named.volumes()[int(item["subject"])], item, int(item["seed"]))
        assert torch.equal(later["image"], ready["image"])
        assert torch.equal(later["label"], ready["label"])

    def test_sparse_labels_are_refused(self, cache: list[CachedSubject]) -> None:
        known = {cache[0].name: np.ones(cache[0].labels().shape, bool)}
        with pytest.raises(NeonatalSegError, match="whole label maps"):
            PatchDataset(cache, self.SETTINGS, known)

    def test_run_starts_from_a_model(self, cache: list[CachedSubject], tmp_path: Path) -> None:
        """One step at a rate of nearly nothing leaves the weights where the model had them."""
        torch.manual_seed(7)
        network = build_network(NETWORK)
        save_model(network, NETWORK, tmp_path / "first", description="first")
        settings = replace(self.SETTINGS, epochs=1, steps_per_epoch=1, validate_every=1, learning_rate=1e-7)
        finished = train(cache, replace(settings, start=str(tmp_path / "first")), tmp_path / "run", workers=0)
        for before, after in zip(network.parameters(), finished.network.parameters(), strict=True):
            assert torch.allclose(before, after, atol=1e-3)  # a model's file holds 16 bits
        scratch = train(cache, settings, tmp_path / "scratch", workers=0)
        assert not all(
            torch.allclose(a, b, atol=1e-2)
            for a, b in zip(network.parameters(), scratch.network.parameters(), strict=True)
        )

    def test_start_of_another_size_is_refused(self, cache: list[CachedSubject], tmp_path: Path) -> None:
        other = replace(NETWORK, filters=(4, 4, 8))
        save_model(build_network(other), other, tmp_path / "other", description="other")
        with pytest.raises(NeonatalSegError, match="its network is"):
            train(cache, replace(self.SETTINGS, start=str(tmp_path / "other")), tmp_path / "run", workers=0)

    def test_loss_is_defined_on_every_patch(self, cache: list[CachedSubject]) -> None:
        items = [PatchDataset(cache, self.SETTINGS)[i] for i in range(4)]
        batch = {k: torch.stack([i[k] for i in items]) for k in items[0]}
        network = build_network(NETWORK).eval()
        assert bool(torch.isfinite(DiceCELoss()(network(batch["image"]), batch["label"])))
