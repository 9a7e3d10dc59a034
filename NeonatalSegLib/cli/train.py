"""``neonatalseg train``: a model from labelled scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from NeonatalSegLib.cli.options import TemplateAges, warn
from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    from NeonatalSegLib.datasets.cache import CachedSubject
    from NeonatalSegLib.training.settings import TrainingSettings


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on from it.")],
    data: Annotated[Optional[Path], typer.Option(help="BIDS folder with T1w, T2w and *_dseg label maps.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="Training settings (JSON); default: the paper's.")] = None,
    templates: Annotated[
        Optional[Path], typer.Option(help="Also train on age templates (age-36/age-36_T2w.nii.gz ...).")
    ] = None,
    ages: TemplateAges = "36,38,40,42,44",
    split: Annotated[
        Optional[Path],
        typer.Option(help="Table of 'neonatalseg split': who trains, validates and tests."),
    ] = None,
    train_on: Annotated[
        str, typer.Option(help="Side of the split to train on; the other sides are held out.")
    ] = "train",
    cache: Annotated[Optional[Path], typer.Option(help="Folder of prepared arrays; default: OUT/cache.")] = None,
    cache_only: Annotated[bool, typer.Option("--cache-only", help="Build the cache and stop.")] = False,
    devices: Annotated[int, typer.Option(help="GPUs to train on together.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that draw patches.")] = 1,
    save: Annotated[Optional[Path], typer.Option(help="Folder for the finished model; default: OUT/model.")] = None,
    stop_after: Annotated[
        Optional[int], typer.Option(help="End after so many epochs; the same command without it goes on.")
    ] = None,
    snapshot: Annotated[
        Optional[Path], typer.Option(help="Only write the newest weights of the run in OUT, which may be going on.")
    ] = None,
) -> None:
    """Train a model on labelled scans. Without --data the cache is read as it is (no SimpleITK needed)."""
    from NeonatalSegLib.datasets.cache import build_cache, read_cache
    from NeonatalSegLib.training.run import TrainingSettings, newest, read_settings
    from NeonatalSegLib.training.run import train as run_training

    settings = read_settings(config) if config else TrainingSettings()
    folder = cache or out / "cache"
    if snapshot is not None:
        typer.echo(f"Model: {newest(out, read_cache(folder)).save(snapshot).folder}")
        return
    if split is not None:
        settings = _held_out_by(split, train_on, settings)
    if data is None:
        subjects = read_cache(folder)
    else:
        from NeonatalSegLib.datasets.dhcp import find_labelled
        from NeonatalSegLib.datasets.templates import find_templates

        spacing = settings.network.spacing_mm
        complete = find_labelled(data)
        typer.echo(complete.summary(limit=20), err=bool(complete.incomplete))
        found = list(complete.subjects)
        if templates is not None:
            found += find_templates(templates, [int(age) for age in ages.split(",")])
        subjects = build_cache(found, folder, spacing, phantoms=settings.phantoms, seed=settings.seed, report=warn)
    if split is not None:
        subjects = _on_the_split(split, subjects)
    typer.echo(f"{len(subjects)} prepared subjects in {folder}")
    if cache_only:
        return
    finished = run_training(subjects, settings, out, devices=devices, workers=workers, stop_after=stop_after)
    if finished.patches_per_second is not None and finished.loader_share is not None:
        speed, waiting = finished.patches_per_second, 100 * finished.loader_share
        typer.echo(f"{speed:.2f} patches a second; the network waited for patches in {waiting:.0f} % of the time")
    if not finished.first_process:  # of several GPUs' processes one writes the model
        return
    model = finished.save(save or out / "model")
    typer.echo(f"Best checkpoint: {finished.checkpoint}\nModel: {model.folder}")


def _held_out_by(path: Path, train_on: str, settings: TrainingSettings) -> TrainingSettings:
    """The settings with the split's other sides held out: "validation" chooses the checkpoint, the rest nothing.

    Raises:
        NeonatalSegError: an unreadable split, no such side, or the settings name held-out newborns themselves.
    """
    from NeonatalSegLib.datasets.split_files import read_split

    if settings.validation or settings.test:
        raise NeonatalSegError(
            f"Both the training settings and {path} say who is held out: leave out --split, or take validation and "
            "test out of the configuration."
        )
    split = read_split(path)
    if not split.names(train_on):
        raise NeonatalSegError(f"Nobody stands on the side {train_on!r} of {path}: choose another by --train-on.")
    validation = split.names("validation") if "validation" in split.sides and train_on != "validation" else ()
    others = [side for side in split.sides if side not in (train_on, "validation")]
    return replace(settings, validation=validation, test=tuple(name for side in others for name in split.names(side)))


def _on_the_split(path: Path, subjects: list[CachedSubject]) -> list[CachedSubject]:
    """Those of the subjects that stand on a side, with the templates and phantoms, which stand on none.

    Raises:
        NeonatalSegError: a scan of the split is not among the subjects.
    """
    from NeonatalSegLib.datasets.kinds import NEWBORN
    from NeonatalSegLib.datasets.split_files import read_split

    split = read_split(path)
    chosen = {subject.name for side in split.sides for subject in split.select(side, subjects)}
    left_out = [s.name for s in subjects if s.kind == NEWBORN and s.name not in chosen]
    if left_out:
        typer.echo(f"{len(left_out)} scans stand on no side of {path} and are left out: {', '.join(left_out[:5])}")
    return [s for s in subjects if s.kind != NEWBORN or s.name in chosen]
