"""The evaluation matrix: one model on held-out newborns under every alteration, and on age templates as they are.

Every evaluated (cell, subject) is a run of ``runs.run_jobs``: done once, resumable, several at a time. What a cell
gets is what ``neonatalseg segment`` gives, its probabilities interpolated on the grid of the truth, which is never
resampled.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NeonatalSegLib.datasets.templates import MERGED, find_templates
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.robustness import alterations
from NeonatalSegLib.experiments.robustness.alterations import FACTORS, Alteration, altered, one_at_a_time, scaled
from NeonatalSegLib.experiments.robustness.report import read_earlier, write_report
from NeonatalSegLib.experiments.robustness.whole_head import in_whole_head, mask_of
from NeonatalSegLib.experiments.runs import run_jobs
from NeonatalSegLib.models.bundle import Model, sha256
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.segmentation.segmenter import METHOD

if TYPE_CHECKING:
    import SimpleITK as sitk

    from NeonatalSegLib.scans.scan import Scan
    from NeonatalSegLib.segmentation.segmenter import Segmenter

CONTRASTS: Mapping[str, tuple[str, ...]] = {"T1+T2": ("t1", "t2"), "T2": ("t2",), "T1": ("t1",)}
DESIGNS = ("one-at-a-time", "full")
HELD_OUT, TEMPLATES = "kept-out", "templates"


@dataclass(frozen=True)
class Source:
    """A labelled scan on disk: a held-out newborn or an age template."""

    kind: str
    name: str
    t1: Path
    t2: Path
    labels: Path
    age_weeks: float | None

    @property
    def merged(self) -> tuple[tuple[int, ...], ...]:
        """Groups of classes that its labels do not tell apart."""
        return MERGED if self.kind == TEMPLATES else ()


@dataclass(frozen=True)
class Cell:
    """One alteration with one choice of modalities."""

    alteration: Alteration
    contrast: str

    @property
    def key(self) -> str:
        return f"{self.alteration.key}_{self.contrast.replace('+', '')}"


@dataclass(frozen=True, kw_only=True)
class RobustnessRun:
    """What is evaluated: newborns, templates or both.

    Attributes:
        out: folder of the evaluations and the report.
        data, subjects: BIDS folder, and newborns that the model does not know (none: its own test subjects).
        templates, ages_weeks: folder of age templates, and which of them.
        head: T1 of a whole head, its brain mask beside it, for the cells of newborns' brains in it.
        model: name or folder; None for the current one.
        before: ``out`` of the same command with an earlier model.
        design: one of ``DESIGNS``.
        sample: further cells of the full product, each on one newborn.
        seed: of these, and of what is drawn in the alterations.
    """

    out: Path
    data: Path | None = None
    subjects: Sequence[str] = ()
    templates: Path | None = None
    ages_weeks: Sequence[int] = ()
    head: Path | None = None
    model: str | None = None
    before: Path | None = None
    design: str = "one-at-a-time"
    sample: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise NeonatalSegError(f"There is no design {self.design!r}: choose {' or '.join(DESIGNS)}.")
        if self.sample < 0:
            raise NeonatalSegError(f"{self.sample} sampled cells cannot be drawn: give 0 or more.")


def run_robustness(run: RobustnessRun, *, parallel: int = 1, report: Callable[[str], None] = print) -> list[Path]:
    """Everything behind the command: evaluates what is left and writes the report; returns the report's files.

    Raises:
        NeonatalSegError: nothing to evaluate, a subject that the model knows, one without labels or a modality, a
            missing template, a folder of another model or design, or failed evaluations.
    """
    found = find_model(run.model)
    sources = [] if run.data is None else held_out(run.data.absolute(), run.subjects, found)
    newborns = [s.name for s in sources]
    sources += [] if run.templates is None else template_sources(run.templates.absolute(), run.ages_weeks, found)
    if not sources:
        raise NeonatalSegError("There is nothing to evaluate: give --data, --templates or both.")
    config = {
        "model": found.name, "sha256": found.hash, "design": run.design, "seed": run.seed,
        "alterations": alterations.FORMAT, "method": METHOD,
        **({"head": sha256(run.head), "head_mask": sha256(mask_of(run.head))} if run.head else {}),
    }  # fmt: skip
    earlier = read_earlier(run.before, config) if run.before else None
    results = run_jobs(
        partial(evaluate, sources={s.name: s for s in sources}, model=found.folder.resolve(), head=run.head),
        make_jobs(sources, run.design, run.sample, run.seed, whole_head=run.head is not None),
        run.out,
        config=config,
        parallel=parallel,
        report=report,
    )
    command = "neonatalseg experiment robustness"
    command += f" --data DATA --subjects {','.join(n.removeprefix('sub-') for n in newborns)}" if newborns else ""
    command += f" --templates TEMPLATES --ages {','.join(map(str, run.ages_weeks))}" if run.templates else ""
    command += " --head HEAD" if run.head else ""
    command += f" --model {found.name}{' --before EARLIER' if run.before else ''} --design {run.design}"
    command += f" --sample {run.sample} --seed {run.seed} --out OUT"
    return write_report(list(results.values()), found, earlier, run.out, command)


def held_out(data: Path, subjects: Sequence[str], model: Model) -> list[Source]:
    """The labelled subjects of a BIDS folder to evaluate on; default: the model's own test subjects.

    Raises:
        NeonatalSegError: the model was trained or chosen on one of them, or one is missing, has no labels, or lacks
            a modality.
    """
    from NeonatalSegLib.datasets.ages import prefixed
    from NeonatalSegLib.datasets.bids import find_subjects

    known = {s.name: s for s in find_subjects(data)}
    names = [prefixed("sub", n) for n in subjects] or list(model.facts.test_subjects)
    if not names:
        raise NeonatalSegError(f"The model {model.name} states no test subjects: name held-out ones with --subjects.")
    roles = {
        "trained on": model.facts.training_subjects,
        "was chosen on (validation)": model.facts.validation_subjects,
    }
    sources = []
    for name in dict.fromkeys(names):
        for role, seen in roles.items():
            if name.split("_")[0] in {n.split("_")[0] for n in seen}:
                raise NeonatalSegError(
                    f"{name} is not a held-out subject: the model {model.name} {role} it. Leave it out of --subjects."
                )
        if name not in known:
            raise NeonatalSegError(f"There is no subject {name} in {data}. Found: {', '.join(known)}.")
        s = known[name]
        if s.labels is None:
            raise NeonatalSegError(f"{name} in {data} has no label map (*_dseg): there is no truth to compare with.")
        if s.t1 is None or s.t2 is None:
            raise NeonatalSegError(f"{name} in {data} lacks T1w or T2w: the matrix needs both, and each alone.")
        sources.append(Source(HELD_OUT, name, s.t1, s.t2, s.labels, s.age_weeks))
    return sources


def template_sources(folder: Path, ages_weeks: Sequence[int], model: Model) -> list[Source]:
    """Age templates that the model was not trained on.

    Raises:
        NeonatalSegError: no age is given, a file of one is missing, or the model was trained on one.
    """
    known = set(model.facts.training_subjects)
    found = find_templates(folder, ages_weeks)
    if trained := [s.name for s in found if s.name in known]:
        left = [str(age) for age, s in zip(ages_weeks, found, strict=True) if s.name not in known]
        raise NeonatalSegError(
            f"The model {model.name} was trained on the template {trained[0]}: leave out all of these with "
            f"--ages {','.join(left) or 'of others'}."
        )
    return [Source(TEMPLATES, s.name, s.t1, s.t2, s.labels, s.age_weeks) for s in found]  # type: ignore[arg-type]


def make_jobs(
    sources: Sequence[Source], design: str, sample: int, seed: int, *, whole_head: bool = False
) -> dict[str, dict[str, Any]]:
    """What is to be evaluated, by a key of its own: every cell of the design on every newborn, templates as they are.

    The cells of a whole head are of the one-at-a-time design alone. ``sample`` further cells of the full product each
    meet one newborn; a larger sample holds the smaller one.
    """
    single = [Cell(a, c) for a in one_at_a_time(whole_head) for c in CONTRASTS]
    product = [Cell(Alteration(*levels), c) for levels in itertools.product(*FACTORS.values()) for c in CONTRASTS]
    newborns = [s for s in sources if s.kind == HELD_OUT]
    chosen = [(s, cell, "single") for s in newborns for cell in single]
    others = [cell for cell in product if cell not in single and cell.alteration.head != "whole"]
    if design == "full":
        chosen += [(s, cell, "product") for s in newborns for cell in others]
    elif newborns:
        random = np.random.default_rng([seed, 1])
        order = random.permutation(len(others))[:sample]
        whom = random.integers(len(newborns), size=len(others))[: len(order)]
        chosen += [(newborns[who], others[number], "sample") for number, who in zip(order, whom, strict=True)]
    as_it_is = [cell for cell in single if cell.alteration == Alteration()]
    chosen += [(s, cell, TEMPLATES) for s in sources if s.kind == TEMPLATES for cell in as_it_is]
    hashes = {s.name: {key: sha256(getattr(s, key)) for key in ("t1", "t2", "labels")} for s in sources}
    return {
        f"{s.name}_{cell.key}": {
            "part": part, "subject": s.name, "age_weeks": s.age_weeks, "contrast": cell.contrast,
            **asdict(cell.alteration), "seed": seed, "files": hashes[s.name],
        }
        for s, cell, part in chosen
    }  # fmt: skip


def evaluate(
    job: dict[str, Any], folder: Path, *, sources: Mapping[str, Source], model: Path, head: Path | None = None
) -> dict[str, Any]:
    """One cell of one subject; returns the job with DSC by class (None: in neither label map) and seconds.

    A scan that the software refuses is a result as well: it found nothing (DSC 0), and ``refused`` says why.
    """
    from NeonatalSegLib.experiments.annotator.simulation import dsc_merged
    from NeonatalSegLib.scans.grid import Grid

    began = time.perf_counter()
    alteration = Alteration(**{name: job[name] for name in FACTORS})
    source = sources[job["subject"]]
    scan, labels = _altered(source, alteration, job["seed"], head)
    t1, t2 = (getattr(scan, key) if key in CONTRASTS[job["contrast"]] else None for key in ("t1", "t2"))
    shown = replace(scan, t1=t1, t2=t2)
    truth = _array(labels)
    refused, warnings = "", []
    try:
        result = _segmenter(model).segment(shown, target=Grid.of(labels))
        predicted, warnings = _array(result.label_map), result.warnings
    except NeonatalSegError as error:
        predicted, refused = np.zeros_like(truth), str(error)
    dsc = dsc_merged(predicted, truth, source.merged)
    known = {key: value for key, value in job.items() if key not in ("files", "seed")}
    return {
        **known, "dsc": [float(v) if np.isfinite(v) else None for v in dsc], "refused": refused,
        "warnings": list(warnings), "seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip


@lru_cache(maxsize=1)
def _altered(source: Source, alteration: Alteration, seed: int, head: Path | None) -> tuple[Scan, sitk.Image]:
    """The altered scan with both modalities, and its truth: the three choices of a cell follow each other."""
    from NeonatalSegLib.scans.labels import read_labels
    from NeonatalSegLib.scans.scan import load_scan

    labels = read_labels(source.labels).image
    if alteration.head == "whole":
        assert head is not None
        files = (source.t1, source.t2, source.labels, head)
        return in_whole_head(*files, name=source.name, age_weeks=source.age_weeks), labels
    scan = load_scan(source.t1, source.t2, name=source.name, age_weeks=source.age_weeks)
    return altered(scan, alteration, seed), scaled(labels, float(alteration.scale))


@lru_cache(maxsize=1)
def _segmenter(model: Path) -> Segmenter:
    from NeonatalSegLib.segmentation.segmenter import Segmenter

    return Segmenter(model)


def _array(image: sitk.Image) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image)
