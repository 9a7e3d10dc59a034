"""AgeU-Net: the age beside the segmentation, from the head on the bottleneck to what a person reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import accuracy
from NeonatalSegLib.datasets.cache import CachedSubject, read_cache
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn, write_newborn
from NeonatalSegLib.engine.operations.job import WarmModels
from NeonatalSegLib.engine.operations.segmenting import segment
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model, read_model, save_model
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
from NeonatalSegLib.networks.losses import DeepSupervisionLoss, age_loss
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.networks.torch_engine import predict_age, predict_windows, predict_with_age
from NeonatalSegLib.networks.unet import AgeHead
from NeonatalSegLib.scans.preprocessing import labels_on, prepare
from NeonatalSegLib.scans.scan import make_scan
from NeonatalSegLib.segmentation.outputs import segment_to_folder
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.training.run import TrainingSettings, train

PLAIN = NetworkSettings((4, 8, 16), 3.0, (24, 24, 24), heads=1)
AGE = dataclasses.replace(PLAIN, age_head=True)
NAN = float("nan")


# The network


def test_the_head_leaves_the_segmentation_as_it_is() -> None:
    """Equal to the network without the head, and to MONAI's own way through its blocks, bit for bit."""
    torch.manual_seed(0)
    plain, with_age = build_network(PLAIN).train(), build_network(AGE).train()
    missing, unexpected = with_age.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("age_head.") for name in missing)
    x = torch.randn(2, 2, 16, 24, 32)
    monai = [plain.output_block(plain.skip_layers(x)), *plain.heads]
    outputs, ages = with_age.forward_with_age(x)
    assert len(monai) == 2 and ages.shape == (2,)
    for expected, *found in zip(monai, plain(x), with_age(x), outputs, strict=True):
        assert all(torch.equal(expected, f) for f in found)
    plain.eval(), with_age.eval()
    expected = plain.output_block(plain.skip_layers(x))
    assert all(torch.equal(expected, f) for f in (plain(x), with_age(x), with_age.forward_with_age(x)[0]))


def test_one_seed_gives_the_same_segmentation_weights_with_and_without_the_head() -> None:
    weights = []
    for settings in (PLAIN, AGE):
        torch.manual_seed(3)
        weights.append(build_network(settings).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 8, 32), (24, 40, 12)])
def test_any_input_size_has_an_age_and_the_first_answer_is_40_weeks(shape: tuple[int, int, int]) -> None:
    network = build_network(AGE)
    assert network.forward_with_age(torch.randn(3, 2, *shape))[1].tolist() == [40.0] * 3


def test_the_head_has_the_papers_width_behind_the_papers_bottleneck() -> None:
    assert AgeHead(320).conv.out_channels == 512
    assert AgeHead(160).conv.out_channels == 256


# The loss


def test_the_loss_is_in_weeks_squared_over_the_known_ages() -> None:
    told = torch.tensor([40.0, 38.0, 30.0])
    assert float(age_loss(told, torch.tensor([41.0, NAN, 27.0]))) == pytest.approx((1 + 9) / 2)


def test_an_unknown_age_pulls_at_nothing() -> None:
    """Zero gradient, but a gradient: several GPUs wait for that of every weight."""
    torch.manual_seed(0)
    network = build_network(AGE).train()
    nn.init.normal_(network.age_head.linear.weight)
    ages = network.forward_with_age(torch.randn(2, 2, 16, 16, 16))[1]
    age_loss(ages, torch.tensor([NAN, NAN])).backward(retain_graph=True)
    assert all(p.grad is not None and not p.grad.any() for p in network.age_head.parameters())
    both, one = (
        torch.autograd.grad(age_loss(told, truth), network.age_head.linear.weight, retain_graph=True)[0]
        for told, truth in ((ages, torch.tensor([37.0, NAN])), (ages[:1], torch.tensor([37.0])))
    )
    assert both.any() and torch.allclose(both, one)


# Learning


def coarse_head(age: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A phantom's T2 at 6 mm and its labels, centred in 24 voxels: enough to see how large a head is."""
    phantom = draw_newborn(age, seed=seed, spacing_mm=5.0)
    prepared = prepare(make_scan(t2=phantom.t2), 3.0)
    image = functional.avg_pool3d(torch.from_numpy(prepared.array), 2)
    labels = torch.from_numpy(labels_on(prepared.grid, phantom.labels))[::2, ::2, ::2]
    labels = labels[: image.shape[1], : image.shape[2], : image.shape[3]]
    border = [n for size in image.shape[:0:-1] for n in ((24 - size) // 2, 24 - size - (24 - size) // 2)]
    channels = [functional.pad(c, border, value=float(c.min())) for c in image]
    return torch.stack(channels), functional.pad(labels, border)


def test_the_age_is_learned_beside_the_segmentation() -> None:
    """Phantoms held out: at most two thirds of the error of who always answers with the mean age."""
    ages = np.linspace(28, 44, 14)
    heads = [coarse_head(float(age), seed) for seed, age in enumerate(ages)]
    held_out = [1, 4, 9, 12]
    training = [i for i in range(len(ages)) if i not in held_out]
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    network = build_network(AGE).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    loss = DeepSupervisionLoss()
    first = last = 0.0
    for step in range(40):
        chosen = random.choice(training, 4, replace=False)
        outputs, told = network.forward_with_age(torch.stack([heads[i][0] for i in chosen]))
        segmentation = loss(outputs, torch.stack([heads[i][1] for i in chosen]))
        total = segmentation + 0.01 * age_loss(told, torch.tensor(ages[chosen], dtype=torch.float32))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        first, last = first if step else segmentation.item(), segmentation.item()
    errors = [abs(predict_age(network, heads[i][0], AGE) - ages[i]) for i in held_out]
    of_mean = [abs(ages[training].mean() - ages[i]) for i in held_out]
    assert np.mean(errors) < 2 / 3 * np.mean(of_mean)
    assert last < first - 1  # and the segmentation learns too


TRAINING = TrainingSettings(
    network=NetworkSettings((4, 8, 8), 1.0, (16, 16, 16), heads=1, age_head=True),
    validation=("sub-C", "sub-D"),
    epochs=2,
    steps_per_epoch=3,
    optimizer="adamw",
    validate_every=1,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[CachedSubject]:
    """Four subjects; the ages of one in training and of one in validation are not known."""
    folder = tmp_path_factory.mktemp("cache")
    index = {}
    for name, age in (("sub-A", 37.0), ("sub-B", None), ("sub-C", 43.0), ("sub-D", None)):
        labels = np.zeros((18, 20, 18), np.uint8)
        labels[4:-4, 4:-4, 4:-4] = 3
        np.save(folder / f"{name}_image.npy", np.stack([labels, 2 - labels]).astype(np.float16))
        np.save(folder / f"{name}_labels.npy", labels)
        index[name] = {"age_weeks": age}
    (folder / "cache.json").write_text(json.dumps({"format": 1, "spacing_mm": 1.0, "subjects": index}))
    return read_cache(folder)


def test_training_ends_with_the_error_of_the_chosen_weights(
    cache: list[CachedSubject], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(cache, TRAINING, tmp_path / "run", workers=0)
    subject = cache[2]
    image = torch.from_numpy(np.array(subject.image(), np.float32))
    error = abs(predict_age(done.network, image, TRAINING.network) - 43.0)
    assert done.validation_age_error_weeks == pytest.approx(error, abs=1e-3)
    assert "age off by" in capsys.readouterr().out

    model = done.save(tmp_path / "model")
    facts = read_model(model.folder).metadata["neonatalseg"]
    assert facts["validation_age_error_weeks"] == done.validation_age_error_weeks
    assert facts["training"]["age_weight"] == 0.01 and model.network == TRAINING.network
    again = predict_age(model.load_network(), image, model.network)
    assert again == pytest.approx(predict_age(done.network, image, TRAINING.network), abs=0.05)  # float16 on disk


def test_ages_teach_the_head_alone_where_their_weight_says_so(cache: list[CachedSubject], tmp_path: Path) -> None:
    """Weight 0 leaves the first answer, 40 weeks; the usual weight does not."""
    settings = dataclasses.replace(TRAINING, weight_decay=0.0)
    answers = []
    for weight in (0.0, 0.01):
        done = train(cache, dataclasses.replace(settings, age_weight=weight), tmp_path / f"{weight}", workers=0)
        answers.append(done.network.forward_with_age(torch.ones(1, 2, 16, 16, 16))[1].item())
    assert answers[0] == 40.0
    assert answers[1] < 40.0  # the only known age is 37 weeks


def test_a_run_from_before_there_were_ages_goes_on(cache: list[CachedSubject], tmp_path: Path) -> None:
    settings = dataclasses.replace(TRAINING, network=dataclasses.replace(TRAINING.network, age_head=False))
    train(cache, settings, tmp_path, workers=0, stop_after=1)
    file = tmp_path / "settings.json"
    old = json.loads(file.read_text(encoding="utf-8"))
    del old["age_weight"]
    assert "age_head" not in old["network"]
    file.write_text(json.dumps(old), encoding="utf-8")
    done = train(cache, settings, tmp_path, workers=0)
    assert done.validation_age_error_weeks is None
    with pytest.raises(NeonatalSegError, match="other settings"):
        train(cache, TRAINING, tmp_path, workers=0)


# A whole scan


class Tells(nn.Module):
    """Sees head where the image is not 0, and tells 30 weeks and 10 more for the share of a window that is head."""

    def forward_with_age(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        head = (x[:, :1] != 0).float()
        return 100 * torch.cat([1 - head, head], 1), 30 + 10 * head.mean((1, 2, 3, 4))


@pytest.mark.parametrize("flips", [False, True])
def test_windows_count_for_the_age_as_much_as_they_hold_head(flips: bool) -> None:
    image = torch.zeros(2, 32, 16, 16)
    image[:, :16] = 1.0
    settings = NetworkSettings((4, 8, 8), 1.0, (16, 16, 16), age_head=True, heads=1)
    # Three windows: all head (40 weeks), half (35), none (30).
    out, age = predict_with_age(Tells(), image, settings, flips=flips)
    assert age == pytest.approx((1 * 40 + 0.5 * 35 + 0 * 30) / 1.5, abs=0.01)
    assert out.shape == (2, 32, 16, 16)
    nothing = predict_with_age(Tells(), torch.zeros(2, 32, 16, 16), settings)[1]
    assert nothing == pytest.approx(30.0)


def test_networks_without_the_head_tell_no_age() -> None:
    network, image = build_network(PLAIN), torch.randn(2, 24, 24, 24)
    out, age = predict_with_age(network, image, PLAIN)
    assert age is None and torch.equal(out, predict_windows(network, image, PLAIN))
    with pytest.raises(NeonatalSegError, match="no age head"):
        predict_age(network, image, PLAIN)


# What a person reads


def bundle(folder: Path, settings: NetworkSettings) -> Model:
    torch.manual_seed(1)
    return save_model(build_network(settings), settings, folder, description="Random weights")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """A model that has learned nothing: 40 weeks to everything."""
    return Segmenter(bundle(tmp_path_factory.mktemp("models") / "age", AGE), "cpu")


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return draw_newborn(40.0, seed=4, spacing_mm=3.0)


@pytest.mark.parametrize(("given", "warned"), [(None, False), (40.0, False), (42.0, False), (42.5, True), (37.0, True)])
def test_ages_more_than_two_weeks_apart_are_told(
    segmenter: Segmenter, coarse: Phantom, given: float | None, warned: bool
) -> None:
    done = segmenter.segment(make_scan(t2=coarse.t2, age_weeks=given))
    assert done.age_weeks == pytest.approx(40.0, abs=1e-3)
    told = [w for w in done.warnings if "2 weeks apart" in w]
    assert len(told) == warned
    assert not warned or (f"{given:.1f} weeks" in told[0] and "40.0 weeks" in told[0])


def test_sidecar_and_report_show_the_age(segmenter: Segmenter, coarse: Phantom, tmp_path: Path) -> None:
    plain = Segmenter(bundle(tmp_path / "plain", PLAIN), "cpu")
    scan = make_scan(t2=coarse.t2, age_weeks=36.0)
    for kind, name in ((segmenter, "age"), (plain, "plain")):
        written = segment_to_folder(kind, scan, tmp_path / "out", name=name, picture=False)
        facts = json.loads(written["sidecar"].read_text(encoding="utf-8"))
        report = written["report"].read_text(encoding="utf-8")
        if kind is segmenter:
            assert facts["PredictedAgeWeeks"] == 40.0 and facts["AgeWeeks"] == 36.0
            assert "<th>Age by the model</th><td>40.0 weeks</td>" in report and "weeks apart" in report
        else:
            assert "PredictedAgeWeeks" not in facts
            assert "Age by the model" not in report and "weeks apart" not in report


class RecordedJob:
    """A request to an operation."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.folder, self.fields = folder, fields

    def progress(self, stage: str, fraction: float) -> None:
        """Not looked at here."""

    def expect(self, seconds: float | None) -> None:
        """Not looked at here."""


def test_the_worker_hands_the_age_over(segmenter: Segmenter, tmp_path: Path) -> None:
    files = write_newborn(tmp_path / "scan", spacing_mm=3.0)
    models = {True: segmenter.model.folder, False: bundle(tmp_path / "plain", PLAIN).folder}
    for has_head, model in models.items():
        job = RecordedJob(tmp_path, t2=str(files["t2"]), model=str(model), device="cpu", age_weeks=36.0)
        said = json.loads(json.dumps(segment(job, WarmModels())))  # type: ignore[arg-type]
        assert said["age_weeks"] == (pytest.approx(40.0, abs=1e-3) if has_head else None)
        assert any("weeks apart" in warning for warning in said["warnings"]) == has_head


def test_the_card_says_how_far_the_age_is_off_on_newborns_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model tells 40 weeks; the one held out is 37, the one in training was 39."""
    data, model = tmp_path / "data", tmp_path / "model"
    files = write_newborn(data, spacing_mm=3.0)
    shutil.copy(files["t2"], data / "sub-other_T2w.nii.gz")
    (data / "participants.tsv").write_text("participant_id\tscan_age\nsub-phantom\t37\nsub-other\t39\n")
    facts = {"test_subjects": ["sub-phantom"], "training_subjects": ["sub-other"]}
    save_model(build_network(AGE), AGE, model, description="", card="\n".join(accuracy.MARKS), facts=facts)
    monkeypatch.setattr(accuracy, "INPUTS", {"T2": ("t2",)})
    monkeypatch.setattr("sys.argv", ["accuracy.py", "--data", str(data), "--model", str(model), "--write"])
    accuracy.main()
    figures = read_model(model).metadata["neonatalseg"]["figures"]["T2"]
    assert (figures["age_error_weeks"], figures["age_error_weeks_of_mean"]) == (3.0, 2.0)
    card = (model / "docs" / "README.md").read_text(encoding="utf-8")
    assert "3.00 weeks off" in card and "training newborns: 2.00 weeks off" in card


def test_bundles_from_before_there_were_ages_load() -> None:
    """The shipped model is one; and without a head nothing of it is written, so that older readers load new ones."""
    shipped = find_model(DEFAULT_MODEL)
    assert "age_head" not in shipped.metadata["neonatalseg"]["network"]
    assert not shipped.network.age_head
    assert "age_head" not in PLAIN.to_json()
    assert NetworkSettings.from_json(json.loads(json.dumps(AGE.to_json()))) == AGE
