"""Model files are data: bundles that are read, checked, and refused where they are not what they say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model, read_model, save_model, sha256
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model, list_models
from NeonatalSegLib.networks.network import NetworkSettings, build_network

TINY = NetworkSettings((4, 8, 8), 1.0, (16, 16, 16), heads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Model:
    return save_model(build_network(TINY), TINY, tmp_path / "tiny", description="for a test")


def change(model: Model, **entries: object) -> Path:
    """Edit the "neonatalseg" section of a bundle's metadata."""
    file = model.folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["neonatalseg"].update(entries)
    file.write_text(json.dumps(metadata), encoding="utf-8")
    return model.folder


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    network = build_network(TINY)
    save_model(network, TINY, tmp_path / "tiny", description="for a test")
    again = find_model(tmp_path / "tiny")
    assert (again.name, again.network, again.description) == ("tiny", TINY, "for a test")
    true, found = network.state_dict(), again.load_network().state_dict()
    assert found.keys() == true.keys()
    assert all(torch.equal(found[k], true[k].half().float()) for k in true)


def test_a_changed_weight_file_is_refused(bundle: Model) -> None:
    file = bundle.folder / "models" / "model.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(NeonatalSegError, match="corrupt or was exchanged"):
        bundle.load_network()


def test_a_truncated_weight_file_is_refused_even_with_its_own_hash(bundle: Model) -> None:
    file = bundle.folder / "models" / "model.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(NeonatalSegError, match="was refused"):
        read_model(change(bundle, sha256=sha256(file))).load_network()


class Payload:
    """What a pickle with code in it looks like: opening it would create the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_model_file_is_refused_and_not_run(bundle: Model, tmp_path: Path, how: str) -> None:
    file, victim = bundle.folder / "models" / "model.pt", tmp_path / "victim"
    if how == "torch":
        torch.save(Payload(victim), file)
    else:
        file.write_bytes(pickle.dumps(Payload(victim)))
    with pytest.raises(NeonatalSegError, match="holds code"):
        read_model(change(bundle, sha256=sha256(file))).load_network()
    assert not victim.exists()


def test_a_newer_format_is_refused(bundle: Model) -> None:
    with pytest.raises(NeonatalSegError, match="Update NeonatalSeg"):
        read_model(change(bundle, format=99))


def test_another_label_table_is_refused(bundle: Model) -> None:
    with pytest.raises(NeonatalSegError, match="label table"):
        read_model(change(bundle, labels={"0": "background", "1": "tumour"}))


def test_weights_of_another_network_are_refused(bundle: Model) -> None:
    other = NetworkSettings((4, 8, 12), 1.0, (16, 16, 16), heads=1)
    with pytest.raises(NeonatalSegError, match="do not fit"):
        read_model(change(bundle, network=other.to_json())).load_network()


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="not a NeonatalSeg model"):
        find_model(tmp_path)
    with pytest.raises(NeonatalSegError, match=r"Installed models: .*neonatal-t1t2"):
        find_model("no-such-model")
    with pytest.raises(NeonatalSegError, match="not a model"):
        find_model(tmp_path / "weights.pt")


def test_missing_weights_are_named(bundle: Model) -> None:
    (bundle.folder / "models" / "model.pt").unlink()
    with pytest.raises(NeonatalSegError, match=r"model\.pt is missing"):
        bundle.load_network()


def test_the_shipped_model_is_whole() -> None:
    model = find_model(DEFAULT_MODEL)
    assert model.name in [m.name for m in list_models()]
    assert (model.folder / "models" / "model.pt").stat().st_size <= 25e6
    card = (model.folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert "Copyright Imperial College of Science, Technology and Medicine and Ioannis S. Gousias 2013" in card
    assert "esearch use only" in card and "non-commercial" in card
    ours = model.metadata["neonatalseg"]
    assert len(ours["test_subjects"]) >= 3
    assert not set(ours["training_subjects"]) & {*ours["test_subjects"], *ours["validation_subjects"]}
    model.load_network()
