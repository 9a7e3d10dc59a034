"""Fixtures that several test files share: real scans where they are, small synthetic ones everywhere."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn

ROOT = Path(__file__).resolve().parent.parent
# Files whose tests train, segment, draw the panel or start processes: "make test-fast" leaves them out.
SLOW_FILES = (
    "adaptation", "age", "annotation_crash", "annotator", "bare_slicer", "batch", "bids_app", "cli", "cluster",
    "compare_nnunet", "dhcp", "engine", "engine_segment", "experiment_labels", "experiment_splits", "experiments",
    "extension", "faults", "finetuning", "head_mask", "inference", "mixed_up", "mixing", "mrml_contrast", "mrml_engine",
    "pages", "phantom", "preprocessing", "randomisation", "real_scans", "resources", "robustness", "runs", "store",
    "store_processes", "strangers_models", "study", "templates", "training", "widget", "widget_annotate",
    "widget_annotate_study", "widget_install", "widget_module", "widget_result", "widget_screens", "widget_tune",
    "widget_tune_store",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unittest files cannot mark themselves: they also run in Slicer, where there is no pytest."""
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _no_models_of_the_tester(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For processes that fixtures of several tests start: they inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEONATALSEG_MODELS", str(tmp_path_factory.mktemp("models")))
        yield


@pytest.fixture(autouse=True)
def models_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's models, of each test alone; child processes inherit it."""
    folder = tmp_path_factory.mktemp("models")
    monkeypatch.setenv("NEONATALSEG_MODELS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _widgets_go_in_their_own_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Python collects cycles in whichever thread allocates, such as the one that reads a worker's pipe.

    Widgets in a cycle would be destroyed there, which Qt forbids. So it collects after the test, in the test's thread.
    """
    if not request.path.name.startswith(("test_widget", "test_mrml")):
        yield
        return
    gc.disable()
    yield
    gc.collect(1)  # what came into being in this test
    gc.enable()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real newborn scans, which their licence holds out of the repository."""
    folder = Path(os.environ.get("NEONATALSEG_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "alberts").is_dir():
        pytest.skip(f"real scans are not at {folder}; set NEONATALSEG_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def newborn() -> Phantom:
    """A synthetic newborn of 40 weeks at 1 mm: small, for tests that need anatomy."""
    return draw_newborn(40.0, seed=11, spacing_mm=1.0)


@pytest.fixture(scope="session")
def newborn_files(newborn: Phantom, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same newborn as NIfTI files: "t1", "t2", "labels"."""
    return files_of(newborn, tmp_path_factory.mktemp("newborn"))


@pytest.fixture(scope="session")
def coarse_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files like ``newborn_files`` of voxels of 3 mm: for tests to which it does not matter what a network finds."""
    return files_of(draw_newborn(40.0, seed=11, spacing_mm=3.0), tmp_path_factory.mktemp("coarse"))


def files_of(newborn: Phantom, folder: Path) -> dict[str, Path]:
    files = {}
    for key, suffix in (("t1", "T1w"), ("t2", "T2w"), ("labels", "dseg")):
        files[key] = folder / f"sub-01_{suffix}.nii.gz"
        sitk.WriteImage(getattr(newborn, key), str(files[key]))
    return files


def image_of(array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> sitk.Image:
    """A SimpleITK image of an array (z, y, x)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    return image
