"""The robustness matrix: what is done to a scan, what is evaluated, resumed and refused, and what the page says."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import ROOT
from typer.testing import CliRunner

from NeonatalSegLib.cli.app import app
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.robustness.alterations import NOISE, Alteration, altered, one_at_a_time, scaled
from NeonatalSegLib.experiments.robustness.matrix import RobustnessRun, Source, evaluate, make_jobs, run_robustness
from NeonatalSegLib.experiments.robustness.report import figures, matrix_mean, split
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.grid import Grid, voxel_axis
from NeonatalSegLib.scans.preprocessing import foreground
from NeonatalSegLib.scans.scan import Scan, make_scan
from NeonatalSegLib.tissues import PHYSIOLOGICAL

SIZE = (20, 23, 18)  # x, y, z: all different, so that an exchanged axis is seen
TINY = NetworkSettings((2, 4, 4), 2.5, (16, 16, 16), heads=1)
LAS = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def ball(seed: int = 1) -> tuple[Scan, sitk.Image]:
    """An extracted ball with tissues in shells and a bright spot at its right front, stored LAS at 2 mm; its truth."""
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SIZE[::-1]), indexing="ij")
    radius = np.sqrt(x**2 + (0.9 * y) ** 2 + z**2)
    labels = np.select([radius < 2, radius < 4, radius < 6, radius < 7], [7, 3, 2, 1], 0).astype(np.uint8)
    random = np.random.default_rng(seed)
    grid = Grid(SIZE, (2.0, 2.0, 2.0), (-31.0, 17.0, 5.0), LAS)
    images = []
    for tissue in ((0, 200, 400, 600), (0, 800, 300, 400)):
        signal = np.select([labels == 0, labels == 1, labels == 2], tissue[:3], tissue[3])
        signal = signal + (labels > 0) * (random.normal(0, 5, labels.shape) + 300 * ((x < -2) & (y > 2)))
        images.append(grid.image(signal.astype(np.float32)))
    return make_scan(*images, name=f"sub-{seed}", age_weeks=40.0), grid.image(labels)


def array(image: sitk.Image | None) -> np.ndarray:
    assert image is not None
    return sitk.GetArrayFromImage(image)


def at(image: sitk.Image, point: np.ndarray) -> float:
    """The image at a physical point, whatever its grid."""
    return float(image.EvaluateAtPhysicalPoint(point.tolist(), sitk.sitkLinear))


def centres(image: sitk.Image) -> np.ndarray:
    """(n, 3) LPS positions of voxels within the ball, from its own grid."""
    index = np.argwhere(array(image) > 0)[::7, ::-1]
    matrix = Grid.of(image).matrix()
    return index @ matrix[:3, :3].T + matrix[:3, 3]


# --- what is done to a scan -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan() -> Scan:
    return ball()[0]


def test_one_at_a_time_changes_one_factor_in_every_cell() -> None:
    cells = one_at_a_time()
    changed = [
        sum(a != b for a, b in zip(dataclasses.astuple(c), dataclasses.astuple(Alteration()), strict=True))
        for c in cells
    ]
    assert sorted(changed) == [0] + [1] * 12
    assert len({c.key for c in cells}) == 13
    assert len(one_at_a_time(whole_head=False)) == 12


@pytest.mark.parametrize("cell", [c for c in one_at_a_time() if c.corruption != "none" or c.head == "skull"])
def test_what_is_drawn_is_the_same_for_a_seed_and_differs_between_seeds_subjects_and_contrasts(
    scan: Scan, cell: Alteration
) -> None:
    one, again, other = (altered(scan, cell, seed) for seed in (3, 3, 4))
    assert np.array_equal(array(one.t2), array(again.t2))
    assert not np.array_equal(array(one.t2), array(other.t2))
    renamed = altered(dataclasses.replace(scan, name="sub-9"), cell, 3)
    assert not np.array_equal(array(one.t2), array(renamed.t2))
    alike = altered(dataclasses.replace(scan, t1=scan.t2), cell, 3)  # one image as both contrasts
    assert not np.array_equal(array(alike.t1), array(alike.t2))


def test_native_is_the_scan_itself(scan: Scan) -> None:
    same = altered(scan, Alteration(), 0)
    assert np.array_equal(array(same.t1), array(scan.t1)) and Grid.of(same.reference) == Grid.of(scan.reference)


@pytest.mark.parametrize("direction", ["LAS", "PIR"])
def test_thick_slices_are_3_mm_upwards_and_average_what_they_cover(direction: str) -> None:
    z = np.arange(60, dtype=np.float32)[:, None, None]  # 0.75 mm: four voxels a slice, one of them bright
    fine = sitk.GetImageFromArray(np.broadcast_to(np.where(z % 4 == 0, 400, 0), (60, 30, 32)).astype(np.float32))
    fine.SetSpacing((1.0, 1.0, 0.75))
    stored = sitk.DICOMOrient(fine, direction)
    thick = altered(make_scan(None, stored), Alteration(spacing="3mm-slices"), 0).reference
    along = voxel_axis(Grid.of(thick), "axial")
    assert np.allclose(np.delete(thick.GetSpacing(), along), 1.0)
    assert thick.GetSpacing()[along] == pytest.approx(3.0)
    profile = np.moveaxis(array(thick), 2 - along, 0)[1:-1].reshape(thick.GetSize()[along] - 2, -1)
    assert np.allclose(profile.std(1), 0, atol=1e-3)
    assert np.allclose(profile, 100, atol=1)  # whatever the phase; a voxel picked out of the four is 400 or 0


@pytest.mark.parametrize("spacing", ["0.5mm", "1mm", "3mm-slices"])
def test_another_spacing_leaves_the_newborn_where_it_is(scan: Scan, spacing: str) -> None:
    new = altered(scan, Alteration(spacing=spacing), 0)
    assert Grid.of(new.reference) == Grid.of(new.t1)  # type: ignore[arg-type]

    def middle(image: sitk.Image) -> np.ndarray:
        grid, weight = Grid.of(image), array(image).clip(0)
        index = [float((np.moveaxis(weight, 2 - a, 0).sum((1, 2)) * np.arange(grid.size[a])).sum()) for a in range(3)]
        return (grid.matrix() @ np.array([*np.array(index) / weight.sum(), 1.0]))[:3]

    assert np.allclose(middle(new.reference), middle(scan.reference), atol=0.1)
    mass = [array(i).sum() * Grid.of(i).voxel_volume_mm3 for i in (new.reference, scan.reference)]
    assert mass[0] == pytest.approx(mass[1], rel=0.02)


def test_ras_holds_the_same_patient(scan: Scan) -> None:
    ras = altered(scan, Alteration(orientation="RAS"), 0).reference
    assert np.allclose(ras.GetDirection(), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert not np.array_equal(array(ras), array(scan.reference))
    for point in centres(scan.reference):
        assert at(ras, point) == pytest.approx(at(scan.reference, point), abs=1e-2)


def test_the_tilted_field_of_view_covers_the_head_and_the_head_stays(scan: Scan) -> None:
    smooth = sitk.SmoothingRecursiveGaussian(scan.reference, 4.0)  # of which resampling loses little
    smooth = Grid.of(smooth).image(np.where(array(smooth) > 20, array(smooth), 0))
    tilted = altered(make_scan(None, smooth), Alteration(orientation="oblique"), 0).reference
    turn = np.asarray(tilted.GetDirection()).reshape(3, 3) @ np.asarray(LAS).reshape(3, 3).T
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(20)
    assert np.count_nonzero(np.abs(turn) > 0.02) == 9  # about no axis of the patient
    # A point outside the grid would raise; a head that turned with the grid would differ by far more.
    differences = [abs(at(tilted, p) - at(smooth, p)) for p in centres(smooth)]
    assert np.mean(differences) < 0.02 * array(smooth).max()
    faces = [np.take(array(tilted), end, axis) for axis in range(3) for end in (0, -1)]
    assert max(float(face.max()) for face in faces) == 0  # nothing of the head is cut


def test_scale_shrinks_volumes_of_images_and_truth_in_the_header_alone() -> None:
    scan, labels = ball()
    small, truth = altered(scan, Alteration(scale="0.7"), 0).reference, scaled(labels, 0.7)
    assert np.array_equal(array(small), array(scan.reference)) and np.array_equal(array(truth), array(labels))
    assert Grid.of(small) == Grid.of(truth)
    assert Grid.of(truth).voxel_volume_mm3 == pytest.approx(0.7**3 * Grid.of(labels).voxel_volume_mm3)


def test_a_skull_is_added_around_the_brain_and_leaves_it_as_it_was(scan: Scan) -> None:
    new = altered(scan, Alteration(head="skull"), 0)
    for old, image in ((scan.t1, new.t1), (scan.t2, new.t2)):
        assert old is not None and image is not None
        pad = [round((o - n) / -2.0) for n, o in zip(image.GetOrigin(), old.GetOrigin(), strict=True)]
        assert np.all(np.abs(pad) * 2.0 >= 14)  # mm of room on every side
        for point in centres(old):
            assert at(image, point) == pytest.approx(at(old, point), rel=1e-5, abs=1e-3)
        volumes = [array(foreground(i)).sum() for i in (image, old)]
        assert volumes[0] > 1.2 * volumes[1]
    shells = [array(i) > 0 for i in (new.t1, new.t2)]
    assert np.mean(shells[0] != shells[1]) < 0.02  # one skull in both contrasts


def test_noise_is_rician_of_the_stated_strength_in_air_as_well(scan: Scan) -> None:
    old, new = array(scan.t2), array(altered(scan, Alteration(corruption="noise"), 0).t2)
    sd = NOISE * np.percentile(old[old > 0], 99)
    air = new[old == 0]
    assert air.mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=0.05)  # Rayleigh
    bright = old > 300
    assert np.std(new[bright] - old[bright]) == pytest.approx(sd, rel=0.1)


def test_the_bias_field_is_smooth_and_spans_its_range(scan: Scan) -> None:
    old, new = array(scan.t2), array(altered(scan, Alteration(corruption="bias"), 0).t2)
    inside = old > 0
    field = np.where(inside, new / np.where(inside, old, 1), np.nan)
    assert np.nanmin(field) == pytest.approx(1 / 1.4, rel=0.01) and np.nanmax(field) == pytest.approx(1.4, rel=0.01)
    assert np.nanmax(np.abs(np.diff(np.log(field), axis=2))) < 0.5
    assert not new[~inside].any()


def test_motion_leaves_the_head_in_its_place_with_ghosts_in_the_air(scan: Scan) -> None:
    old, new = array(scan.t2), array(altered(scan, Alteration(corruption="motion"), 0).t2)
    assert new[old == 0].mean() > 1.0
    # About 0.94 with this seed; a head that is merely turned, as if it had moved before the scan, has 0.78.
    assert 0.9 < np.corrcoef(old.ravel(), new.ravel())[0, 1] < 0.9999


# --- the design -------------------------------------------------------------------------------------------------------


def write_scan(folder: Path, stem: str, seed: int, labels: bool = True) -> Source:
    scan, truth = ball(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{stem}_{ending}.nii.gz" for ending in ("T1w", "T2w", "dseg")]
    for file, image in zip(files, (scan.t1, scan.t2, truth if labels else None), strict=True):
        if image is not None:
            sitk.WriteImage(image, str(file))
    return Source("kept-out", stem, *files, 40.0)  # type: ignore[arg-type]


def save(folder: Path, seed: int) -> Model:
    torch.manual_seed(seed)
    facts = {"test_subjects": ["sub-1"], "training_subjects": ["sub-2"], "validation_subjects": ["sub-3"]}
    return save_model(build_network(TINY), TINY, folder, description="tiny", facts=facts)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bids`` with newborns 1-3 and 4 (no labels), ``templates`` with 30 weeks, models ``first`` and ``second``."""
    root = tmp_path_factory.mktemp("robustness")
    for seed in (1, 2, 3, 4):
        write_scan(root / "bids" / f"sub-{seed}" / "anat", f"sub-{seed}", seed, labels=seed != 4)
    write_scan(root / "templates" / "age-30", "age-30", 7)
    save(root / "first", 1)
    save(root / "second", 2)
    return root


def test_designs_have_the_cells_that_they_promise(place: Path) -> None:
    two = [Source("kept-out", f"sub-{n}", *[place / "first" / "models" / "model.pt"] * 3, 40.0) for n in (1, 2)]  # type: ignore[arg-type]
    assert len(make_jobs(two, "one-at-a-time", 0, 0)) == 2 * 12 * 3
    assert len(make_jobs(two, "full", 0, 0)) == 2 * 4 * 2 * 3 * 4 * 3 * 3
    few, many, other = (make_jobs(two, "one-at-a-time", n, seed) for n, seed in ((5, 0), (20, 0), (20, 1)))
    assert (len(few), len(many)) == (72 + 5, 72 + 20)
    assert few.items() <= many.items()  # a larger sample goes on where the smaller one was
    assert set(many) != set(other)
    assert {job["subject"] for job in many.values() if job["part"] == "sample"} == {"sub-1", "sub-2"}


def test_a_template_is_judged_on_classes_that_its_labels_tell_apart(place: Path, tmp_path: Path) -> None:
    labels = sitk.ReadImage(str(place / "templates" / "age-30" / "age-30_dseg.nii.gz"))
    kept = write_scan(tmp_path, "age-30", 7)
    sitk.WriteImage(
        Grid.of(labels).image(np.where(array(labels) == 3, 8, array(labels)).astype(np.uint8)), str(kept.labels)
    )
    job = {
        "part": "templates", "subject": "age-30", "age_weeks": 30.0, "contrast": "T2", "seed": 0, "files": {},
        **dataclasses.asdict(Alteration()),
    }  # fmt: skip
    source = dataclasses.replace(kept, kind="templates")
    result = evaluate(job, tmp_path, sources={"age-30": source}, model=place / "first")
    assert result["dsc"][8] is None and result["dsc"][6] is not None  # brainstem counts as cerebellum


# --- the command ------------------------------------------------------------------------------------------------------


def run(place: Path, out: Path, model: str = "first", **changes: object) -> list[Path]:
    arguments: dict[str, object] = {
        "data": None, "subjects": [], "templates": place / "templates", "ages_weeks": [30], "before": None,
        "design": "one-at-a-time", "sample": 0, "seed": 0, **changes,
    }  # fmt: skip
    wanted = RobustnessRun(out=out, model=str(place / model), **arguments)  # type: ignore[arg-type]
    return run_robustness(wanted, report=lambda _: None)


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The whole matrix of the first model, through the command line."""
    out = place / "out"
    done = CliRunner().invoke(
        app,
        ["experiment", "robustness", "--data", str(place / "bids"), "--templates", str(place / "templates"),
         "--ages", "30", "--model", str(place / "first"), "--sample", "2", "--out", str(out)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "robustness.tsv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_the_default_subjects_are_the_models_own_test_subjects(finished: Path) -> None:
    assert {row["subject"] for row in rows(finished)} == {"sub-1", "age-30"}
    assert len(rows(finished)) == 36 + 3 + 2


def test_the_page_states_the_mean_of_the_matrix_and_what_was_done(finished: Path) -> None:
    single = [float(row["mean_dsc"]) for row in rows(finished) if row["part"] == "single"]
    page = (finished / "robustness.md").read_text(encoding="utf-8")
    assert f"Mean of the matrix: **{np.mean(single):.3f}**" in page
    assert "--templates TEMPLATES --ages 30 --model first --design one-at-a-time --sample 2 --seed 0" in page
    for said in (
        "synthetic",
        "Held-out newborns: 1 (sub-1)",
        "one seed",
        "never resampled",
        "Several alterations at once",
    ):
        assert said in page
    assert str(finished) not in page
    assert (finished / "robustness.png").read_bytes().startswith(b"\x89PNG")


def test_a_native_cell_is_what_segment_gives(place: Path, finished: Path) -> None:
    from NeonatalSegLib.evaluation.metrics import dice_per_class
    from NeonatalSegLib.scans.scan import load_scan
    from NeonatalSegLib.segmentation.segmenter import Segmenter

    anat = place / "bids" / "sub-1" / "anat"
    found = Segmenter(place / "first").segment(load_scan(None, anat / "sub-1_T2w.nii.gz")).label_map
    dsc = dice_per_class(array(found), array(sitk.ReadImage(str(anat / "sub-1_dseg.nii.gz"))))
    native = next(r for r in rows(finished) if (r["part"], r["contrast"]) == ("single", "T2"))
    written = [float(native[t.key]) if native[t.key] != "n/a" else np.nan for t in PHYSIOLOGICAL]
    assert max(written) > 0
    assert written == pytest.approx([dsc[t.index] for t in PHYSIOLOGICAL], abs=1e-3, nan_ok=True)


def test_what_is_done_is_not_done_again(place: Path, finished: Path) -> None:
    marked = next((finished / "runs").glob("sub-1_noise_T2/result.json"))
    kept = json.loads(marked.read_text(encoding="utf-8"))
    marked.write_text(json.dumps({**kept, "seconds": 12345.0}))
    run(place, finished, data=place / "bids", sample=2)
    assert "12345.0" in {row["seconds"] for row in rows(finished)}


def test_another_model_or_design_does_not_mix_into_a_folder(place: Path, finished: Path) -> None:
    with pytest.raises(NeonatalSegError, match="differs in: model, sha256"):
        run(place, finished, "second")
    with pytest.raises(NeonatalSegError, match="differs in: design"):
        run(place, finished, design="full")


def test_an_earlier_model_stands_beside_the_new_one(place: Path, finished: Path, tmp_path: Path) -> None:
    page = run(place, tmp_path / "new", "second", before=finished)[0].read_text(encoding="utf-8")
    old = {r["contrast"]: float(r["mean_dsc"]) for r in rows(finished) if r["subject"] == "age-30"}
    new = {r["contrast"]: float(r["mean_dsc"]) for r in rows(tmp_path / "new")}
    for contrast in ("T1+T2", "T2", "T1"):
        assert f"{old[contrast]:.3f} -> {new[contrast]:.3f}" in page
    fell = sum(new[c] < old[c] for c in new)
    assert f"Of 3 cells and templates that both have, {fell} fell" in page
    with pytest.raises(NeonatalSegError, match="its seed is 0, here 1"):
        run(place, tmp_path / "other", "second", before=finished, seed=1)
    with pytest.raises(NeonatalSegError, match="no finished robustness matrix"):
        run(place, tmp_path / "third", "second", before=tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"subjects": ["2"]}, "sub-2 is not a held-out subject: the model first trained on it"),
        ({"subjects": ["sub-3"]}, "sub-3 is not a held-out subject: the model first was chosen on"),
        ({"subjects": ["4"]}, "sub-4 .* has no label map"),
        ({"subjects": ["5"]}, "no subject sub-5"),
        ({"design": "half"}, "no design 'half'"),
        ({"sample": -1}, "-1 sampled"),
        ({"ages_weeks": [30, 31]}, r"no template of 31 weeks.*Ages in .*: 30"),
        ({"data": None, "templates": None}, "nothing to evaluate"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_is_written(
    place: Path, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(NeonatalSegError, match=told):
        run(place, tmp_path / "out", **{"data": place / "bids", **changes})
    assert not (tmp_path / "out").exists()


def test_the_mean_weighs_every_cell_alike() -> None:
    dsc = [{"part": "single", "subject": s, "contrast": c, "dsc": v, **dataclasses.asdict(Alteration())}
           for s, c, v in (("a", "T2", 0.2), ("b", "T2", 0.4), ("a", "T1", 0.9))]  # fmt: skip
    template = {**dsc[0], "part": "templates", "subject": "age-30", "dsc": 0.0}
    found = figures([*dsc, template], lambda row: row["dsc"])
    matrix, templates = split(found)
    assert matrix_mean(matrix) == pytest.approx((0.3 + 0.9) / 2)
    assert matrix_mean(templates) == 0.0


def test_training_does_not_import_the_alterations() -> None:
    sources = [s for part in ("augmentation", "training") for s in (ROOT / "NeonatalSegLib" / part).rglob("*.py")]
    assert len(sources) > 8
    code = {s.name: s.read_text(encoding="utf-8").split('"""', 2)[-1] for s in sources}  # after the module's docstring
    assert [name for name, text in code.items() if "alterations" in text] == []
