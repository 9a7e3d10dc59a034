"""``neonatalseg bids`` as a BIDS-App: labels, levels, names, and the validator on what it writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_models import exported_model

from NeonatalSegLib import __version__
from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.segmentation.segmenter import METHOD
from NeonatalSegLib.tissues import TISSUES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return exported_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def t2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_newborn(tmp_path_factory.mktemp("scan"), seed=7, spacing_mm=3.0)["t2"].read_bytes()


@pytest.fixture
def dataset(t2: bytes, tmp_path: Path) -> Path:
    """Two newborns, the first with two sessions, and one of whom there is no image."""
    root = tmp_path / "data"
    for name in ("sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a"):
        anat = root.joinpath(*name.split("_"), "anat")
        anat.mkdir(parents=True)
        (anat / f"{name}_T2w.nii.gz").write_bytes(t2)
    (root / "participants.tsv").write_text("participant_id\tscan_age\nsub-01\t40.1\nsub-02\t41\nsub-03\t41\n")
    described = {"Name": "Drawn", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.5072/drawn"}
    (root / "dataset_description.json").write_text(json.dumps(described))
    return root


def results(out: Path) -> list[str]:
    return sorted(path.name.split("_space")[0] for path in out.rglob("*_dseg.nii.gz"))


def errors_of_the_validator(folder: Path) -> list[str]:
    """What the BIDS validator calls an error, as it stands in its answer."""
    command = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the BIDS validator is not installed (pip install bids-validator-deno)")
    done = subprocess.run(
        [command, str(folder), "--format", "json"], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{one['code']} {one.get('location')}" for one in issues if one["severity"] == "error"]


def test_two_workers_make_a_data_set_that_the_validator_takes(
    model: Model, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dataset / "derivatives" / "neonatalseg"
    common = ["--model", str(model.folder), "--device", "cpu", "--workers", "2", "--uncertainty", "--probabilities"]
    labels = ["--participant-label", "01", "sub-02", "--session_label", "a"]
    assert run(["bids", str(dataset), str(out), "participant", *labels, *common]) == 0
    assert results(out) == ["sub-01_ses-a", "sub-02_ses-a"]
    facts = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert facts["GeneratedBy"] == [{"Name": "NeonatalSeg", "Version": __version__}]
    assert facts["SourceDatasets"] == [{"URL": "../..", "DOI": "doi:10.5072/drawn"}]
    side_car = json.loads(next(out.rglob("sub-02*_dseg.json")).read_text(encoding="utf-8"))
    (source,) = side_car["Sources"]
    assert (out / facts["DatasetLinks"]["raw"] / source.removeprefix("bids:raw:")).is_file()
    assert side_car["SpatialReference"] == source
    table = [line.split("\t") for line in (out / "dseg.tsv").read_text(encoding="utf-8").splitlines()]
    assert table[0][:2] == ["index", "name"] and [(int(row[0]), row[1]) for row in table[1:]] == [
        (tissue.index, tissue.name) for tissue in TISSUES
    ]
    assert errors_of_the_validator(out) == []
    (out / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_desc-x_tissues.nii.gz").touch()
    assert any("tissues" in error for error in errors_of_the_validator(out))  # it does look
    assert "Interrupted" not in capsys.readouterr().err


def test_the_group_level_makes_the_tables_of_all_that_is_there(
    model: Model, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, common = tmp_path / "out", ["--model", str(model.folder), "--device", "cpu"]
    assert run(["bids", str(dataset), str(out), "group"]) == 2
    assert "run the participant level first" in capsys.readouterr().err and not out.exists()
    assert run(["bids", str(dataset), str(out), "participant", "--participant-label", "02", *common]) == 0
    table = (out / "volumes.tsv").read_text(encoding="utf-8")
    for file in [path for path in out.iterdir() if path.is_file()]:
        file.unlink()
    capsys.readouterr()
    assert run(["bids", str(dataset), str(out), "group"]) == 0
    assert (out / "volumes.tsv").read_text(encoding="utf-8") == table
    told, page = capsys.readouterr().err, (out / "report.html").read_text(encoding="utf-8")
    for name, why in (("sub-01_ses-a", "no result yet"), ("sub-01_ses-b", "no result yet"), ("sub-03", "no image")):
        assert f"{name}: " in told and why in told and name in page
    facts = (out / "dataset_description.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in facts and json.loads(facts)["SourceDatasets"] == [{"DOI": "doi:10.5072/drawn"}]
    assert run(["bids", str(dataset), str(out), "group", "--participant-label", "02"]) == 2
    for image in dataset.rglob("*_T2w.nii.gz"):  # as where the images went to the archive: the tables can be made still
        image.unlink()
    assert run(["bids", str(dataset), str(out), "group"]) == 0
    assert "Which scans have no result yet is not known" in capsys.readouterr().err
    assert (out / "volumes.tsv").read_text(encoding="utf-8") == table


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["--participant-label", "01", "09"], "has no participant sub-09"),
        (["--participant-label", "03"], "sub-03: in participants.tsv, but no image of it"),
        (["--session-label", "c"], "has no session ses-c.*It has ses-a, ses-b"),
        (["--participant-label", "02", "--session-label", "b"], "has no session ses-b"),
        (["--participant-label"], "requires an argument"),
    ],
)
def test_a_label_that_is_not_there_is_told_before_anything_is_done(
    dataset: Path, tmp_path: Path, labels: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bids", str(dataset), str(tmp_path / "out"), "participant", *labels]) == 2
    assert re.search(words, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


def test_no_participants_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_description.json").write_text('{"Name": "Empty", "BIDSVersion": "1.10.0"}')
    assert run(["bids", str(tmp_path / "data"), str(tmp_path / "out"), "participant"]) == 2
    assert "No sub-*/anat/*_T1w or *_T2w image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_of_another_version_are_never_mixed_in_silence(
    model: Model, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["bids", str(dataset), str(out), "participant", "--model", str(model.folder), "--device", "cpu"]
    assert run([*command, "--session-label", "a"]) == 0
    side_cars = {path.name.split("_")[0]: path for path in out.rglob("*_dseg.json")}

    def of_another(who: str, method: int, version: str) -> None:
        facts = json.loads(side_cars[who].read_text(encoding="utf-8"))
        facts["Method"], facts["Versions"]["neonatalseg"] = method, version
        side_cars[who].write_text(json.dumps(facts), encoding="utf-8")

    labels = side_cars["sub-02"].with_name("sub-02_ses-a_space-T2w_desc-neonatalseg_dseg.nii.gz")

    def of_sub_02() -> tuple[bytes, int, bytes]:
        """What a new result would change: the labels themselves would be the same ones."""
        return side_cars["sub-02"].read_bytes(), labels.stat().st_mtime_ns, labels.read_bytes()

    of_another("sub-02", METHOD + 1, "99.0.0")
    before = of_sub_02()
    capsys.readouterr()
    assert run([*command, "--participant-label", "02"]) == 2
    assert "newer version of NeonatalSeg (sub-02_ses-a)" in capsys.readouterr().err
    assert of_sub_02() == before
    # Of an older one, and not asked for now: kept, and told.
    of_another("sub-02", METHOD - 1, "0.0.1")
    before = of_sub_02()
    assert run([*command, "--participant-label", "01", "--session-label", "a"]) == 0
    assert of_sub_02() == before
    assert "2 models or methods" in capsys.readouterr().out
    facts = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert [one["Version"] for one in facts["GeneratedBy"]] == [__version__, "0.0.1"]


def test_the_other_files_of_a_data_set_stay(model: Model, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".bidsignore").write_text("mine/\n")
    command = ["bids", str(dataset), str(out), "participant", "--model", str(model.folder), "--session-label", "b"]
    assert run([*command, "--device", "cpu"]) == 0
    assert (out / ".bidsignore").read_text(encoding="utf-8").splitlines()[0] == "mine/"
    (out / "dseg.tsv").write_text("index\tname\n1\tLesion\n")
    assert run([*command, "--device", "cpu"]) == 2
    assert "Lesion" in (out / "dseg.tsv").read_text(encoding="utf-8")


def test_the_container_is_built_from_the_pins() -> None:
    """It cannot be built here: what it copies is there, its Python is that of the pins, its extras are ours."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    python = re.search(r"^FROM python:(\d+\.\d+)", text, re.MULTILINE)
    assert python and f'python_version == "{python[1]}"' in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(
        r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE
    )
    named = re.search(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert named and set(named[1].split(",")) <= set(extras)
    assert "-c constraints.txt" in text and re.search(r'^ENTRYPOINT \["neonatalseg", "bids"\]$', text, re.MULTILINE)
