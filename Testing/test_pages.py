"""The HTML pages of a scan and of a study, in a browser: what a radiologist looks at must be where it says."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from browser import Browser, open_browser
from PIL import Image

from NeonatalSegLib.datasets.phantom import draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.segmentation.growth import GROWTH
from NeonatalSegLib.segmentation.outputs import sidecar
from NeonatalSegLib.segmentation.overlay import upright
from NeonatalSegLib.segmentation.pages.scan_page import write_scan_page
from NeonatalSegLib.segmentation.pages.study_page import study_page
from NeonatalSegLib.segmentation.segmenter import Segmentation
from NeonatalSegLib.segmentation.study_results import StudyRow, read_rows
from NeonatalSegLib.segmentation.study_table import write_study_files
from NeonatalSegLib.segmentation.verdict import CHECK, FAIL, Finding, Plausibility
from NeonatalSegLib.tissues import CEREBELLUM, HIPPOCAMPUS, PHYSIOLOGICAL, TISSUES, by_index

EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
READY = "document.getElementById('viewer').dataset.ready"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def leaning() -> tuple[sitk.Image, sitk.Image]:
    """T2 and labels on an oblique grid with thick slices whose axes run to right, front and down, not as in the file.

    Only the newborn's left half has cerebellum.
    """
    newborn = draw_newborn(40.0, seed=11, spacing_mm=1.6)
    grid = Grid.of(newborn.labels)
    centre = grid.matrix() @ np.array([*(np.asarray(grid.size) - 1) / 2, 1.0])
    left = sitk.GetArrayFromImage(newborn.labels)
    x = np.arange(left.shape[2]) * grid.spacing_mm[0] + grid.origin_mm[0]
    left[(left == CEREBELLUM) & (x < centre[0])[None, None, :]] = 0
    turned = np.radians(15)
    direction = np.array([[-np.cos(turned), np.sin(turned), 0], [-np.sin(turned), -np.cos(turned), 0], [0, 0, -1]])
    size, spacing = (150, 180, 48), (0.9, 0.9, 3.0)
    origin = centre[:3] - direction @ ((np.asarray(size) - 1) / 2 * spacing)
    odd = Grid(size, spacing, tuple(origin), tuple(direction.ravel()))  # type: ignore[arg-type]
    like = odd.image(np.zeros(odd.shape, np.uint8))
    same = sitk.Transform()
    return (
        sitk.Resample(newborn.t2, like, same, sitk.sitkLinear, 0.0, sitk.sitkFloat32),
        sitk.Resample(grid.image(left), like, same, sitk.sitkNearestNeighbor, 0),
    )


def usual_volumes(age: float) -> dict[str, float]:
    return {t.key: GROWTH[t.key].expected_ml(age) if not t.background else 1.0 for t in TISSUES}


def facts_of(age: float | None = 40.0, **changed: Any) -> dict[str, Any]:
    """The side-car of a made-up result."""
    from NeonatalSegLib.scans.scan import Scan

    scan = Scan(t1=None, t2=sitk.Image(8, 8, 8, sitk.sitkFloat32), name="sub-01", age_weeks=age)
    made = Segmentation(sitk.Image(8, 8, 8, sitk.sitkUInt8), usual_volumes(age or 40.0), model_hash="0" * 64)
    made.times_s = {"network": 12.0, "write": 1.0}
    return {**sidecar(made, scan), "Inputs": {"t2": "sub-01_T2w.nii.gz"}, **changed}


@pytest.fixture(scope="module")
def page(leaning: tuple[sitk.Image, sitk.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose names want to run scripts; cortex and white matter stand out."""
    found = Plausibility((Finding(CHECK, "volume", f"White matter {EVIL}"), Finding(FAIL, "place", "Upside down.")))
    texts = [finding.text for finding in found.findings]
    facts = facts_of(
        Plausibility=found.to_json(), Warnings=[*texts, "Memory ran out."], Inputs={"t2": f"/home/eve/{EVIL}.nii.gz"}
    )
    volumes = {**usual_volumes(40.0), "wm": 1.4 * GROWTH["wm"].expected_ml(40.0)}
    file = tmp_path_factory.mktemp("page") / "sub-01_report.html"
    write_scan_page(file, f"sub-01{EVIL}", facts, volumes, upright(*leaning))
    return file


@pytest.fixture
def shown(browser: Browser, page: Path) -> Browser:
    browser.open(page, READY)
    return browser


def colour_at(browser: Browser, plane: str, across: float, down: float) -> tuple[int, int, int]:
    """What a canvas shows at a share of its width and height."""
    red, green, blue, _ = browser.run(
        "const c = document.querySelector(`[data-plane=${arguments[0]}] canvas`);"
        "return [...c.getContext('2d').getImageData(arguments[1] * c.width, arguments[2] * c.height, 1, 1).data]",
        plane, across, down,
    )  # fmt: skip
    return red, green, blue


def go_to(browser: Browser, **slices: int) -> None:
    for plane, index in slices.items():
        browser.run(
            "const s = document.querySelector(`[data-plane=${arguments[0]}] input`);"
            "s.value = arguments[1]; s.dispatchEvent(new Event('input'))", plane, index,
        )  # fmt: skip
        browser.wait(f"document.querySelector('[data-plane={plane}] output').textContent.includes(' {index + 1} of ')")


def test_every_plane_shows_the_tissue_where_it_lies_in_the_patient(
    shown: Browser, leaning: tuple[sitk.Image, sitk.Image]
) -> None:
    """Through the middle of the hippocampus and the half cerebellum, at full opacity, the colours of the table."""
    seen = upright(*leaning)
    nz, ny, nx = seen.labels.shape
    shown.run(
        "const o = document.getElementById('opacity'); o.value = 100; o.dispatchEvent(new Event('input'));"
        "document.getElementById('cross').click()"
    )
    for index in (CEREBELLUM, HIPPOCAMPUS):
        z, y, x = (int(v) for v in np.median(np.argwhere(seen.labels == index), axis=0))
        z, y, x = min(np.argwhere(seen.labels == index), key=lambda at: np.abs(at - (z, y, x)).sum()).tolist()
        go_to(shown, sagittal=x, coronal=y, axial=z)
        shown.wait(f"document.getElementById('under').textContent.includes('{by_index(index).name}')")
        right, down, up = (x + 0.5) / nx, (y + 0.5) / ny, 1 - (z + 0.5) / nz
        for plane, across, below in (("axial", right, down), ("coronal", right, up), ("sagittal", down, up)):
            assert colour_at(shown, plane, across, below) == by_index(index).colour, (plane, by_index(index).name)
    # What is on the patient's left is on the right of the screen, under the letter L, and told as left.
    z, y, x = np.argwhere(seen.labels == CEREBELLUM).mean(0)
    assert x / nx > 0.5 and seen.grid.origin_mm[0] + x * seen.grid.spacing_mm[0] > 0
    sides = [s.text for s in shown.selenium.find_elements("css selector", "[data-plane=axial] .stack span")]
    assert sides == ["R", "L", "A", "P"]
    go_to(shown, sagittal=round(x))
    assert re.search(r"Sagittal \d+ of \d+, L \d", shown.run("return document.body.innerText"))


def test_planes_have_the_patients_proportions(shown: Browser, leaning: tuple[sitk.Image, sitk.Image]) -> None:
    """3 mm slices do not look flat, and one millimetre is as long in all planes."""
    nz, ny, nx = upright(*leaning).labels.shape
    sizes = shown.run(
        "return [...document.querySelectorAll('canvas')].map((c) => [c.clientWidth, c.clientHeight])"
    )  # axial, coronal, sagittal
    scale = sizes[0][0] / nx
    for size, voxels in zip(sizes, ((nx, ny), (nx, nz), (ny, nz)), strict=True):
        assert size == pytest.approx([scale * n for n in voxels], rel=0.02)
    assert shown.run("return document.documentElement.scrollWidth <= innerWidth")


def test_wheel_click_keys_and_ticks(shown: Browser) -> None:
    slice_of = "document.querySelector('[data-plane=axial] output').textContent"
    before = shown.run(f"return {slice_of}")
    shown.run(
        "document.querySelector('canvas').dispatchEvent(new WheelEvent('wheel', {deltaY: -100, cancelable: true}))"
    )
    shown.wait(f"{slice_of} !== {json.dumps(before)}")
    shown.press("TAB")  # the first that the keyboard reaches is the axial slider
    shown.press("HOME")
    shown.wait(f"{slice_of}.startsWith('Axial 1 of')")
    shown.press("ARROW_RIGHT", "ARROW_RIGHT")
    shown.wait(f"{slice_of}.startsWith('Axial 3 of')")
    shown.run("document.getElementById('reset').click()")
    shown.wait(f"{slice_of} === {json.dumps(before)}")
    canvas = shown.selenium.find_element("css selector", "[data-plane=coronal] canvas")
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(shown.selenium).move_to_element_with_offset(
        canvas, 0, -canvas.size["height"] // 2 + 3
    ).click().perform()
    shown.wait(f"{slice_of} !== {json.dumps(before)}")
    axial, slices = (int(n) for n in re.findall(r"\d+", shown.run(f"return {slice_of}"))[:2])
    assert slices - axial < 3  # a click near the top of the coronal plane

    shown.run("document.getElementById('reset').click(); document.getElementById('cross').click()")
    seen = [picture(shown)]
    for key in ("T", "T", "O"):
        shown.press(key)
        seen.append(picture(shown))
    assert same(seen[0], seen[2])  # with tissues, and again
    assert not same(seen[0], seen[1]) and not same(seen[0], seen[3]) and not same(seen[1], seen[3])  # plain, outlines
    shown.press("O")
    for box in shown.selenium.find_elements("css selector", ".tick"):
        box.click()
    assert same(picture(shown), seen[1])  # no tissue is left to show


def picture(browser: Browser) -> np.ndarray:
    """The axial plane as it is drawn."""
    browser.draw()
    data = browser.run("return document.querySelector('canvas').toDataURL()").split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.int16)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """But for the last bits, in which one way of the browser to draw differs from another."""
    return bool(np.abs(one - other).max() < 16)


def test_the_verdict_is_on_top_and_names_do_not_run(shown: Browser) -> None:
    assert shown.selenium.title.startswith("sub-01<script>")
    text = shown.run("return document.body.innerText")
    assert text.index("Upside down.") < text.index("Radiological convention") < text.index("How this was made")
    assert "fail: do not use this result" in text and "White matter <script>" in text and "Memory ran out." in text
    assert "eve" not in text and shown.run("return document.querySelectorAll('script[src], img[src=x]').length") == 0
    row = next(r.text for r in shown.selenium.find_elements("css selector", "tbody tr") if "White matter" in r.text)
    z = np.log(1.4) / np.log(GROWTH["wm"].usual_ml(40.0)[1] / GROWTH["wm"].expected_ml(40.0)) * 2  # type: ignore[index]
    assert f"{z:+.1f}" in row


def test_nothing_is_asked_of_the_network(browser: Browser, page: Path) -> None:
    browser.complaints(), browser.requested()
    browser.open(page, READY)
    assert [url for url in browser.requested() if url != page.as_uri()] == []
    assert browser.complaints() == []


def test_text_can_be_read_on_its_ground(shown: Browser, tmp_path: Path) -> None:
    """Contrast of at least 4.5, as WCAG 2 asks (AA), on both pages."""
    (tmp_path / "report.html").write_text(study_page(made_up(6), {"sub-X": "empty"}), encoding="utf-8")
    for _ in range(2):
        faint = shown.run(
            """const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = (colour) => numbers(colour).slice(0, 3).map((v) => v / 255)
              .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
              .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
            const ground = (element) => {
              for (let e = element; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (numbers(colour)[3] !== 0) return colour;
              }
              return 'rgb(255, 255, 255)';
            };
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
            while (walker.nextNode()) {
              const element = walker.currentNode.parentElement, style = getComputedStyle(element);
              if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
              const [a, b] = [light(element.closest('svg') ? style.fill : style.color), light(ground(element))];
              const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
              if (contrast < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(1)}`);
            }
            return faint"""
        )
        assert faint == []
        shown.open(tmp_path / "report.html")


def test_a_narrow_screen_shows_all_of_it(browser: Browser, page: Path) -> None:
    size = browser.selenium.get_window_size()
    browser.selenium.set_window_size(500, 900)
    browser.open(page, READY)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.selenium.set_window_size(size["width"], size["height"])


def test_print_opens_what_is_folded(shown: Browser) -> None:
    assert not shown.run("return document.querySelector('details').open")
    assert shown.print_pdf().startswith(b"%PDF")
    shown.wait("document.querySelector('details').open")


def test_without_age_no_centile_is_made_up(browser: Browser, tmp_path: Path) -> None:
    write_scan_page(tmp_path / "a.html", "sub-01", facts_of(age=None), usual_volumes(40.0))
    browser.open(tmp_path / "a.html")
    text = browser.run("return document.body.innerText")
    assert "Age not given" in text and "age is not known" in text and "th centile" not in text.replace("98th", "")
    assert browser.run("return document.querySelectorAll('.level').length") == len(PHYSIOLOGICAL) + 1


# --- the study ------------------------------------------------------------------------------------------------------


def made_up(count: int) -> list[StudyRow]:
    """Rows with ages, volumes, verdicts and links of every kind."""
    rng = np.random.default_rng(3)
    rows = []
    for k in range(count):
        age = None if k == 3 else float(np.round(rng.uniform(28, 44), 1))
        volumes = {
            key: ml * rng.lognormal(0, 0.15) for key, ml in usual_volumes(age or 40.0).items() if key != "background"
        }
        volumes["intracranial"] = sum(volumes[t.key] for t in PHYSIOLOGICAL)
        verdict = ("pass", "check", "fail", "n/a")[int(rng.choice(4, p=(0.8, 0.15, 0.04, 0.01)))]
        name = f"sub-{k:04d}"
        rows.append(
            StudyRow(
                name, age, None, volumes, verdict, ("volume",), () if verdict == "pass" else ("Something is odd.",),
                0.7, float(np.round(rng.uniform(10, 60), 1)), model="m 0", version="1",
                report=f"{name}/{name}_report.html", picture=f"{name}/{name}_dseg.png",
            )
        )  # fmt: skip
    return rows


def column(browser: Browser, number: int) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('#scans tbody tr')].filter((r) => !r.hidden)"
        ".map((r) => r.cells[arguments[0]].innerText.split('\\n')[0])", number,
    )  # fmt: skip


def click_head(browser: Browser, number: int) -> None:
    browser.run("document.querySelectorAll('#scans th button')[arguments[0]].click()", number)


def test_a_thousand_scans_open_in_two_seconds(browser: Browser, tmp_path: Path) -> None:
    """Seconds of processor time of the page's thread: those of the clock hang on what else the machine does."""
    (tmp_path / "report.html").write_text(study_page(made_up(1000)), encoding="utf-8")
    browser.open(tmp_path / "report.html")
    assert browser.processor_seconds() < 2
    before = browser.processor_seconds()
    click_head(browser, 1)
    assert len(column(browser, 1)) == 1000
    assert browser.processor_seconds() - before < 2


def test_the_table_sorts_filters_and_shows_z_scores(browser: Browser, tmp_path: Path) -> None:
    rows = made_up(40)
    (tmp_path / "report.html").write_text(study_page(rows), encoding="utf-8")
    browser.open(tmp_path / "report.html")
    ages = sorted(row.age_weeks for row in rows if row.age_weeks is not None)
    click_head(browser, 1)
    assert column(browser, 1) == [*(f"{age:g}" for age in ages), "n/a"]
    click_head(browser, 1)
    assert column(browser, 1) == [*(f"{age:g}" for age in reversed(ages)), "n/a"]
    assert browser.run("return document.querySelectorAll('#scans th')[1].ariaSort") == "descending"
    click_head(browser, 2)
    assert column(browser, 2) == sorted((row.verdict for row in rows), key=["fail", "check", "pass", "n/a"].index)

    browser.run("document.querySelector('[name=unit][value=z]').click()")
    click_head(browser, 4)  # CSF
    scores = sorted(row.z_scores["csf"] for row in rows if "csf" in row.z_scores)
    assert [float(z) for z in column(browser, 4)[:-1]] == pytest.approx(scores, abs=0.051)
    assert column(browser, 4)[-1] == "n/a"
    browser.run("const f = document.getElementById('filter'); f.value = '-003'; f.dispatchEvent(new Event('input'))")
    assert sorted(column(browser, 0)) == [f"sub-{k:04d}" for k in range(30, 40)]


def test_a_mark_leads_to_its_row(browser: Browser, tmp_path: Path) -> None:
    rows = made_up(5)
    (tmp_path / "report.html").write_text(study_page(rows), encoding="utf-8")
    browser.open(tmp_path / "report.html")
    browser.run(
        """const chart = document.querySelector('[data-key=csf]'), box = chart.getBoundingClientRect();
        const [across, up] = [chart.dataset.weeksToX, chart.dataset.mlToY].map((t) => t.split(' ').map(Number));
        const scale = box.width / 300;
        chart.dispatchEvent(new MouseEvent('click', {clientX: box.left + scale * (across[0] * arguments[0] + across[1]),
          clientY: box.top + scale * (up[0] * arguments[1] + up[1])}))""",
        rows[1].age_weeks, rows[1].volumes_ml["csf"],
    )  # fmt: skip
    assert browser.run("return document.querySelector('.chosen').cells[0].innerText").strip() == "sub-0001"
    assert browser.run("return document.activeElement.getAttribute('href')") == "sub-0001/sub-0001_report.html"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with one result whose names are dangerous, as their side-car and page lie there."""
    folder = tmp_path / "out" / "sub-A #1"
    folder.mkdir(parents=True)
    facts = facts_of(Name=EVIL, Warnings=[f"a {EVIL}\twarning", "=1+1"])
    (folder / "a_dseg.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "a_report.html").write_text("<title>the scan's page</title>", encoding="utf-8")
    sitk.WriteImage(sitk.Image([40, 30], sitk.sitkVectorUInt8, 3), str(folder / "a_dseg.png"))
    return tmp_path / "out"


def test_the_study_links_to_its_scans_and_runs_no_name(browser: Browser, study: Path) -> None:
    write_study_files(study, without={f"sub-B{EVIL}": f"No such file: {EVIL}"})
    browser.complaints()
    browser.open(study / "report.html")
    text = browser.run("return document.body.innerText")
    assert "Scans without a result: 1" in text and "sub-B<script>" in text
    assert browser.selenium.title == "Newborn brain tissues: one scan"
    browser.wait("document.querySelector('.thumb img').naturalWidth === 40")  # a picture in a folder with a blank and #
    assert browser.complaints() == []
    browser.selenium.find_element("css selector", "td.name a").click()
    browser.wait('document.title === "the scan\'s page"')


def test_tables_have_a_dictionary_and_are_replaced_only_where_ours(study: Path) -> None:
    write_study_files(study)
    for stem in ("volumes", "qc"):
        head, row = (line.split("\t") for line in (study / f"{stem}.tsv").read_text(encoding="utf-8").splitlines())
        assert len(head) == len(row)
        told = json.loads((study / f"{stem}.json").read_text(encoding="utf-8"))
        assert all(told[name]["Description"] for name in head)
    volumes = dict(
        zip(
            *(line.split("\t") for line in (study / "volumes.tsv").read_text(encoding="utf-8").splitlines()),
            strict=True,
        )
    )
    assert float(volumes["wm_z"]) == 0 and "hippocampus_z" not in volumes
    assert float(volumes["brain_ml"]) < float(volumes["intracranial_ml"])
    stamps = {p.name: p.stat().st_mtime_ns for p in study.glob("*.*")}
    write_study_files(study)
    assert {p.name: p.stat().st_mtime_ns for p in study.glob("*.*")} == stamps
    for name in ("qc.tsv", "report.html"):
        (study / name).write_bytes(b"mine")
    with pytest.raises(NeonatalSegError, match=r"holds qc\.tsv, report\.html, which was not written by this program"):
        write_study_files(study)
    assert {(study / name).read_bytes() for name in ("qc.tsv", "report.html")} == {b"mine"}


def test_side_cars_of_other_versions_and_edited_ones_are_read_as_far_as_they_go(study: Path) -> None:
    strange = {
        "Description": facts_of()["Description"], "Name": "old", "VolumesML": ["wm"], "AgeWeeks": "forty",
        "Plausibility": {"Verdict": "great", "Findings": 3}, "Warnings": None, "SecondsPerStage": {"all": float("nan")},
    }  # fmt: skip
    (study / "old_dseg.json").write_text(json.dumps(strange), encoding="utf-8")
    old = next(row for row in read_rows(study) if row.name == "old")
    assert (old.age_weeks, old.volumes_ml, old.verdict, old.warnings) == (None, {}, "n/a", ())
    write_study_files(study)
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "2 scans" in page and "The results come from 2 models" in page


def test_an_empty_study_has_a_page(browser: Browser, tmp_path: Path) -> None:
    write_study_files(tmp_path, without={"sub-B": "The file is empty."})
    browser.open(tmp_path / "report.html")
    text = browser.run("return document.body.innerText")
    assert "no result in this folder" in text and "The file is empty." in text
    assert browser.complaints() == [] or "favicon" in str(browser.complaints())
