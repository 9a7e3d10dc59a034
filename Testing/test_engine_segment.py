"""Real segmentations through the real worker, with a tiny network of random weights on a coarse synthetic newborn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_engine import answers, fault_environment, first_progress
from tiny_models import exported_model

from NeonatalSegLib.engine import Client, EngineError, Event, Request

WORK_S = 300.0  # generous: two busy cores


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights: the engine does not care what a network has learned."""
    return exported_model(tmp_path_factory.mktemp("models") / "tiny").folder


@pytest.fixture(scope="session")
def coarse_newborn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from NeonatalSegLib.datasets.phantom import write_newborn

    return write_newborn(tmp_path_factory.mktemp("newborn"), spacing_mm=3.0)


@pytest.fixture(scope="module")
def warm_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One client for all segmentations that do not kill its worker."""
    with Client() as client:
        yield client


def test_hello(warm_client: Client) -> None:
    request = warm_client.request("hello")
    said = request.result(WORK_S)
    assert said["versions"]["torch"] and said["versions"]["SimpleITK"] and said["versions"]["NeonatalSeg"]
    assert said["devices"][-1]["name"] == "cpu" and said["devices"][-1]["works"]
    assert said["pid"] == warm_client.worker_pid and isinstance(said["models"], list)
    assert [event.name for event in request.poll()][-1] == "result"
    assert not request.folder.exists()


def test_segment_then_again_without_loading(
    warm_client: Client, tiny_model: Path, coarse_newborn: dict[str, Path]
) -> None:
    import SimpleITK as sitk

    options = {"probabilities": True, "uncertainty": True}
    arguments = {
        "t1": coarse_newborn["t1"],
        "t2": coarse_newborn["t2"],
        "model": str(tiny_model),
        "device": "cpu",
        "options": options,
    }
    first = warm_client.segment(**arguments)
    said = first.result(WORK_S)
    scan = sitk.ReadImage(str(coarse_newborn["t2"]))
    for key, components in (("label_map", 1), ("uncertainty", 1), ("probabilities", 10)):
        image = sitk.ReadImage(said[key])
        assert image.GetSize() == scan.GetSize() and image.GetNumberOfComponentsPerPixel() == components
        assert image.GetDirection() == pytest.approx(scan.GetDirection(), abs=1e-5)
        assert image.GetOrigin() == pytest.approx(scan.GetOrigin(), abs=1e-3)
        assert Path(said[key]).parent == first.folder
    assert len(said["volumes_ml"]) == 10 and said["model_name"] == "tiny" and said["device"].startswith("CPU")
    assert [one["Text"] for one in said["findings"]] == said["warnings"][: len(said["findings"])]
    assert bool(said["findings"]) == (said["verdict"] != "pass")
    fractions = [event["fraction"] for event in first.poll() if event.name == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 4
    assert said["warm"] is False

    second = warm_client.segment(**arguments)
    again = second.result(WORK_S)
    assert again["warm"] is True and again["times_s"]["load"] < 0.1 * said["times_s"]["load"]
    assert (
        sitk.GetArrayFromImage(sitk.ReadImage(again["label_map"]))
        == sitk.GetArrayFromImage(sitk.ReadImage(said["label_map"]))
    ).all()
    told = [
        event["seconds_left"] for event in second.poll() if event.name == "progress" and event["stage"] == "network"
    ]
    assert told and told[0] > 0
    for request in (first, second):
        request.release()
        assert not request.folder.exists()


def test_mistakes_of_the_user_come_back_in_words(
    warm_client: Client, tiny_model: Path, coarse_newborn: dict[str, Path]
) -> None:
    model = str(tiny_model)
    missing = coarse_newborn["t2"].with_name("not there.nii.gz")
    for arguments, words in (
        ({"t2": missing}, "not there.nii.gz"),
        ({}, "T1, a T2 or both"),
        ({"t2": coarse_newborn["t2"], "options": {"speed": 3}}, "Unknown option 'speed'"),
        ({"t2": coarse_newborn["t2"], "device": "abacus"}, "abacus"),
    ):
        request = warm_client.segment(**{"model": model, "device": "cpu", **arguments})
        final = request.wait(WORK_S)
        assert final is not None and final.name == "error" and final["kind"] == "user" and words in final.message, final
        assert not request.folder.exists()


def test_model_replaced_under_its_name_is_loaded_anew(
    warm_client: Client, coarse_newborn: dict[str, Path], tmp_path: Path
) -> None:
    import torch

    from NeonatalSegLib.models.bundle import save_model
    from NeonatalSegLib.networks.network import NetworkSettings, build_network

    settings = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0)
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_model(build_network(settings), settings, tmp_path / "same", description="Random weights")
        request = warm_client.segment(t2=coarse_newborn["t2"], model=str(tmp_path / "same"), device="cpu")
        said = request.result(WORK_S)
        request.release()
        assert said["warm"] is False
        hashes.append(said["model_hash"])
    assert hashes[0] != hashes[1]


def test_cooperative_cancel_keeps_the_worker_warm(
    warm_client: Client, tiny_model: Path, coarse_newborn: dict[str, Path]
) -> None:
    arguments = {"t2": coarse_newborn["t2"], "model": str(tiny_model), "device": "cpu"}
    warm_client.segment(**arguments).result(WORK_S).get("label_map")
    pid = warm_client.worker_pid
    seen: list[float] = []

    def stop_at_once(request: Request, event: Event) -> None:
        if event.name == "progress" and not seen:
            seen.append(time.perf_counter())
            request.cancel(grace_s=30.0)  # so long that only the worker itself can have stopped

    warm_client._on_event = stop_at_once
    try:
        request = warm_client.segment(**arguments)
        final = request.wait(WORK_S)
    finally:
        warm_client._on_event = None
    assert final is not None and final.name == "cancelled" and final["forced"] is False
    assert time.perf_counter() - seen[0] < 8.0 and not request.folder.exists()  # a busy machine may take a moment
    assert warm_client.segment(**arguments).result(WORK_S)["warm"] is True and warm_client.worker_pid == pid


def test_worker_killed_during_a_segmentation(tiny_model: Path, coarse_newborn: dict[str, Path]) -> None:
    arguments = {"t2": str(coarse_newborn["t2"]), "model": str(tiny_model), "device": "cpu"}
    with Client() as client:
        request, worker = first_progress(client, "segment", **arguments)
        worker.kill()
        with pytest.raises(EngineError, match="stopped unexpectedly"):
            request.result(10)
        assert client.segment(**arguments).result(WORK_S)["model_name"] == "tiny"


def test_many_segmentations_grow_neither_memory_nor_folder(
    warm_client: Client, tiny_model: Path, coarse_newborn: dict[str, Path]
) -> None:
    memory = []
    for _ in range(12):
        request = warm_client.segment(t2=coarse_newborn["t2"], model=str(tiny_model), device="cpu")
        request.result(WORK_S)
        request.release()
        memory.append(psutil.Process(warm_client.worker_pid).memory_info().rss)
        assert not request.folder.exists()
    assert memory[-1] < 1.05 * memory[2]


def test_full_disk(tmp_path: Path, tiny_model: Path, coarse_newborn: dict[str, Path]) -> None:
    pytest.importorskip("resource", reason="the limit on file sizes that stands in for a full disk is POSIX only")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    with Client(environment=fault_environment(tmp_path / "fault", limit)) as client:
        final = client.segment(t2=coarse_newborn["t2"], model=str(tiny_model), device="cpu").wait(WORK_S)
        assert final is not None and final.name == "error" and final["kind"] == "user", final
        assert "temporary folder" in final.message and "disk is full" in final.message and "\n" not in final.message
        answers(client)
