"""``neonatalseg experiment annotator``: prepare the domains, simulate, write the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from NeonatalSegLib.datasets.cache import build_cache
from NeonatalSegLib.datasets.templates import MERGED
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.annotator import domains
from NeonatalSegLib.experiments.annotator.report import write_annotator_report
from NeonatalSegLib.experiments.annotator.simulation import AnnotatorSettings, simulate
from NeonatalSegLib.files.settings import read_object, tuples
from NeonatalSegLib.finetuning.run import PHANTOMS
from NeonatalSegLib.models.bundle import find_model
from NeonatalSegLib.segmentation.segmenter import Segmenter


def run_annotator(
    out: Path,
    templates: Path | None,
    ages_weeks: Sequence[int],
    data: Path | None,
    subjects: Sequence[str],
    change_contrast: bool,
    source: Path | None,
    source_subjects: Sequence[str],
    model: str | None,
    runs: int,
    config: Path | None,
    parallel: int,
    scheduler: str | None,
    report: Callable[[str], None],
) -> list[Path]:
    """Everything behind the command; returns the report's files.

    Raises:
        NeonatalSegError: no domain or two are given, no source, too few scans, or unreadable settings.
    """
    if (templates is None) == (data is None):
        raise NeonatalSegError("Give the scans to adapt to: either --templates or --data.")
    if source is None:
        raise NeonatalSegError("Give --source with scans of the model's own domain: they show what is forgotten.")
    settings = read_settings(config, MERGED if templates else ())
    segmenter = Segmenter(find_model(model))

    def pairs() -> list:  # type: ignore[type-arg]
        if templates is not None:
            return domains.read_templates(templates, ages_weeks)
        assert data is not None
        found = domains.read_labelled(data, subjects)
        if change_contrast:
            found = [(domains.with_changed_contrast(scan, n), truth) for n, (scan, truth) in enumerate(found)]
        return found

    wanted = f"templates of {ages_weeks} weeks" if templates else f"subjects {list(subjects) or 'all'}"
    wanted += " with changed contrast" if change_contrast else ""
    scans = domains.prepare_domain(out / "domain", pairs, segmenter, wanted)
    kept = domains.prepare_domain(
        out / "source", lambda: domains.read_labelled(source, source_subjects), segmenter,
        f"subjects {list(source_subjects) or 'all'}",
    )  # fmt: skip
    if len(scans) < settings.annotated + settings.tested:
        raise NeonatalSegError(
            f"{len(scans)} scans are too few: {settings.annotated} are to be annotated and {settings.tested} others "
            "tested in each run."
        )
    build_cache([], out / "phantoms", segmenter.model.spacing_mm, phantoms=PHANTOMS)
    results = simulate(
        out, out / "domain", [s.name for s in scans], out / "source", [s.name for s in kept], settings,
        model=str(segmenter.model.folder), rehearsal=out / "phantoms", runs=runs, parallel=parallel,
        scheduler=scheduler, report=report,
    )  # fmt: skip
    what = "templates" if templates else "changed contrast" if change_contrast else "other scans"
    options = f"--templates TEMPLATES --ages {','.join(map(str, ages_weeks))}" if templates else "--data DATA"
    options += f" --subjects {','.join(subjects)}" if subjects else ""
    options += " --change-contrast" if change_contrast else ""
    options += f" --source SOURCE --source-subjects {','.join(source_subjects)} --runs {runs} --out OUT"
    options += f" --config {Path('Resources', 'Annotator', config.name).as_posix()}" if config else ""
    name = f"annotator_{what.replace(' ', '_')}"
    title = f"Simulated annotator, {what}"
    command = f"neonatalseg experiment annotator {options}"
    return write_annotator_report(name, title, results, settings, segmenter.model, out / "report", command)


def read_settings(config: Path | None, merged: tuple[tuple[int, ...], ...]) -> AnnotatorSettings:
    """Settings from a JSON file over the defaults; NeonatalSegError where it is not understood."""
    given = read_object(config, "annotator's configuration") if config else {}
    known = {f.name for f in fields(AnnotatorSettings)}
    if unknown := sorted(set(given) - known):
        raise NeonatalSegError(f"Unknown setting {unknown[0]!r} in {config}: known are {', '.join(sorted(known))}.")
    return AnnotatorSettings(**{"merged": merged, **tuples(given)})
