"""``neonatalseg experiment annotator``: prepare the domains, simulate, write the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from NeonatalSegLib.datasets.cache import build_cache
from NeonatalSegLib.datasets.templates import MERGED
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.annotator import domains
from NeonatalSegLib.experiments.annotator.report import write_annotator_report
from NeonatalSegLib.experiments.annotator.simulation import AnnotatorSettings, simulate
from NeonatalSegLib.files.settings import read_object, tuples
from NeonatalSegLib.finetuning.run import PHANTOMS
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.segmentation.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class AnnotatorRun:
    """What is simulated: the scans to adapt to are either templates or labelled scans.

    Attributes:
        out: folder of the runs and the report.
        templates, ages_weeks: folder of age templates, and which of them; or
        data, subjects: a BIDS folder, and names of its subjects (none: all with labels), of which
        change_contrast: only T1 is kept, with another contrast and a bias field.
        source, source_subjects: labelled scans of the model's own domain, to see what is forgotten.
        model: name or folder; None for the current one.
        runs: seeds.
        config: JSON of settings that differ from the defaults.
    """

    out: Path
    templates: Path | None = None
    ages_weeks: Sequence[int] = ()
    data: Path | None = None
    subjects: Sequence[str] = ()
    change_contrast: bool = False
    source: Path | None = None
    source_subjects: Sequence[str] = ()
    model: str | None = None
    runs: int = 3
    config: Path | None = None

    def __post_init__(self) -> None:
        if (self.templates is None) == (self.data is None):
            raise NeonatalSegError("Give the scans to adapt to: either --templates or --data.")
        if self.source is None:
            raise NeonatalSegError("Give --source with scans of the model's own domain: they show what is forgotten.")

    def pairs(self) -> list:  # type: ignore[type-arg]
        """Scan and true labels of what is adapted to."""
        if self.templates is not None:
            return domains.read_templates(self.templates, self.ages_weeks)
        assert self.data is not None
        found = domains.read_labelled(self.data, self.subjects)
        if self.change_contrast:
            found = [(domains.with_changed_contrast(scan, n), truth) for n, (scan, truth) in enumerate(found)]
        return found

    @property
    def wanted(self) -> str:
        """The domain in words, by which a prepared one is known again."""
        text = f"templates of {self.ages_weeks} weeks" if self.templates else f"subjects {list(self.subjects) or 'all'}"
        return text + (" with changed contrast" if self.change_contrast else "")

    @property
    def title(self) -> str:
        return "templates" if self.templates else "changed contrast" if self.change_contrast else "other scans"

    @property
    def command(self) -> str:
        """The command for the report: with what changes its figures."""
        ages = ",".join(map(str, self.ages_weeks))
        options = f"--templates TEMPLATES --ages {ages}" if self.templates else "--data DATA"
        options += f" --subjects {','.join(self.subjects)}" if self.subjects else ""
        options += " --change-contrast" if self.change_contrast else ""
        options += f" --source SOURCE --source-subjects {','.join(self.source_subjects)} --runs {self.runs} --out OUT"
        options += f" --config {Path('Resources', 'Annotator', self.config.name).as_posix()}" if self.config else ""
        return f"neonatalseg experiment annotator {options}"


def run_annotator(
    run: AnnotatorRun,
    *,
    parallel: int = 1,
    scheduler: str | None = None,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Everything behind the command; returns the report's files.

    Raises:
        NeonatalSegError: too few scans, or unreadable settings.
    """
    settings = read_settings(run.config, MERGED if run.templates else ())
    segmenter, out = Segmenter(find_model(run.model)), run.out
    scans = domains.prepare_domain(out / "domain", run.pairs, segmenter, run.wanted)
    assert run.source is not None
    kept = domains.prepare_domain(
        out / "source",
        partial(domains.read_labelled, run.source, run.source_subjects),
        segmenter,
        f"subjects {list(run.source_subjects) or 'all'}",
    )
    if len(scans) < settings.annotated + settings.tested:
        raise NeonatalSegError(
            f"{len(scans)} scans are too few: {settings.annotated} are to be annotated and {settings.tested} others "
            "tested in each run."
        )
    build_cache([], out / "phantoms", segmenter.model.spacing_mm, phantoms=PHANTOMS)
    results = simulate(
        out, out / "domain", [s.name for s in scans], out / "source", [s.name for s in kept], settings,
        model=str(segmenter.model.folder), rehearsal=out / "phantoms", runs=run.runs, parallel=parallel,
        scheduler=scheduler, report=report,
    )  # fmt: skip
    name, title = f"annotator_{run.title.replace(' ', '_')}", f"Simulated annotator, {run.title}"
    return write_annotator_report(name, title, results, settings, segmenter.model, out / "report", run.command)


def read_settings(config: Path | None, merged: tuple[tuple[int, ...], ...]) -> AnnotatorSettings:
    """Settings from a JSON file over the defaults; NeonatalSegError where it is not understood."""
    given = read_object(config, "annotator's configuration") if config else {}
    known = {f.name for f in fields(AnnotatorSettings)}
    if unknown := sorted(set(given) - known):
        raise NeonatalSegError(f"Unknown setting {unknown[0]!r} in {config}: known are {', '.join(sorted(known))}.")
    return AnnotatorSettings(**{"merged": merged, **tuples(given)})
