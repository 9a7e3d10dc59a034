"""A study's own model, taken by choice, and its own scans with the annotated slices kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from annotation_cases import AXIAL, CORONAL, GRID, cut, labels_for, make_study
from store_models import add, save_parent

from NeonatalSegLib.annotation.completed import AnnotatedScan
from NeonatalSegLib.annotation.own_scans import keep_annotated
from NeonatalSegLib.annotation.plan import PlannedSlice
from NeonatalSegLib.annotation.session import AnnotationSession, read_annotations
from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import volumes_ml
from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.for_study import name_for_study
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.segmentation.growth import age_of_volumes
from NeonatalSegLib.segmentation.segmenter import Segmentation
from NeonatalSegLib.segmentation.verdict import Evidence


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_parent(tmp_path_factory.mktemp("parent"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "made")


def test_a_study_names_its_model_and_nothing_else_changes(parent: Model, study: Path) -> None:
    made, current = add(parent), store.current_name()
    assert run(["models", "use", made.name, "--study", str(study)]) == 0
    assert find_model(study).name == find_model(str(study)).name == made.name
    assert store.current_name() == find_model().name == current
    assert store.status(made.name) == "candidate"
    name_for_study(study, other := add(parent))
    assert find_model(study).name == other.name


def test_the_command_that_is_named_works_from_the_folder_beside_the_study(
    parent: Model, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = add(parent)
    monkeypatch.chdir(study.parent)
    for given in (study.name, f"./{study.name}", str(study)):
        assert run(["models", "use", made.name, "--study", given]) == 0
        named = re.search(r"segment --model (\S+) \.\.\.", capsys.readouterr().out)
        assert named is not None and find_model(named[1]).name == made.name


def test_a_study_that_names_no_model_says_how(study: Path) -> None:
    with pytest.raises(NeonatalSegError, match=r"names no model.*models use NAME"):
        find_model(study)


def test_only_a_study_names_a_model(parent: Model, tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="holds no study"):
        name_for_study(tmp_path, parent)
    assert not list(tmp_path.iterdir())


def test_a_studys_model_that_is_gone_or_another_is_told(parent: Model, study: Path) -> None:
    """A study that came from elsewhere names a model that is not here, or that is another here."""
    made = add(parent)
    name_for_study(study, made)
    file = study / "model.json"
    text = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**text, "sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(NeonatalSegError, match=f"{made.name} with other weights"):
        find_model(study)
    file.write_text(json.dumps({**text, "model": str(parent.folder)}), encoding="utf-8")
    with pytest.raises(NeonatalSegError, match="not the name of an installed model"):
        find_model(study)  # a path in a stranger's study is not followed
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(NeonatalSegError, match=r"model\.json does not say which model"):
        find_model(study)
    file.write_text(json.dumps(text), encoding="utf-8")
    store.discard(made.name)
    with pytest.raises(NeonatalSegError, match=f"There is no model named '{made.name}'"):
        find_model(study)


def test_annotated_slices_stay_exactly_and_the_rest_is_the_models(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as session:
        for key, label in ((AXIAL, 6), (CORONAL, 2)):
            session.start(key)
            session.complete(key, labels_for(key, label), 1.0)
    annotated = next(scan for scan in read_annotations(study) if scan.name == "sub-01")
    theirs = np.full(GRID.shape, 3, np.uint8)
    found = keep_annotated(Segmentation(GRID.image(theirs), {"wm": 1.0}), annotated)
    labels = sitk.GetArrayFromImage(found.label_map)
    assert (labels[cut(CORONAL)] == 2).all()  # completed last: it wins where they cross
    assert set(np.unique(labels[cut(AXIAL)])) == {2, 6}
    assert (labels[annotated.mask == 0] == 3).all()
    volume = GRID.voxel_volume_mm3 / 1000
    for key, label in (("wm", 3), ("cortical_gm", 2), ("cerebellum", 6)):
        assert found.volumes_ml[key] == pytest.approx((labels == label).sum() * volume)
    assert found.warnings[-1] == "2 slices are as annotated by Anna, not by the model."


def test_what_was_annotated_is_judged_and_not_the_models_map(newborn: Phantom, tmp_path: Path) -> None:
    """The model missed the cerebellum, and a person annotated all of it."""
    truth, grid = sitk.GetArrayFromImage(newborn.labels), Grid.of(newborn.labels)
    doubts = ("T1 and T2 agree poorly.",)
    found = Segmentation(
        grid.image(np.where(truth == 6, 0, truth).astype(np.uint8)), {}, evidence=Evidence(37.0, doubts=doubts)
    )
    found.volumes_ml = volumes_ml(sitk.GetArrayFromImage(found.label_map), grid.voxel_volume_mm3)
    found.notices = ["Memory ran out."]
    found.judge()
    assert "missing" in [f.kind for f in found.plausibility.findings] and found.volumes_age_weeks is None
    slices = tuple(PlannedSlice("sub-01", "axial", int(k), 0.0, "") for k in np.unique(np.argwhere(truth == 6)[:, 0]))
    image = tmp_path / "sub-01_T2w.nii.gz"
    found = keep_annotated(found, AnnotatedScan("sub-01", None, image, 37.0, grid, truth, slices, ("Anna",)))
    assert [(f.kind, f.text) for f in found.plausibility.findings] == [("scan", *doubts)]
    assert found.volumes_age_weeks == age_of_volumes(found.volumes_ml) is not None
    told = f"{len(slices)} slices are as annotated by Anna, not by the model."
    assert found.warnings == [*doubts, "Memory ran out.", told]
