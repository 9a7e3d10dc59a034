"""The command as its users run it: a real process, real files, exit codes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT
from tiny_models import exported_model

from NeonatalSegLib.models.registry import DEFAULT_MODEL
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.tissues import TISSUES

UNIX = pytest.mark.skipif(os.name != "posix", reason="signals and file size limits of POSIX systems")


def neonatalseg(*arguments: object, program: str = "", **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; ``program`` is Python code that runs in it before."""
    code = f"{program}\nimport sys\nfrom NeonatalSegLib.cli.app import main\nsys.argv[0] = 'neonatalseg'\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False, **kwargs
    )  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights: fast, for everything but the segmentation itself."""
    settings = NetworkSettings((2, 4, 4), 1.5, (32, 32, 32), heads=1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return exported_model(folder, settings).folder


# What Typer and Rich bring along; anything else that the help loads is ours to answer for.
OF_TYPER = {
    "_distutils_hack", "annotated_doc", "attr", "markdown_it", "mdurl", "pygments", "rich", "shellingham", "typer",
    "typing_extensions", "click",
}  # fmt: skip
COMMANDS = (
    "segment", "batch", "bids", "evaluate", "train", "demo", "split", "budget", "finetune", "complete", "models",
    "experiment",
)  # fmt: skip
BARE_HELP = """
import sys, time, typer
app = typer.Typer()
@app.command()
def one(name: str) -> None: "A command."
@app.command()
def two(name: str) -> None: "Another."
try:
    app(["--help"])
except SystemExit:
    print("SECONDS", time.process_time())
"""


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom NeonatalSegLib.cli import app as cli\nstatus = cli.run(['--help'])\n"
        "found = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "rooms = {'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('NeonatalSegLib.')}\n"
        "print('STATUS', status, *sorted(found), '|', *sorted(rooms))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    said, rooms = done.stdout.split("STATUS ")[1].split("|")
    status, *packages = said.split()
    assert status == "0"
    assert set(packages) - OF_TYPER <= {"NeonatalSegLib", "__main__"}
    assert rooms.split() == ["NeonatalSegLib.cli", "NeonatalSegLib.errors", "NeonatalSegLib.files"]
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s{{2,}}", done.stdout, re.MULTILINE), command


def test_help_is_as_quick_as_typer_lets_it_be() -> None:
    """CPU time of the process beside that of a program with two empty commands, each the best of three in turn."""
    ours = (
        "import time\nfrom NeonatalSegLib.cli import app as cli\ncli.run(['--help'])\n"
        "print('SECONDS', time.process_time())"
    )
    best = {ours: math.inf, BARE_HELP: math.inf}
    for _ in range(3):
        for code in best:
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
            )
            best[code] = min(best[code], float(done.stdout.split("SECONDS ")[1]))
    assert best[ours] < 2.5 * best[BARE_HELP]


def test_segment_leaves_what_it_promises(newborn_files: dict[str, Path], tmp_path: Path) -> None:
    done = neonatalseg(
        "segment", "--t1", newborn_files["t1"], "--t2", newborn_files["t2"], "--out", tmp_path / "out",
        "--age", 40.5, "--uncertainty", "--probabilities",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {
        f"sub-01_{n}"
        for n in (
            "dseg.nii.gz",
            "volumes.tsv",
            "dseg.json",
            "dseg.png",
            "report.html",
            "probseg.json",
            "probseg.nii.gz",
            "uncertainty.nii.gz",
        )
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    labels = sitk.ReadImage(str(tmp_path / "out" / "sub-01_dseg.nii.gz"))
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert Grid.of(labels).is_like(Grid.of(sitk.ReadImage(str(newborn_files["t2"]))))
    array = sitk.GetArrayFromImage(labels)
    rows = [
        r.split("\t") for r in (tmp_path / "out" / "sub-01_volumes.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    volumes = {key: float(ml) for _, key, _, ml in rows}
    for t in TISSUES[1:]:
        assert volumes[t.key] == pytest.approx(np.count_nonzero(array == t.index) / 1000, abs=1e-3)
    assert volumes["brain"] == pytest.approx(sum(volumes[t.key] for t in TISSUES if t.brain), abs=0.01)
    facts = json.loads((tmp_path / "out" / "sub-01_dseg.json").read_text(encoding="utf-8"))
    assert facts["AgeWeeks"] == 40.5
    verdict = facts["Plausibility"]["Verdict"]
    assert verdict in ("pass", "check")  # a drawing's hippocampus may be too small for the model
    assert f"Plausibility: {verdict}" in done.stdout + done.stderr
    assert facts["Model"]["Name"] == DEFAULT_MODEL
    assert facts["Inputs"]["t1"] == newborn_files["t1"].name  # what is sent on names no folder
    assert {"prepare", "network", "back", "write"} <= set(facts["SecondsPerStage"])
    assert "torch" in facts["Versions"]
    assert "not for diagnosis" in done.stdout
    assert sitk.ReadImage(str(tmp_path / "out" / "sub-01_dseg.png")).GetSize()[0] > 800


def test_nonsense_is_told_on_top_and_strict_gives_it_a_status(
    coarse_files: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Random weights scatter labels over the head."""
    for strict, status in (((), 0), (("--strict",), 5)):
        out = tmp_path / str(status)
        done = neonatalseg("segment", "--t2", coarse_files["t2"], "--out", out, "--model", tiny_model, *strict)
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith("Plausibility: fail")
        facts = json.loads((out / "sub-01_dseg.json").read_text(encoding="utf-8"))
        assert facts["Plausibility"]["Verdict"] == "fail"
        assert facts["Plausibility"]["Findings"][0]["Text"] == facts["Warnings"][0]
        assert (out / "sub-01_dseg.nii.gz").is_file()
        page = (out / "sub-01_report.html").read_text(encoding="utf-8")
        assert page.index("do not use this result") < page.index("<table>")


def refused(done: subprocess.CompletedProcess[str], out: Path, *words: str) -> None:
    """Status 2, one clear sentence, no traceback, nothing written."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not out.exists() or not list(out.iterdir())


def test_bad_scans_are_refused_before_anything_is_written(coarse_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(coarse_files["t2"].read_bytes()[:5000])
    zeros = sitk.ReadImage(str(coarse_files["t2"])) * 0
    sitk.WriteImage(zeros, str(tmp_path / "zeros.nii.gz"))
    out = tmp_path / "out"
    refused(neonatalseg("segment", "--t2", tmp_path / "none.nii.gz", "--out", out), out, "none.nii.gz")
    refused(neonatalseg("segment", "--t2", tmp_path / "bad.nii.gz", "--out", out), out, "bad.nii.gz", "truncated")
    refused(neonatalseg("segment", "--t1", tmp_path / "zeros.nii.gz", "--out", out), out, "zeros.nii.gz", "one value")
    refused(neonatalseg("segment", "--out", out), out, "expected a T1, a T2 or both")


def test_a_traceback_only_with_verbose(tmp_path: Path) -> None:
    done = neonatalseg("--verbose", "segment", "--t2", tmp_path / "none.nii.gz", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_model_that_is_none_is_refused(coarse_files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(neonatalseg("segment", "--t2", coarse_files["t2"], "--out", out, "--model", "nope"), out, "'nope'")
    refused(neonatalseg("segment", "--t2", coarse_files["t2"], "--out", out, "--device", "gpu"), out, "'gpu'")


def test_a_folder_that_cannot_be_written_is_told(coarse_files: dict[str, Path], tmp_path: Path) -> None:
    """A file stands where the folder should be: refused for every user, root included."""
    (tmp_path / "file").write_text("mine")
    done = neonatalseg("segment", "--t2", coarse_files["t2"], "--out", tmp_path / "file" / "out")
    refused(done, tmp_path / "file" / "out", "could not be written")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@UNIX
def test_a_full_disk_leaves_the_earlier_result(coarse_files: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    """No file may grow beyond 4 kB in this process, as on a disk that is full."""
    out = tmp_path / "out"
    arguments = ("segment", "--t2", coarse_files["t2"], "--out", out, "--model", tiny_model)
    assert neonatalseg(*arguments).returncode == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"
    done = neonatalseg(*arguments, program=full)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@UNIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(newborn_files: dict[str, Path], tmp_path: Path, number: int) -> None:
    """Interrupted while the network runs, as seen on its progress line (shown on a terminal only)."""
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "NeonatalSegLib.cli", "segment", "--t2", str(newborn_files["t2"])]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=slave,
        stdout=slave,
        # A shell starts background jobs with interrupts ignored, and children inherit that: as at a terminal instead.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    os.close(slave)
    shown = b""
    while b"network" not in shown:
        shown += os.read(master, 1024)
    process.send_signal(number)
    status = process.wait(timeout=120)
    os.close(master)
    assert status == 130
    assert not list((tmp_path / "out").iterdir())


def test_models_are_listed() -> None:
    done = neonatalseg("models")
    assert done.returncode == 0
    assert DEFAULT_MODEL in done.stdout and "0.8 mm" in done.stdout


def test_evaluate_prints_the_papers_tables(newborn_files: dict[str, Path], tmp_path: Path) -> None:
    """Of a prediction that takes the hippocampus for white matter: which side is which shows, and what is lost."""
    truth = sitk.ReadImage(str(newborn_files["labels"]))
    for side, labels in (("pred", sitk.ChangeLabel(truth, {9: 3})), ("truth", truth)):
        (tmp_path / side).mkdir()
        sitk.WriteImage(labels, str(tmp_path / side / "sub-01_dseg.nii.gz"))
    command = ["evaluate", "--pred", tmp_path / "pred", "--truth", tmp_path / "truth", "--no-surface"]
    done = neonatalseg(*command, "--out", tmp_path / "e.tsv")
    assert done.returncode == 0, done.stderr
    assert "Mean DSC (no BG)" in done.stdout and "Hippoc." in done.stdout
    assert "1.000" in done.stdout
    head, *rows = (line.split("\t") for line in (tmp_path / "e.tsv").read_text(encoding="utf-8").splitlines())
    assert len(rows) == 10
    (row,) = [row for row in rows if row[head.index("tissue")] == "hippocampus"]
    dsc, predicted, true = (float(row[head.index(c)]) for c in ("dsc", "volume_pred_ml", "volume_truth_ml"))
    assert (dsc, predicted) == (0, 0) and true > 0
    (tmp_path / "e.tsv").write_text("corrected by hand", encoding="utf-8")
    refused = neonatalseg(*command, "--out", tmp_path / "e.tsv")
    assert refused.returncode == 2 and "e.tsv" in refused.stderr and "--overwrite" in refused.stderr
    assert (tmp_path / "e.tsv").read_text(encoding="utf-8") == "corrected by hand"
    assert neonatalseg(*command, "--out", tmp_path / "e.tsv", "--overwrite").returncode == 0
    assert len((tmp_path / "e.tsv").read_text(encoding="utf-8").splitlines()) == 11


def test_train_from_a_bids_folder_to_a_model_that_segments(coarse_files: dict[str, Path], tmp_path: Path) -> None:
    for subject in ("sub-A", "sub-B"):
        anat = tmp_path / "data" / subject / "anat"
        anat.mkdir(parents=True)
        for key, suffix in (("t1", "T1w"), ("t2", "T2w"), ("labels", "desc-drawem9_dseg")):
            (anat / f"{subject}_{suffix}.nii.gz").write_bytes(coarse_files[key].read_bytes())
    config = {
        "network": {"filters": [2, 4, 4], "spacing_mm": 2.0, "patch": [16, 16, 16], "heads": 1},
        "validation": ["sub-B"], "epochs": 1, "steps_per_epoch": 2, "validate_every": 1,
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(config))
    arguments = (
        "--data",
        tmp_path / "data",
        "--config",
        tmp_path / "c.json",
        "--out",
        tmp_path / "run",
        "--workers",
        0,
    )
    done = neonatalseg("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert "validation DSC" in done.stdout
    model = tmp_path / "run" / "model"
    done = neonatalseg("segment", "--t2", coarse_files["t2"], "--out", tmp_path / "out", "--model", model)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sub-01_dseg.nii.gz").is_file()
