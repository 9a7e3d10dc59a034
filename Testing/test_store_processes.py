"""The model store while processes compete for it or are killed."""

from __future__ import annotations

import subprocess

import pytest
from store_models import SHIPPED, add, at_once, copies, run, save_parent, visible, weight

from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.history import user_folder
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model, installed_models


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_parent(tmp_path_factory.mktemp("parent"))


# Parent and a network of its weights, all of one value, without the time that MONAI takes to load.
NETWORK = """
import torch
from NeonatalSegLib.models.registry import find_model
def network_of(folder, value):
    parent, network = find_model(folder), torch.nn.Module()
    weights = torch.load(parent.check_weights(), weights_only=True)
    network.state_dict = lambda: {key: torch.full_like(weight, value) for key, weight in weights.items()}
    return parent, network
"""


def test_acceptances_at_once_are_all_kept_in_one_order(parent: Model) -> None:
    names = [f"{who}{n}" for who in "abcd" for n in range(6)]
    copies(parent, *names)
    wait = "print('ready', flush=True); sys.stdin.readline()\n"
    at_once(wait + "for n in range(6): store.accept(f'{sys.argv[1]}{n}')", *"abcd")
    events = store.history()
    assert sorted(e.name for e in events) == names
    assert [e.number for e in events] == list(range(1, 25))
    for who in "abcd":
        own = [e.name for e in events if e.name.startswith(who)]
        assert own == sorted(own)
    assert store.current_name() == events[-1].name
    at_once(wait + "for n in range(5): store.roll_back()", *"abcd")
    assert len(store.history()) == 44 and store.current_name() == events[3].name
    assert sorted(p.name for p in (user_folder() / ".history").iterdir()) == [f"{n:06d}" for n in range(1, 45)]


VERSIONS = (
    NETWORK
    + """
folder, value = sys.argv[1].split("|")
parent, network = network_of(folder, float(value))
print('ready', flush=True); sys.stdin.readline()
for n in range(3):
    print(store.accept(store.add_version(network, parent.network, parent, {"seconds": float(value)}).name).name)
"""
)


def test_versions_made_at_once_are_all_kept(parent: Model) -> None:
    """Each process tells by its weights which versions are its own."""
    values = (1.0, 2.0, 3.0)
    said = at_once(VERSIONS, *(f"{parent.folder}|{value}" for value in values))
    assert visible() == [f"base-ft{n:03d}" for n in range(1, 10)]
    for value, names in zip(values, said, strict=True):
        assert len(names.split()) == 3
        for name in names.split():
            model = find_model(name)
            assert weight(model) == value and model.metadata["neonatalseg"]["lineage"]["seconds"] == value
            assert (model.folder / "docs" / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
            assert store.status(name) == "accepted"
    assert len(store.history()) == 9


KILLED = """
import os, sys
from NeonatalSegLib.models import store
what, name = sys.argv[2:4]
def end(event, arguments):
    if event == what and name in str(arguments[0]).replace(os.sep, "/"):
        os._exit(9)  # at once, without any cleaning up
"""


@pytest.mark.parametrize(
    ("what", "name"),
    [("os.mkdir", "/.history/.new-"), ("open", "event.json"), ("os.rename", "/.history/.new-")],
)
def test_a_killed_acceptance_did_not_happen(parent: Model, what: str, name: str) -> None:
    copies(parent, "one")
    code = KILLED + "sys.addaudithook(end)\nstore.accept('one')"
    with pytest.raises(subprocess.CalledProcessError) as ended:
        run(code, parent.folder, what, name)
    assert ended.value.returncode == 9
    assert store.current_name() == DEFAULT_MODEL and store.history() == []
    store.accept("one")
    assert store.current_name() == "one"


@pytest.mark.parametrize(("what", "name"), [("open", "metadata.json"), ("os.rename", "/base-ft001")])
def test_a_killed_fine_tuning_leaves_no_half_model(parent: Model, what: str, name: str) -> None:
    code = NETWORK + (
        "parent, network = network_of(sys.argv[1], 1.0)\n"
        "sys.addaudithook(end)\nstore.add_version(network, parent.network, parent, {})"
    )
    with pytest.raises(subprocess.CalledProcessError) as ended:
        run(KILLED + code, parent.folder, what, name)
    assert ended.value.returncode == 9
    assert visible() == [".new-base-ft001"]
    models, reasons = installed_models()
    assert [m.name for m in models] == SHIPPED and reasons == []
    (user_folder() / ".new-base-ft001" / "sign").touch()
    made = add(parent)  # its maker has ended: what it left goes at once
    assert visible() == [made.name] and find_model(made.name).hash == made.hash
