"""Commands on studies that are annotated slice by slice; ``cli/app.py`` registers them. Heavy imports come late."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from NeonatalSegLib.cli.options import (
    AUTO,
    BidsFolder,
    Device,
    Engine,
    Model,
    Overwrite,
    Results,
    ScanList,
    progress_line,
)
from NeonatalSegLib.cli.segment import tell_verdict
from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    from NeonatalSegLib.annotation.plan import Plan
    from NeonatalSegLib.annotation.study import StudyScan
    from NeonatalSegLib.finetuning.run import FineTuned
    from NeonatalSegLib.models.bundle import Model as Bundle

Outside = Annotated[
    bool, typer.Option("--outside", help="Agree to the images and rounds outside a study's folder that it names.")
]
Raters = Annotated[
    Optional[list[str]], typer.Option(help="Whose slices, in every round; may be given again. Default: all.")
]


def budget(
    out: Annotated[Optional[Path], typer.Option(help="Folder of the new study; missing or empty.")] = None,
    amount: Annotated[float, typer.Option(help="Number of slices, or percent of the slices in the extent.")] = 10.0,
    unit: Annotated[
        str,
        typer.Option(
            help="slices or percent. Percent: of the slices in the chosen extent of the chosen axis; with the axis "
            "'mixed' of the mean of the three axes."
        ),
    ] = "percent",
    per: Annotated[str, typer.Option(help="scan (each gets the budget) or study (spread evenly over scans).")] = "scan",
    axis: Annotated[
        str, typer.Option(help="sagittal, coronal, axial, random (one axis a scan) or mixed (all three).")
    ] = "axial",
    selection: Annotated[
        str, typer.Option(help="equidistant, random, foreground-random or uncertainty.")
    ] = "equidistant",
    extent: Annotated[
        str, typer.Option(help="brain (slices with at least 1 cm2 of it) or central (central 90 % of the axis).")
    ] = "brain",
    min_gap: Annotated[float, typer.Option(help="mm between chosen slices of one axis (for uncertainty).")] = 4.0,
    cap: Annotated[Optional[int], typer.Option(help="Never more slices of one scan.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same slices.")] = 0,
    bids: BidsFolder = None,
    scans: ScanList = None,
    t1: Annotated[Optional[Path], typer.Option(help="One scan: T1 image, or a folder with one DICOM series.")] = None,
    t2: Annotated[Optional[Path], typer.Option(help="One scan: T2 image, or a folder with one DICOM series.")] = None,
    name: Annotated[Optional[str], typer.Option(help="One scan: its name; default: from the file name.")] = None,
    age: Annotated[Optional[float], typer.Option(help="One scan: post-menstrual age in weeks.")] = None,
    prefill: Annotated[str, typer.Option(help="model (its prediction waits on every slice) or empty.")] = "model",
    exclude: Annotated[
        Optional[list[Path]],
        typer.Option(help="Folder of an earlier study: leave out what was completed there; may be given again."),
    ] = None,
    earlier: Annotated[
        Optional[list[Path]],
        typer.Option(
            help="Folder of an earlier round: as --exclude, and fine-tuning the new study learns its slices as well; "
            "may be given again."
        ),
    ] = None,
    outside: Outside = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Show the slices, write nothing.")] = False,
    model: Model = None,
    device: Device = AUTO,
) -> None:
    """Choose the slices to annotate and make the study's folder for them."""
    from NeonatalSegLib.annotation.plan import BudgetSettings

    settings = BudgetSettings(  # bad input first
        amount=amount,
        unit=unit,
        per=per,
        axis=axis,
        selection=selection,
        extent=extent,
        seed=seed,
        min_gap_mm=min_gap,
        cap_per_scan=cap,
    )
    from NeonatalSegLib.annotation.completed import completed_keys
    from NeonatalSegLib.annotation.new_study import check_folder, check_scans, needs_model, plan_study, start_study

    found = _scans(bids, scans, t1, t2, name, age)
    if out is not None:
        check_folder(out)
    elif not plan_only:
        raise NeonatalSegError("Give --out with a new folder for the study, or --plan-only.")
    check_scans(found)
    if outside:
        _agree((*(exclude or ()), *(earlier or ())))
    if exclude:
        settings = replace(settings, exclude=completed_keys(exclude, found))
    segmenter = None
    if needs_model(settings, prefill):
        from NeonatalSegLib.models.registry import find_model
        from NeonatalSegLib.segmentation.segmenter import Segmenter

        segmenter = Segmenter(find_model(model), device)
    if out is None or plan_only:
        planned = plan_study(
            found, settings, segmenter=segmenter, prefill=prefill, earlier=earlier or (), progress=progress_line
        )
        _tell(planned.plan, planned.warnings, reasons=True)
        return
    started = start_study(
        out, found, settings, segmenter=segmenter, prefill=prefill, earlier=earlier or (), progress=progress_line
    )
    _tell(started.plan, started.warnings, reasons=False)
    typer.echo(f"Study: {started.folder}")


def finetune(
    study: Annotated[Path, typer.Argument(help="Folder of the study, as `neonatalseg budget` or the panel makes it.")],
    strategy: Annotated[
        Optional[str], typer.Option(help="none, shallow, medium, deep, full or scratch. Default: full.")
    ] = None,
    keep: Annotated[
        Optional[str],
        typer.Option(
            help="everything (default): learn as far as little is forgotten of other scans; or scanner: learn all that "
            "these slices teach, for scans like these. --accept then lets the study name the model (see `models use`)."
        ),
    ] = None,
    minutes: Annotated[
        Optional[float], typer.Option(help="That it may take: on a slow machine there are fewer steps.")
    ] = None,
    steps: Annotated[Optional[int], typer.Option(help="Most optimiser steps; default: for minutes.")] = None,
    earlier: Annotated[
        Optional[list[Path]],
        typer.Option(
            help="Study of an earlier round, whose slices are learned as well; may be given again. Those that `budget "
            "--earlier` was given are learned anyway."
        ),
    ] = None,
    rater: Raters = None,
    rehearsal: Annotated[
        Optional[Path],
        typer.Option(help="Prepared arrays of source cases (`train --cache-only`); default: synthetic newborns."),
    ] = None,
    no_rehearsal: Annotated[bool, typer.Option("--no-rehearsal", help="Learn from the new slices alone.")] = False,
    config: Annotated[Optional[Path], typer.Option(help="More settings (JSON, see FineTuningSettings).")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Of patches, and of which slices are held out.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Make the new model the default at once.")] = False,
    outside: Outside = False,
    model: Model = None,
    device: Device = AUTO,
) -> None:
    """Fine-tune a model on the completed slices of a study; the new model waits as a candidate (see `models`)."""
    from NeonatalSegLib.files.settings import read_object
    from NeonatalSegLib.networks.strategies import check_strategy

    if strategy is not None:
        check_strategy(strategy)  # bad input is told before the network's libraries load
    given = read_object(config, "fine-tuning's configuration") if config else {}
    from NeonatalSegLib.annotation.completed import read_rounds

    if outside:
        _agree((study, *(earlier or ())))
    annotated = read_rounds(study, earlier or (), rater)
    from NeonatalSegLib.finetuning import run
    from NeonatalSegLib.finetuning.settings import FineTuningSettings
    from NeonatalSegLib.models.history import check_writable
    from NeonatalSegLib.models.registry import find_model

    chosen = {"strategy": strategy, "seed": seed, "steps": steps, "rehearsal": 0.0 if no_rehearsal else None}
    chosen |= {"keep": keep, "minutes": minutes}
    given |= {name: value for name, value in chosen.items() if value is not None}
    found, settings = find_model(model), FineTuningSettings.from_json(given)
    if settings.strategy != "none":
        check_writable()
    tuned = run.finetune(
        found,
        annotated,
        settings,
        rehearsal=run.read_rehearsal(rehearsal, found.spacing_mm) if rehearsal else None,
        device=device,
        report=lambda stage, fraction, facts: progress_line(stage, fraction),
    )
    _tell_tuned(tuned)
    if tuned.settings.strategy != "none":
        made = tuned.save()
        typer.echo(f"New model: {made.name} in {made.folder}")
        typer.echo(_accepted(made, study, settings.keep) if accept else _to_accept(made, study, settings.keep))


def complete(
    study: Annotated[Path, typer.Argument(help="Folder of the study.")],
    out: Results,
    rater: Raters = None,
    model: Model = None,
    device: Device = AUTO,
    engine: Engine = AUTO,
    overwrite: Overwrite = False,
    outside: Outside = False,
) -> None:
    """Segment the annotated scans of a study, the completed slices exactly as they were annotated."""
    from NeonatalSegLib.annotation.completed import read_rounds

    if outside:
        _agree((study,))
    read_rounds(study, raters=rater)  # bad input is told before the network's libraries load
    from NeonatalSegLib.annotation.own_scans import complete_study
    from NeonatalSegLib.segmentation.outputs import check_writable
    from NeonatalSegLib.segmentation.segmenter import Segmenter

    check_writable(out)
    segmenter = Segmenter(model or None, device, engine)
    for written in complete_study(study, out, segmenter, rater, overwrite=overwrite, progress=progress_line):
        typer.echo(f"Written: {written['dseg']}")
        tell_verdict(json.loads(written["sidecar"].read_text(encoding="utf-8")))


def _agree(studies: Iterable[Path]) -> None:
    """The user knows where these studies come from: what they name outside their folders may be read."""
    from NeonatalSegLib.annotation.study import read_study
    from NeonatalSegLib.annotation.trust import outside_of, trust

    for folder in studies:
        study = read_study(folder)
        trust(outside_of(folder, study.scans, study.earlier))
        for one in study.earlier:
            trust(outside_of(one, read_study(one).scans))


def _accepted(model: Bundle, study: Path, keep: str) -> str:
    """Take a new model for what it was made for, and say so."""
    from NeonatalSegLib.models import store
    from NeonatalSegLib.models.for_study import name_for_study
    from NeonatalSegLib.models.registry import as_option

    if keep == "scanner":
        name_for_study(study, model)
        command = f"neonatalseg segment --model {as_option(study)} ..."
        return f"{model.name} is the model of this study: `{command}`, and batch, use it."
    store.accept(model.name)
    return f"{model.name} is now the default."


def _to_accept(model: Bundle, study: Path, keep: str) -> str:
    command = f"use {model.name} --study {study}" if keep == "scanner" else f"accept {model.name}"
    return f"{model.name} is a candidate: `neonatalseg models {command}` to use it."


def _tell_tuned(tuned: FineTuned) -> None:
    """Before and after, tissue by tissue, and what else is to be known."""
    from NeonatalSegLib.models.scores import SOURCE_ROW

    facts = tuned.lineage()
    for warning in tuned.adapted.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    typer.echo(
        f"{facts['strategy']}: {facts['parameters_trained']} of {facts['parameters_total']} parameters trained "
        f"({tuned.adapted.selection.percent:.1f} %) on {len(tuned.learned)} slices in {facts['seconds']:.0f} s; "
        f"{len(tuned.held_out)} slices held out"
    )
    typer.echo(f"{'DSC on the held-out slices':<28}{'before':>8}{'after':>8}")
    for key, before in [*facts["before"].items(), ("mean", facts["before_mean"])]:
        after = facts["after_mean"] if key == "mean" else facts["after"][key]
        cells = ["not measured" if value is None else f"{value:.3f}" for value in (before, after)]
        typer.echo(f"{key:<28}{cells[0]:>8}{cells[1]:>8}")
    if facts["source_before"] is not None:
        typer.echo(f"{SOURCE_ROW:<28}{facts['source_before']:>8.3f}{facts['source_after']:>8.3f}")


def _scans(
    bids: Path | None, table: Path | None, t1: Path | None, t2: Path | None, name: str | None, age: float | None
) -> list[StudyScan]:
    from NeonatalSegLib.annotation.study import StudyScan
    from NeonatalSegLib.scans.scan import scan_name
    from NeonatalSegLib.segmentation.study_scans import scans_of_bids, scans_of_list

    single = t2 or t1
    if sum(source is not None for source in (bids, table, single)) != 1:
        raise NeonatalSegError("Give one of these: --bids with a folder, --list with a table, or --t1 and/or --t2.")
    if single:
        return [StudyScan(name or scan_name(single), t1, t2, age)]
    found = scans_of_bids(bids, partial(typer.echo, err=True)) if bids else scans_of_list(table) if table else []
    return [StudyScan(scan.name, scan.t1, scan.t2, scan.age_weeks) for scan in found]


def _tell(plan: Plan, warnings: tuple[str, ...], *, reasons: bool) -> None:
    """Slices per scan and axis, or each with its reason."""
    from NeonatalSegLib.scans.grid import AXES

    for warning in warnings:
        typer.echo(f"Warning: {warning}", err=True)
    if reasons:
        for s in plan.slices:
            typer.echo(f"{s.key:<40}{s.position_mm:8.1f} mm  {s.reason}")
    width = max(len(name) for name in plan.grids) + 2
    typer.echo("scan".ljust(width) + "".join(f"{axis:>10}" for axis in (*AXES, "all")))
    for name in plan.grids:
        axes = [s.axis for s in plan.for_scan(name)]
        counts = [*(axes.count(axis) for axis in AXES), len(axes)]
        typer.echo(name.ljust(width) + "".join(f"{count:>10}" for count in counts))
    scans = len({s.scan for s in plan.slices})
    typer.echo(f"{len(plan.slices)} slices to annotate in {scans} {'scan' if scans == 1 else 'scans'}")
