"""Models that a stranger made, and a store that two programs use at once."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import at_once, every_kill, files_in, posix
from store_models import CARD, LINEAGE, TINY, add, copies, save_parent, weight

from NeonatalSegLib.cli.app import run
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model, read_model, save_model
from NeonatalSegLib.models.bundle import sha256 as hash_of
from NeonatalSegLib.models.card import inherited_licence
from NeonatalSegLib.models.exported import read_export, write_export
from NeonatalSegLib.models.history import user_folder
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model, installed_models
from NeonatalSegLib.models.versions import list_versions
from NeonatalSegLib.networks.network import build_network


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_parent(tmp_path_factory.mktemp("parent"))


def copy_with(parent: Model, name: str, **changes: Any) -> Path:
    """A model in the store whose metadata state other things."""
    copies(parent, name)
    file = user_folder() / name / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["neonatalseg"].update(changes)
    file.write_text(json.dumps(metadata), encoding="utf-8")
    return user_folder() / name


# ---------------------------------------------------------------- what a model states


@pytest.mark.parametrize(
    "changes",
    [
        {"figures": {"T1": {"mean_dsc_no_bg": "high", "subjects": 1}}},
        {"figures": {"T1": 0.9}},
        {"figures": [1]},
        {"lineage": "from a friend"},
        {"lineage": {"scans": [1, 2]}},
        {"lineage": {"before": {"csf": "0.7"}}},
        {"lineage": {"seconds": [1]}},
        {"lineage": {"raters": "Eve"}},
        {"ages_weeks": ["young", "old"]},
        {"ages_weeks": [38.0]},
        {"training_subjects": {"a": 1}},
        {"sha256": 5},
        {"format": float("inf")},
        {"format": "one"},
        {"network": {**TINY.to_json(), "filters": [32] * 20_000}},
        {"network": {**TINY.to_json(), "filters": [1024, 1024, 1024, 1024]}},
        {"network": {**TINY.to_json(), "filters": [4, 8, 1 << 40]}},
        {"network": {**TINY.to_json(), "in_channels": 1 << 30}},
        {"network": {**TINY.to_json(), "patch": [1 << 20] * 3}},
        {"network": {**TINY.to_json(), "heads": "many"}},
        {"network": [1]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_one_odd_model_is_passed_over_with_its_reason(
    parent: Model, changes: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_with(parent, "odd", **changes)
    copies(parent, "good")

    def build(_: object) -> None:  # the memory of its tensors would not be seen below
        raise AssertionError("built before it was checked")

    monkeypatch.setattr("NeonatalSegLib.models.bundle.build_network", build)
    tracemalloc.start()
    try:
        with pytest.raises(NeonatalSegError, match="odd"):
            read_model(folder)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    models, reasons = installed_models()
    assert "good" in [m.name for m in models] and len(reasons) == 1 and "odd" in reasons[0]
    assert [v.name for v in list_versions()] == ["good"]
    assert run(["models"]) == 0
    shown = capsys.readouterr()
    assert "good  candidate" in shown.out and "Traceback" not in shown.err and "Passed over" in shown.err


def test_a_models_text_does_not_steer_the_terminal(parent: Model, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_with(parent, "loud")
    file = folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["description"] = "fine\nneonatal-v9  shipped, current\x1b[2J\u202e"
    file.write_text(json.dumps(metadata), encoding="utf-8")
    (folder / "docs" / "README.md").write_text("# card \x1b]0;title\x07\n", encoding="utf-8")
    assert run(["models"]) == run(["models", "show", "loud"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert not [line for line in text.splitlines() if line.startswith("neonatal-v9")]


# ---------------------------------------------------------------- weights


def test_an_old_torch_opens_no_strangers_weights(parent: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.5.1", "2.6.0+cu124", "2.9.1"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(NeonatalSegError, match=rf"{version[:5]}.*Update it to 2\.10"):
            parent.load_network()
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    find_model(DEFAULT_MODEL).load_network()  # came with NeonatalSeg
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    parent.load_network()


def with_weights(parent: Model, folder: Path, weights: Any) -> Model:
    shutil.copytree(parent.folder, folder)
    file = folder / "models" / "model.pt"
    if callable(weights):
        weights(file)
    else:
        torch.save(weights, file)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata["neonatalseg"]["sha256"] = hash_of(file)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return read_model(folder)


def test_small_weights_do_not_become_large(parent: Model, tmp_path: Path) -> None:
    """A tensor of one number that says it is 12 GB; a zip that unpacks to 2 GB; a file that is no zip."""
    weights = torch.load(parent.folder / "models" / "model.pt", weights_only=True)
    first = next(iter(weights))
    wide = with_weights(parent, tmp_path / "wide", {**weights, first: torch.zeros(1).expand(3_000_000_000)})
    with pytest.raises(NeonatalSegError, match="do not fit"):
        wide.load_network()

    def packed(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model/data/0", "w") as stream:
            for _ in range(40):
                stream.write(bytes(1 << 20))

    with pytest.raises(NeonatalSegError, match="unpacks to 42 MB"):
        with_weights(parent, tmp_path / "packed", packed).load_network()
    legacy = with_weights(
        parent, tmp_path / "legacy", lambda file: torch.save(weights, file, _use_new_zipfile_serialization=False)
    )
    with pytest.raises(NeonatalSegError, match="was refused"):
        legacy.load_network()


NET = '<?xml version="1.0"?><net><layers><layer id="0" name="a" type="Const" version="opset1">{}</layer></layers></net>'
DATA = '<data element_type="f16" offset="0" size="{}"/><output><port><dim>{}</dim></port></output>'


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (NET.format(DATA.format(64, 32)), ""),
        (NET.format(DATA.format(1 << 40, 32)), "does not have"),
        (NET.format(DATA.format(64, 1 << 40)), "states a size"),
        (NET.format("").replace("opset1", "extension"), "layer that no network"),
        (NET.format("").replace("Const", "Loop"), "layer that no network"),
        (NET.format("").replace("<net>", '<!DOCTYPE a [<!ENTITY b "c">]><net>'), "not plain XML"),
        (NET.format(" " * 21_000_000), "larger"),
    ],
    ids=["good", "weights", "size", "extension", "loop", "entity", "large"],
)
def test_a_strangers_export_for_openvino(parent: Model, tmp_path: Path, xml: str, words: str) -> None:
    model = read_model(shutil.copytree(parent.folder, tmp_path / "base"))
    write_export(model, xml.encode(), bytes(64), "fp32", {})
    if not words:
        assert read_export(model) is not None
        return
    with pytest.raises(NeonatalSegError, match=words):
        read_export(model)


@posix
def test_devices_and_links_are_not_read(parent: Model, tmp_path: Path) -> None:
    """A zip that is a link to an endless device, and a card that is a link to a file of the user's."""
    (tmp_path / "model.zip").symlink_to("/dev/zero")
    with pytest.raises(NeonatalSegError, match="not a regular file"):
        store.import_model(tmp_path / "model.zip")
    folder = shutil.copytree(parent.folder, tmp_path / "base")
    (folder / "docs" / "README.md").unlink()
    (tmp_path / "mine.md").write_text("## Licence\n\nsecret\n")
    (folder / "docs" / "README.md").symlink_to(tmp_path / "mine.md")
    licence = inherited_licence(read_model(folder))
    assert "states no licence" in licence and "secret" not in licence


# ---------------------------------------------------------------- names and paths


def test_a_folder_here_does_not_stand_for_an_installed_model(
    parent: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "here" / DEFAULT_MODEL
    shutil.copytree(parent.folder, other)
    shutil.copytree(parent.folder, tmp_path / "here" / "stray")
    monkeypatch.chdir(tmp_path / "here")
    assert find_model(DEFAULT_MODEL).hash != parent.hash
    assert find_model(f"./{DEFAULT_MODEL}").hash == parent.hash == find_model(other).hash
    with pytest.raises(NeonatalSegError, match=r"no model named 'stray'.*\./stray"):
        find_model("stray")
    for name in ("stray", "./stray", str(tmp_path / "here" / "stray")):
        assert run(["models", "accept", name]) == 2
    assert store.history() == [] and store.current_name() == DEFAULT_MODEL
    capsys.readouterr()


# ---------------------------------------------------------------- the store while others use it


@posix
def test_what_was_said_to_be_accepted_is_there(parent: Model) -> None:
    """Accepted against discarded, at once: one of the two is refused, whoever was quicker."""
    for number in range(12):
        name = f"m{number}"
        copies(parent, name)
        accepted, discarded = at_once(lambda n=name: store.accept(n), lambda n=name: store.discard(n))  # type: ignore[misc]
        assert sorted((accepted, discarded)) == [0, 3]
        there = (user_folder() / name).is_dir()
        assert there == (accepted == 0) and (store.current_name() == name) == there


def test_only_models_are_discarded(parent: Model) -> None:
    mine = user_folder() / "thesis"
    mine.mkdir()
    (mine / "chapter1.txt").write_text("all my work")
    with pytest.raises(NeonatalSegError, match="was not deleted"):
        store.discard("thesis")
    assert (mine / "chapter1.txt").exists() and store.history() == []


def test_an_export_replaces_no_other_file(parent: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies(parent, "one", "two")
    thesis = tmp_path / "thesis.zip"
    thesis.write_bytes(b"mine")
    with pytest.raises(NeonatalSegError, match="was not replaced"):
        store.export_model("one", thesis)
    file = store.export_model("one", tmp_path / "one.zip")
    store.export_model("one", file)  # its own
    with pytest.raises(NeonatalSegError, match="was not replaced"):
        store.export_model("two", file)
    assert thesis.read_bytes() == b"mine"
    assert run(["models", "export", "one", str(thesis), "--force"]) == 0 and zipfile.is_zipfile(thesis)
    capsys.readouterr()


@posix
def test_a_kill_while_a_model_is_saved_over_leaves_the_old_or_the_new_one(parent: Model, tmp_path: Path) -> None:
    network = build_network(TINY)
    folder = tmp_path / "model"

    def save(value: float, card: str) -> None:
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, value)
        save_model(network, TINY, folder, description=card, card=card)

    save(0.25, "old")
    (folder / "notes.txt").write_text("mine")
    seen = set()
    for _ in every_kill(lambda: save(0.75, "new")):
        model = read_model(folder)
        assert (model.description, weight(model)) in (("old", 0.25), ("new", 0.75))
        assert (folder / "docs" / "README.md").read_text(encoding="utf-8") == model.description
        assert {name for name in files_in(folder) if not name.startswith((".part", ".neonatalseg"))} == {
            "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt", "notes.txt",
        }  # fmt: skip
        seen.add(model.description)
        save(0.25, "old")
    assert seen == {"old", "new"} and not [p for p in folder.iterdir() if p.name.startswith(".")]


@posix
def test_what_a_killed_fine_tuning_left_goes_with_the_next(parent: Model) -> None:
    network = build_network(TINY)
    for _ in every_kill(lambda: store.add_version(network, TINY, parent, LINEAGE), stride=4):
        for name in [p.name for p in user_folder().iterdir() if not p.name.startswith(".")]:
            find_model(name).check_weights()
    add(parent)
    assert not list(user_folder().glob(".new-*"))


def test_the_licence_is_kept_where_the_parent_goes_meanwhile(parent: Model, tmp_path: Path) -> None:
    shutil.copytree(parent.folder, tmp_path / "base")
    origin = read_model(tmp_path / "base")
    licence = inherited_licence(origin)  # as a fine-tuning reads it when it begins
    shutil.rmtree(tmp_path / "base")
    made = store.add_version(build_network(TINY), TINY, origin, LINEAGE, licence=licence)
    assert (
        "Only for the Order of the Owl." in (made.folder / "docs" / "README.md").read_text(encoding="utf-8")
        and "Owl" in CARD
    )


# ---------------------------------------------------------------- what is sent on


def test_an_export_names_nobody(parent: Model, tmp_path: Path) -> None:
    settings = {"rehearsal_folder": "/home/eve/scans/cache", "windows": "C:\\Users\\eve\\cache"}
    made = add(parent, slices=["baby/axial/30"], settings=settings, scans=[{"name": "baby", "age_weeks": 31.5}])
    write_export(made, b"<net/>", bytes(64), "int8", {"calibration": {"subjects": ["baby", "kept-out", "elsewhere"]}})
    with zipfile.ZipFile(store.export_model(made.name, tmp_path)) as archive:
        text = "\n".join(archive.read(n).decode() for n in archive.namelist() if n.endswith((".json", ".md")))
        with zipfile.ZipFile(io.BytesIO(archive.read(f"{made.name}/models/openvino.zip"))) as export:
            text += export.read("export.json").decode()
    for private in ("baby", "elsewhere", "Eve", "Ada", "old-1", "kept-out", "/home", "Users", "31.5"):
        assert private not in text, private
    assert "scan-01/axial/30" in text and "rater-1" in text and "Order of the Owl" in text
    there = store.import_model(tmp_path / f"{made.name}.zip", "visitor")
    assert there.hash == made.hash and weight(there) == 0.5
    assert there.ages_weeks == (31.0, 43.0)


def test_names_go_along_where_they_are_asked_for(parent: Model, tmp_path: Path) -> None:
    made = add(parent)
    assert run(["models", "export", made.name, str(tmp_path), "--names"]) == 0
    with zipfile.ZipFile(tmp_path / f"{made.name}.zip") as archive:
        told = json.loads(archive.read(f"{made.name}/configs/metadata.json"))["neonatalseg"]["lineage"]
    assert told["scans"] == [{"name": "baby", "age_weeks": 31.5}]
    assert [path.name for path in tmp_path.iterdir()] == [f"{made.name}.zip"]
