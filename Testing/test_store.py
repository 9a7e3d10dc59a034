"""The user's models: versions and their cards, acceptance, the list, the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from store_models import LINEAGE, SHIPPED, TINY, add, copies, run, save_parent, visible, weight

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.history import user_folder
from NeonatalSegLib.models.registry import (
    DEFAULT_MODEL,
    current_model,
    default_model_name,
    find_model,
    installed_models,
    list_models,
)
from NeonatalSegLib.networks.network import build_network


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_parent(tmp_path_factory.mktemp("parent"))


def read_strictly(file: Path) -> dict[str, object]:
    """JSON without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    return found


# Versions


def test_a_model_whose_facts_cannot_be_read_is_told(parent: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(parent.folder, tmp_path / "odd")
    file = folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["neonatalseg"]["ages_weeks"] = ["young", "old"]
    file.write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(NeonatalSegError, match=r"facts about its training that cannot be read .*correct"):
        find_model(folder)


def test_what_a_model_states_is_read(parent: Model) -> None:
    """Facts and lineage, also of entries that are not there, as in models of earlier versions."""
    facts = add(parent).facts
    assert facts.training_subjects == ("old-1", "old-2", "baby") and facts.ages_weeks == (31.5, 43.0)
    assert facts.lineage is not None and facts.lineage.parent == "base" and facts.figures == {}
    assert list(facts.lineage.slices) == LINEAGE["slices"] and facts.lineage.after["hippocampus"] is None
    assert parent.facts.lineage is None


def test_a_version_tells_where_it_comes_from(parent: Model) -> None:
    model = add(parent, parent="a lie")
    ours = read_strictly(model.folder / "configs" / "metadata.json")["neonatalseg"]
    assert isinstance(ours, dict)
    lineage = ours["lineage"]
    assert (lineage["parent"], lineage["parent_sha256"]) == ("base", parent.hash)
    assert lineage["after"] == {"csf": 0.875, "hippocampus": None}
    assert lineage["slices"] == LINEAGE["slices"] and lineage["date"].endswith("Z")
    assert ours["training_subjects"] == ["old-1", "old-2", "baby"]
    assert ours["test_subjects"] == ["kept-out"]
    assert model.ages_weeks == (31.5, 43.0)
    assert "figures" not in ours  # the parent's figures are not this model's
    assert weight(model) == 0.5


def test_the_card_of_a_version(parent: Model) -> None:
    model = add(parent)
    card = (model.folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# base-ft001\n")
    assert f"| Parent | base, SHA-256 {parent.hash[:12]}... |" in card
    assert "| Raters | Eve \\| Ada |" in card
    assert "2 slices of 1 scan" in card and "| Held out | 1 slice |" in card
    assert "| CSF | 0.700 | 0.875 | +0.175 |" in card
    assert "| DSC on the parent's own domain | 0.900 before, 0.895 after |" in card
    assert "| Hippocampus | – | – | – |" in card
    assert "Research use only, not for diagnosis" in card
    assert card.endswith("## Licence\n\nOnly for the Order of the Owl.\n\n- Cite Owl 2013.\n")
    again = store.add_version(build_network(TINY), TINY, model, {}, card="Seen by Ada.")
    card = (again.folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert "Order of the Owl" in card and "## Notes\n\nSeen by Ada." in card
    assert "no slice was held out" in card


def test_a_model_from_scratch_has_not_seen_what_its_parent_saw(parent: Model) -> None:
    model = add(parent, strategy="scratch", scans=["baby"])
    assert model.facts.training_subjects == ("baby",)
    assert model.ages_weeks is None


def test_a_parent_without_licence_is_told(parent: Model, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(parent.folder, folder)
    shutil.rmtree(folder / "docs")
    card = (add(find_model(folder)).folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert "The card of bare states no licence" in card


def test_numbers_are_not_used_again(parent: Model) -> None:
    first, second = add(parent), add(find_model(add(parent).folder))
    assert [first.name, second.name] == ["base-ft001", "base-ft003"]
    store.discard("base-ft003")
    assert add(parent).name == "base-ft004"


def test_a_lineage_that_is_no_json_leaves_nothing(parent: Model) -> None:
    with pytest.raises(TypeError):
        add(parent, settings=object())
    assert visible() == []


# Acceptance


def test_nothing_is_current_before_it_is_accepted(parent: Model) -> None:
    name = add(parent).name
    assert (store.current_name(), store.status(name), store.status(DEFAULT_MODEL)) == (
        DEFAULT_MODEL,
        "candidate",
        "shipped",
    )
    assert store.accept(name).name == name
    assert (store.current_name(), default_model_name(), store.status(name)) == (name, name, "accepted")
    assert find_model().name == name
    assert [(e.event, e.name) for e in store.history()] == [("accept", name)]
    store.accept(name)
    assert len(store.history()) == 1


def test_roll_back_goes_back_one_by_one(parent: Model) -> None:
    copies(parent, "one", "two")
    for name in ("one", "two", DEFAULT_MODEL, "one"):
        store.accept(name)
    seen = []
    while store.previous_name():
        seen.append(store.roll_back().name)
        assert store.current_name() == seen[-1]
    assert seen == [DEFAULT_MODEL, "two", "one", DEFAULT_MODEL]
    assert store.status("one") == "candidate"
    with pytest.raises(NeonatalSegError, match="nothing to roll back"):
        store.roll_back()
    store.accept("two")
    assert store.current_name() == "two"


def test_discarding(parent: Model) -> None:
    copies(parent, "one", "two")
    store.accept("one")
    with pytest.raises(NeonatalSegError, match="roll back first"):
        store.discard("one")
    store.accept("two")
    store.discard("one")
    assert visible() == ["two"]
    assert store.roll_back().name == DEFAULT_MODEL
    before = find_model(DEFAULT_MODEL).hash
    for name in (DEFAULT_MODEL, "one", "../two", "", "."):
        with pytest.raises(NeonatalSegError, match=r"cannot be discarded|no model named"):
            store.discard(name)
    assert visible() == ["two"] and find_model(DEFAULT_MODEL).hash == before


def test_a_linked_folder_is_not_emptied_by_discarding(parent: Model) -> None:
    try:
        (user_folder() / "linked").symlink_to(parent.folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets only administrators make links")
    assert "linked" in [m.name for m in list_models()]
    store.discard("linked")
    assert visible() == []
    parent.check_weights()


def test_a_current_model_that_is_gone_is_told(parent: Model) -> None:
    copies(parent, "one", "two", "three")
    for name in ("one", "two", "three"):
        store.accept(name)
    shutil.rmtree(user_folder() / "three")
    file = user_folder() / "two" / "configs" / "metadata.json"
    file.write_text(file.read_text(encoding="utf-8").replace(parent.hash, "0" * 64), encoding="utf-8")
    name, told = current_model()
    assert name == "one" and len(told) == 2
    assert "three is missing" in told[0] and "one is used instead" in told[0]
    assert store.status("two") == "candidate"
    store.discard("three")
    assert len(current_model()[1]) == 1
    assert store.roll_back().name == DEFAULT_MODEL
    assert current_model() == (DEFAULT_MODEL, [])


def test_a_segmentation_tells_that_the_accepted_model_is_gone(parent: Model, tmp_path: Path) -> None:
    from NeonatalSegLib.datasets.phantom import draw_newborn
    from NeonatalSegLib.scans.scan import load_scan
    from NeonatalSegLib.segmentation.segmenter import Segmenter

    copies(parent, "one", "two")
    store.accept("one")
    store.accept("two")
    shutil.rmtree(user_folder() / "two")
    sitk.WriteImage(draw_newborn(40.0, seed=1, spacing_mm=2.5).t2, str(tmp_path / "t2.nii.gz"))
    done = Segmenter(device="cpu").segment(load_scan(None, tmp_path / "t2.nii.gz"))
    assert done.model_name == "one"
    assert any("two is missing" in warning for warning in done.warnings)


def test_broken_weights_are_not_accepted(parent: Model) -> None:
    copies(parent, "one")
    file = user_folder() / "one" / "models" / "model.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(NeonatalSegError, match="corrupt"):
        store.accept("one")
    with pytest.raises(NeonatalSegError, match="corrupt"):
        store.export_model("one", user_folder() / "x.zip")
    with pytest.raises(NeonatalSegError, match="no model named"):
        store.accept("none")
    with pytest.raises(NeonatalSegError, match="not the name"):
        store.accept(str(parent.folder))
    assert store.history() == [] and visible() == ["one"]


def test_a_damaged_event_does_not_stop_the_rest(parent: Model) -> None:
    copies(parent, "one", "two")
    store.accept("one")
    store.accept("two")
    (user_folder() / ".history" / "000002" / "event.json").write_text("{", encoding="utf-8")
    assert store.current_name() == "one"
    store.accept("two")
    assert [e.number for e in store.history()] == [1, 3]


# The list


def test_what_is_no_model_never_breaks_the_list(parent: Model) -> None:
    copies(parent, "good", "newer", "strange", DEFAULT_MODEL)
    (user_folder() / "empty").mkdir()
    (user_folder() / "packed.zip").write_bytes(b"zip")
    (user_folder() / "note.txt").write_text("mine")
    file = user_folder() / "newer" / "configs" / "metadata.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"format": 1', '"format": 9'), encoding="utf-8")
    file = user_folder() / "strange" / "configs" / "metadata.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"filters"', '"filtres"'), encoding="utf-8")
    models, reasons = installed_models()
    assert [m.name for m in models] == [*SHIPPED, "good"]
    told = "\n".join(reasons)
    assert len(reasons) == 5
    for words in ("empty is not a NeonatalSeg model", "format 9", "'filtres'", "name of a shipped model", "packed"):
        assert words in told
    assert find_model(DEFAULT_MODEL).hash != parent.hash
    with pytest.raises(NeonatalSegError, match="format 9"):
        find_model("newer")
    store.discard("newer")
    assert not (user_folder() / "newer").exists()


@pytest.mark.parametrize(
    "text",
    ["[]", '"x"', "{" * 100_000, "[" * 100_000, '{"neonatalseg": 3}', "\x00", '{"neonatalseg": {"format": "x"}}'],
    ids=["list", "text", "deep", "deeper", "number", "nul", "format"],
)
def test_nonsense_in_the_metadata_is_passed_over(parent: Model, text: str) -> None:
    copies(parent, "odd")
    (user_folder() / "odd" / "configs" / "metadata.json").write_text(text, encoding="utf-8")
    models, reasons = installed_models()
    assert [m.name for m in models] == SHIPPED
    assert len(reasons) == 1 and "odd is not a NeonatalSeg model" in reasons[0]


def test_listing_needs_no_network_library() -> None:
    code = (
        "import sys\nfrom NeonatalSegLib.models import store\nfrom NeonatalSegLib.models.registry import list_models\n"
        "print([m.name for m in list_models()], store.current_name())\n"
        "print(sorted({'torch', 'monai', 'numpy', 'SimpleITK'} & set(sys.modules)))"
    )
    said = run(code).splitlines()
    assert said == [f"{SHIPPED} {DEFAULT_MODEL}", "[]"]


def test_the_folder_is_where_the_platform_keeps_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_folder() == Path(os.environ["NEONATALSEG_MODELS"])
    monkeypatch.delenv("NEONATALSEG_MODELS")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    bases = {"win32": "AppData/Local", "darwin": "Library/Application Support"}
    assert user_folder() == tmp_path / bases.get(sys.platform, ".local/share") / "NeonatalSeg" / "Models"
    assert not user_folder().exists() and [m.name for m in list_models()] == SHIPPED


# Places that cannot be written


def test_a_folder_that_cannot_be_made_is_told(
    parent: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models_folder: Path
) -> None:
    """A file stands where the folder should be: refused for every user, root included."""
    copies(parent, "one")
    packed = store.export_model("one", tmp_path)
    (models_folder / ".history").write_text("in the way")
    with pytest.raises(NeonatalSegError, match="NEONATALSEG_MODELS"):
        store.accept("one")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "file" / "models"))
    for attempt in (lambda: add(parent), lambda: store.import_model(packed)):
        with pytest.raises(NeonatalSegError, match="NEONATALSEG_MODELS"):
            attempt()
    models, reasons = installed_models()
    assert [m.name for m in models] == SHIPPED and "could not be listed" in reasons[0]
    with pytest.raises(NeonatalSegError, match="could not be written"):
        store.export_model(DEFAULT_MODEL, tmp_path / "file" / "x.zip")


@pytest.mark.skipif(os.name != "posix", reason="file size limits of POSIX systems")
def test_a_full_disk_leaves_no_half_model(parent: Model, tmp_path: Path) -> None:
    """No file may grow beyond 2 kB meanwhile, as on a disk that is full."""
    import resource

    copies(parent, "one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        with pytest.raises(NeonatalSegError, match="could not be written"):
            add(parent)
        with pytest.raises(NeonatalSegError, match="could not be written"):
            store.export_model("one", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert visible() == ["one"] and list(tmp_path.iterdir()) == []


# The command


def test_the_command(parent: Model, tmp_path: Path) -> None:
    """Every subcommand, one after the other in one process, as the shell would call them."""
    add(parent)
    (user_folder() / "junk").mkdir()
    commands = [
        [],
        ["show", "base-ft001"],
        ["accept", "base-ft001"],
        [],
        ["export", "base-ft001", str(tmp_path)],
        ["discard", "base-ft001"],
        ["roll-back"],
        ["discard", "base-ft001"],
        ["import", str(tmp_path / "base-ft001.zip"), "--name", "visitor"],
        ["discard", DEFAULT_MODEL],
    ]
    code = (
        "import json, sys\nfrom NeonatalSegLib.cli.app import run\nsys.stderr = sys.stdout\n"
        "for command in json.loads(sys.argv[1]): print('=>', run(['models', *command]), '<=', sep='')"
    )
    parts = re.split(r"=>(\d)<=\n", run(code, json.dumps(commands)))
    assert parts[1::2] == ["0", "0", "0", "0", "0", "2", "0", "0", "0", "2"]
    listed, shown, accepted, listed_again, written, current, rolled_back, gone, imported, shipped = parts[:-1:2]
    assert f"{DEFAULT_MODEL}  shipped, current" in listed and "base-ft001  candidate" in listed
    assert "CSF 0.700 -> 0.875, Mean 0.700 -> 0.875" in listed and "junk is not a NeonatalSeg model" in listed
    assert "Order of the Owl" in shown
    assert "Current model: base-ft001" in accepted and "base-ft001  accepted, current" in listed_again
    assert str(tmp_path / "base-ft001.zip") in written
    assert "Error: base-ft001 is the current model" in current
    assert f"Current model: {DEFAULT_MODEL}" in rolled_back and "Discarded" in gone
    assert "Imported: visitor" in imported and "cannot be discarded" in shipped
    assert visible() == ["junk", "visitor"]
