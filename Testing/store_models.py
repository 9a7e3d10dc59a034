"""What the tests of the model store share: a small parent, versions of it, and processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT

from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.models.history import user_folder
from NeonatalSegLib.networks.network import NetworkSettings, build_network

SHIPPED = sorted(folder.name for folder in (ROOT / "Resources" / "Models").iterdir())
TINY = NetworkSettings((2, 4, 4), 1.5, (16, 16, 16), heads=1)
LINEAGE = {
    "strategy": "full",
    "settings": {"steps": 200},
    "slices": ["baby/axial/30", "baby/axial/40"],
    "held_out_slices": ["baby/axial/35"],
    "scans": [{"name": "baby", "age_weeks": 31.5}],
    "raters": ["Eve | Ada"],
    "before": {"csf": 0.7, "hippocampus": None},
    "after": {"csf": np.float32(0.875), "hippocampus": float("nan")},
    "before_mean": 0.7,
    "after_mean": 0.875,
    "source_before": 0.9,
    "source_after": 0.895,
    "mix": 0.5,
    "seconds": 61.0,
    "device": "CPU",
    "stopped_early": True,
}
CARD = "# base\n\nText.\n\n## Licence\n\nOnly for the Order of the Owl.\n\n- Cite Owl 2013.\n\n## Limits\n\nMany.\n"


def save_parent(folder: Path) -> Model:
    """A small model with a card and facts, outside of the store."""
    facts = {
        "training_subjects": ["old-1", "old-2"],
        "test_subjects": ["baby", "kept-out"],
        "ages_weeks": [38.0, 43.0],
        "figures": {"T1": {"mean_dsc_no_bg": 0.9, "subjects": 1}},
    }
    return save_model(build_network(TINY), TINY, folder / "base", description="small", card=CARD, facts=facts)


def add(origin: Model, value: float = 0.5, **changes: object) -> Model:
    """A version whose weights are all ``value``."""
    network = build_network(TINY)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, value)
    return store.add_version(network, TINY, origin, {**LINEAGE, **changes})


def copies(parent: Model, *names: str) -> None:
    """Models put into the user's folder by hand."""
    for name in names:
        shutil.copytree(parent.folder, user_folder() / name)


def visible() -> list[str]:
    return sorted(p.name for p in user_folder().iterdir() if p.name not in (".history", ".lock"))


def weight(model: Model) -> float:
    return float(next(iter(model.load_network().state_dict().values())).flatten()[0])


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONUTF8": "1"}  # names may hold any letter, whatever the terminal's code page
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=True, timeout=120)
    return done.stdout


def at_once(code: str, *arguments: object) -> list[str]:
    """Run ``code`` in a process for each argument; they import first, and go on together."""
    code = f"import sys\nfrom NeonatalSegLib.models import store\n{code}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(argument)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for argument in arguments
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children)
    return said
