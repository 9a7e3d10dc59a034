"""Fine-tuning from a study on disk to a candidate in the store: library, compute process and command."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from NeonatalSegLib.annotation.completed import read_annotations, read_rounds
from NeonatalSegLib.annotation.creation import create_study
from NeonatalSegLib.annotation.new_study import start_study
from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice
from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.annotation.study import StudyScan
from NeonatalSegLib.brain_finder.find import brain_distance
from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.cache import build_cache
from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.engine.client import Client, EngineError
from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.finetuning.run import finetune, hold_out, learned_before, prepare_case, read_rehearsal
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model, read_model, save_model
from NeonatalSegLib.models.exported import read_export
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.grid import Grid, plane
from NeonatalSegLib.scans.preprocessing import prepare
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import UNKNOWN

TINY = NetworkSettings((4, 6, 6), 3.0, (32, 32, 32), heads=1)
QUICK = {"steps": 3, "rehearsal": 0.0, "patch": [32, 32, 32]}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    torch.manual_seed(0)
    return save_model(build_network(TINY), TINY, tmp_path / "tiny", description="random weights")


@pytest.fixture
def study(tmp_path: Path, newborn_files: dict[str, Path]) -> Path:
    """Ten axial slices planned on one scan, nothing annotated."""
    settings = BudgetSettings(10, "slices", "scan", "axial", "equidistant", "brain")
    scan = StudyScan("sub-01", newborn_files["t1"], newborn_files["t2"], 40.0)
    start_study(tmp_path / "study", [scan], settings, prefill="empty")
    return tmp_path / "study"


def annotate(study: Path, labels: sitk.Image, count: int, rater: str = "anna") -> list[PlannedSlice]:
    """Complete the first ``count`` slices with the truth."""
    truth = sitk.GetArrayFromImage(labels)
    done = []
    with AnnotationSession.open(study, rater) as project:
        for item in project.items[:count]:
            s = item.slice
            project.start(s.key)
            project.complete(s.key, truth[plane(project.plan.grids[s.scan], s.axis, s.index)], 20.0)
            done.append(s)
    return done


def test_a_study_becomes_a_candidate_with_its_lineage(study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels, 10)
    before = store.current_name()
    far = {"mixes": [1.0], "learning_rate": 0.05}  # so that the new weights differ from the old by more than rounding
    settings = FineTuningSettings.from_json({**QUICK, **far, "strategy": "shallow"})
    tuned = finetune(model, read_annotations(study), settings)
    assert len(tuned.learned) == 8 and len(tuned.held_out) == 2 and not set(tuned.learned) & set(tuned.held_out)
    made = tuned.save()
    export = read_export(made)
    assert export is not None and export.precision == "fp32"
    assert Segmenter(made, "cpu").engine.name == "openvino"
    lineage = read_model(made.folder).metadata["neonatalseg"]["lineage"]
    assert lineage["parent"] == model.name and lineage["parent_sha256"] == model.hash
    assert lineage["strategy"] == "shallow" and lineage["raters"] == ["anna"]
    assert lineage["scans"] == [{"name": "sub-01", "age_weeks": 40.0}]
    assert sorted(lineage["slices"] + lineage["held_out_slices"]) == sorted(tuned.learned + tuned.held_out)
    assert 0 < lineage["parameters_trained"] < lineage["parameters_total"]
    assert set(lineage["before"]) == set(lineage["after"]) and lineage["before_mean"] is not None
    assert store.status(made.name) == "candidate" and store.current_name() == before
    kept, fresh = made.load_network().state_dict(), tuned.adapted.network.state_dict()
    old = model.load_network().state_dict()
    assert all(torch.allclose(kept[name], fresh[name], atol=1e-3, rtol=1e-2) for name in kept)
    assert not all(torch.allclose(kept[name], old[name], atol=1e-2, rtol=0.1) for name in kept)


def test_only_completed_slices_reach_the_network(study: Path, newborn: Phantom) -> None:
    """Each known voxel of the case lies in a completed slice and carries the annotator's label."""
    done = annotate(study, newborn.labels, 4)
    (annotated,) = read_annotations(study)
    case = prepare_case(annotated, {done[0].key}, 1.0)
    for labels, slices in ((case.labels, done[1:]), (case.held_out, done[:1])):
        known = np.argwhere(labels != UNKNOWN)
        planes = len(np.unique(known[:, 0]))
        assert len(slices) <= planes <= len(slices) + 1  # 1 mm onto 1 mm, perhaps half a voxel apart
    assert not ((case.labels != UNKNOWN) & (case.held_out != UNKNOWN)).any()
    prepared = prepare(load_scan(annotated.t1, annotated.t2), 1.0, find_brain=brain_distance)
    blank = prepared.grid.image(np.zeros(prepared.grid.shape, np.uint8))
    there = sitk.GetArrayFromImage(sitk.Resample(newborn.labels, blank, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    for labels in (case.labels, case.held_out):
        known = labels != UNKNOWN
        assert (labels[known] == there[known]).mean() > 0.95


def test_held_out_slices_are_spread_and_reproducible() -> None:
    slices = [PlannedSlice("a", "axial", index, float(index), "") for index in range(20)]
    held = hold_out(slices, 0.2, seed=4)
    assert [s.key for s in held] == [s.key for s in hold_out(slices[::-1], 0.2, seed=4)]
    gaps = np.diff([s.index for s in held])
    assert len(held) == 4 and set(gaps) == {5}
    assert hold_out(slices[:3], 0.2, seed=0) == [] and hold_out(slices, 0.0, seed=0) == []


def test_slices_that_the_model_has_learned_do_not_judge_it() -> None:
    slices = [PlannedSlice("a", "axial", index, float(index), "") for index in range(20)]
    known = {s.key for s in slices[:12]}
    held = hold_out(slices, 0.2, 4, known)
    assert len(held) == 4 and not {s.key for s in held} & known
    few = {s.key for s in slices[:18]}  # two new ones: both evaluate, and two old ones besides
    held = hold_out(slices, 0.2, 4, few)
    assert len(held) == len({s.key for s in held}) == 4 and {s.key for s in slices[18:]} <= {s.key for s in held}


def test_a_second_round_is_judged_on_new_slices(study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels, 5)
    quick = FineTuningSettings(steps=2, rehearsal=0, patch=(32, 32, 32))
    first = finetune(model, read_annotations(study), quick, device="cpu")
    version = first.save()
    assert learned_before(version) == set(first.learned)
    # Another seed, which alone would hold out another slice.
    assert {s.key for s in hold_out(read_annotations(study)[0].slices, 0.2, 1)} != set(first.held_out)
    again = finetune(version, read_annotations(study), dataclasses.replace(quick, seed=1), device="cpu")
    assert set(again.held_out) == set(first.held_out)  # the one that it had not learned
    assert not any("were learned by" in warning for warning in again.adapted.warnings)


def test_slices_of_earlier_rounds_are_learned_with_those_of_the_last(
    study: Path, model: Model, newborn: Phantom, newborn_files: dict[str, Path], tmp_path: Path
) -> None:
    first = annotate(study, newborn.labels, 4)
    settings = BudgetSettings(4, "slices", axis="coronal")
    scan = StudyScan("sub-01", newborn_files["t1"], newborn_files["t2"], 40.0)
    start_study(tmp_path / "second", [scan], settings, prefill="empty", earlier=[study])
    truth = sitk.GetImageFromArray(np.full_like(sitk.GetArrayFromImage(newborn.labels), 3))
    second = annotate(tmp_path / "second", truth, 2, "ben")
    (both,) = read_rounds(tmp_path / "second")
    assert [s.key for s in both.slices] == [s.key for s in (*first, *second)] and both.raters == ("anna", "ben")
    for s in second:
        assert (both.labels[plane(both.grid, s.axis, s.index)] == 3).all()  # also where slices of both rounds cross
    (before,), (last,) = read_annotations(study), read_annotations(tmp_path / "second")
    assert np.array_equal(both.labels[last.mask == 0], before.labels[last.mask == 0])
    config = tmp_path / "quick.json"
    config.write_text('{"patch": [32, 32, 32], "steps": 1, "rehearsal": 0}', encoding="utf-8")
    command_line = ("finetune", tmp_path / "second", "--model", model.folder, "--config", config)
    for more in ((), ("--earlier", study)):  # it is named by the study; to give it again changes nothing
        status, out, errors = command(*command_line, *more)
        assert status == 0 and "on 5 slices" in out and "1 slices held out" in out, errors
    assert command("complete", tmp_path / "second", "--model", model.folder, "--out", tmp_path / "out")[0] == 0
    filled = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "sub-01_dseg.nii.gz")))
    assert np.array_equal(filled[both.mask > 0], both.labels[both.mask > 0])


def test_an_earlier_round_on_another_image_is_refused(study: Path, newborn: Phantom, tmp_path: Path) -> None:
    annotate(study, newborn.labels, 1)
    other = sitk.GetImageFromArray(np.ones((30, 30, 30), np.float32))
    sitk.WriteImage(other, str(tmp_path / "other.nii.gz"))
    scan = StudyScan("sub-01", None, tmp_path / "other.nii.gz", 40.0)
    grid = Grid.of(sitk.ReadImage(str(tmp_path / "other.nii.gz")))
    only = PlannedSlice("sub-01", "axial", 15, 15.0, "")
    create_study(tmp_path / "other", Plan((only,), {"sub-01": grid}, BudgetSettings(1, "slices")), [scan], {})
    annotate(tmp_path / "other", sitk.GetImageFromArray(np.ones((30, 30, 30), np.uint8)), 1)
    with pytest.raises(NeonatalSegError, match="sub-01 lies on another grid in the study"):
        read_rounds(study, [tmp_path / "other"])


def test_an_earlier_round_on_another_image_of_the_same_size_is_refused(
    study: Path, newborn: Phantom, newborn_files: dict[str, Path], tmp_path: Path
) -> None:
    """Templates share one grid: of the wrong one, slices would be learned at places where they do not belong."""
    annotate(study, newborn.labels, 1)
    inverted = sitk.Subtract(0.0, sitk.ReadImage(str(newborn_files["t2"]), sitk.sitkFloat32)) + 5000.0
    sitk.WriteImage(inverted, str(tmp_path / "other.nii.gz"))
    scan = StudyScan("sub-01", None, tmp_path / "other.nii.gz", 40.0)
    start_study(tmp_path / "other", [scan], BudgetSettings(2, "slices"), prefill="empty")
    annotate(tmp_path / "other", newborn.labels, 1)
    with pytest.raises(NeonatalSegError, match="sub-01 is another image in the study"):
        read_rounds(study, [tmp_path / "other"])


def test_what_is_rehearsed_must_fit_the_model(tmp_path: Path) -> None:
    build_cache([], tmp_path, 3.0, phantoms=1)
    assert [s.name for s in read_rehearsal(tmp_path, 3.0)] == ["phantom00"]
    with pytest.raises(NeonatalSegError, match=r"arrays at 3 mm; the model works at 0\.8 mm"):
        read_rehearsal(tmp_path, 0.8)


# Bad input


def test_a_study_without_a_completed_slice_is_refused(study: Path, model: Model) -> None:
    with pytest.raises(NeonatalSegError, match="No slice is completed"):
        finetune(model, read_annotations(study), FineTuningSettings())


def test_slices_of_one_class_are_refused(study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels * 0, 5)
    with pytest.raises(NeonatalSegError, match="one class only"):
        finetune(model, read_annotations(study), FineTuningSettings.from_json(QUICK))


def test_a_bundle_without_weights_is_refused(study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels, 5)
    (model.folder / "models" / "model.pt").unlink()
    with pytest.raises(NeonatalSegError, match="has no weights"):
        finetune(model, read_annotations(study), FineTuningSettings.from_json(QUICK))


def test_a_model_with_another_label_table_is_refused(study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels, 5)
    file = model.folder / "configs" / "metadata.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"hippocampus"', '"amygdala"'), encoding="utf-8")
    status, _, errors = command("finetune", study, "--model", model.folder)
    assert status == 2 and "another label table" in errors


# The compute process


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as running:
        yield running


def test_the_compute_process_counts_the_strategies(client: Client, model: Model) -> None:
    told = client.request("strategies", model=str(model.folder)).result(120)["strategies"]
    counts = {entry["name"]: entry["trained"] for entry in told}
    assert list(counts) == ["none", "shallow", "medium", "deep", "full", "scratch"]
    assert counts["none"] == 0 and counts["full"] == counts["scratch"] == told[0]["total"]
    assert 0 < counts["shallow"] <= counts["medium"] <= counts["full"]


def test_the_compute_process_fine_tunes(client: Client, study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels, 6)
    request = client.request("finetune", study=str(study), model=str(model.folder), settings=QUICK, device="cpu")
    result = request.result(120)
    assert store.status(result["model"]) == "candidate"
    assert [entry[0] for entry in result["history"]] == [1, 2, 3]
    assert result["slices"] + result["held_out_slices"] == 6 and not result["stopped_early"]
    steps = [event for event in request.poll() if event.get("step")]
    assert steps and all(event["steps"] == 3 and event["loss"] is not None for event in steps)


def test_stop_gives_a_candidate_and_cancel_gives_none(study: Path, model: Model, newborn: Phantom) -> None:
    annotate(study, newborn.labels, 6)
    endless = {**QUICK, "steps": 100000, "judge_every": 1.0}
    stopper: list[str] = ["stop"]

    def once(request, event) -> None:  # type: ignore[no-untyped-def]
        if event.get("step") and stopper:
            getattr(request, stopper.pop())()

    with Client(on_event=once) as client:
        result = client.request("finetune", study=str(study), model=str(model.folder), settings=endless).result(120)
        assert result["stopped_early"] and store.status(result["model"]) == "candidate"
        names = {m.name for m in store.user_folder().iterdir()}
        stopper.append("cancel")
        with pytest.raises(Cancelled):
            client.request("finetune", study=str(study), model=str(model.folder), settings=endless).result(120)
        assert {m.name for m in store.user_folder().iterdir()} == names


def test_the_compute_process_tells_bad_input_in_words(client: Client, study: Path, model: Model) -> None:
    with pytest.raises(EngineError, match="No slice is completed"):
        client.request("finetune", study=str(study), model=str(model.folder), settings=QUICK).result(120)
    with pytest.raises(EngineError, match="Unknown fine-tuning setting 'speed'"):
        client.request("finetune", study=str(study), model=str(model.folder), settings={"speed": 1}).result(120)


# The command


def command(*arguments: object) -> tuple[int, str, str]:
    """Status, output and errors of a command line, in this process: another one would load torch again each time."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = run([str(argument) for argument in arguments])
    return status, out.getvalue(), errors.getvalue()


def test_the_command_makes_a_candidate_that_is_accepted_on_request(
    study: Path, model: Model, newborn: Phantom, tmp_path: Path
) -> None:
    annotate(study, newborn.labels, 6)
    config = tmp_path / "quick.json"
    config.write_text('{"patch": [32, 32, 32], "strategy": "medium"}', encoding="utf-8")
    given = ("finetune", study, "--model", model.folder, "--steps", 2, "--no-rehearsal", "--config", config)
    status, out, errors = command(*given)
    assert status == 0, errors
    assert "medium:" in out and "candidate" in out and store.current_name() == DEFAULT_MODEL
    status, out, errors = command(*given, "--accept")
    assert status == 0, errors
    assert store.current_name() != DEFAULT_MODEL and store.status(store.current_name()) == "accepted"


def test_a_model_for_scans_like_these_is_the_studys_and_completes_its_scans(
    study: Path, model: Model, newborn: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = annotate(study, newborn.labels, 6)
    config = tmp_path / "quick.json"
    config.write_text('{"patch": [32, 32, 32], "steps": 2, "rehearsal": 0}', encoding="utf-8")
    monkeypatch.chdir(study.parent)
    status, out, errors = command(
        "finetune", study.name, "--model", model.folder, "--config", config, "--keep", "scanner", "--accept"
    )
    assert status == 0, errors
    named = find_model(study)
    option = re.search(r"segment --model (\S+) \.\.\.", out)
    assert option is not None and find_model(option[1]).name == named.name
    assert f"{named.name} is the model of this study" in out and store.current_name() == DEFAULT_MODEL
    assert named.facts.lineage is not None and named.facts.lineage.settings["keep"] == "scanner"
    status, out, errors = command("complete", study, "--model", study, "--out", tmp_path / "out")
    assert status == 0, errors
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "sub-01_dseg.nii.gz")))
    truth = sitk.GetArrayFromImage(newborn.labels)
    for s in done:
        assert (labels[s.index] == truth[s.index]).all()
    facts = json.loads((tmp_path / "out" / "sub-01_dseg.json").read_text(encoding="utf-8"))
    assert f"Plausibility: {facts['Plausibility']['Verdict']}:" in out + errors
    assert all(f"Warning: {text}" in errors for text in facts["Warnings"])
    assert facts["Model"]["Name"] == named.name
    assert any("6 slices are as annotated by anna" in text for text in facts["Warnings"])


def test_complete_takes_the_agreement_that_it_asks_for(
    study: Path, model: Model, newborn: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(study, newborn.labels, 1)
    monkeypatch.setenv("NEONATALSEG_MODELS", str(tmp_path / "another user"))  # who has agreed to no image yet
    given = ("complete", study, "--model", model.folder, "--out", tmp_path / "out")
    status, _, errors = command(*given)
    assert status != 0 and "give --outside to the command" in errors
    status, _, errors = command(*given, "--outside")
    assert status == 0 and (tmp_path / "out" / "sub-01_dseg.nii.gz").is_file(), errors


def test_the_command_refuses_in_words(
    study: Path, model: Model, newborn: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, errors = command("finetune", study, "--strategy", "best")
    assert status == 2 and "choose from none, shallow" in errors and "Traceback" not in errors
    config = tmp_path / "list.json"
    config.write_text("[1]", encoding="utf-8")
    status, _, errors = command("finetune", study, "--config", config)
    assert status == 2 and "list.json" in errors and "not a JSON object" in errors and "Traceback" not in errors
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    annotate(study, newborn.labels, 2)
    status, _, errors = command("finetune", study, "--model", model.folder, "--steps", 0)
    assert status == 2 and "at least one step" in errors
    monkeypatch.setenv("NEONATALSEG_MODELS", str(blocked / "models"))
    # What was agreed to lies in that folder as well: agree anew, for this run.
    status, _, errors = command("finetune", study, "--model", model.folder, "--outside")
    assert status == 2 and "could not be written" in errors and "NEONATALSEG_MODELS" in errors
    status, _, errors = command("finetune", tmp_path / "nowhere")
    assert status == 2 and "nowhere" in errors and "Traceback" not in errors
