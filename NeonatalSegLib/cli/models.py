"""``neonatalseg models``: list the models, accept and roll back, pass them on; heavy imports happen inside commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from NeonatalSegLib.files.text import cell, shown

if TYPE_CHECKING:
    from NeonatalSegLib.models.bundle import Model

app = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False)
Name = Annotated[str, typer.Argument(help="Name of a model, as `neonatalseg models` lists it.")]


@app.callback()
def models(context: typer.Context) -> None:
    """List the installed models, and show, accept, roll back, discard, export or import one.

    Your own come with what they scored before and after fine-tuning. The one that is
    marked "current" is used where no model is named.
    """
    if context.invoked_subcommand is not None:
        return
    from NeonatalSegLib.models.registry import current_model, installed_models

    known, reasons = installed_models()
    current, warnings = current_model()
    for model in known:
        typer.echo("\n".join(map(cell, _lines(model, current))))
    for text in [*(f"Passed over: {reason}" for reason in reasons), *(f"Warning: {w}" for w in warnings)]:
        typer.echo(shown(text), err=True)


@app.command()
def show(name: Name) -> None:
    """Show one model: state, folder and its card (origin, figures, licence)."""
    from NeonatalSegLib.models.registry import current_model, find_model

    model = find_model(name)
    typer.echo(f"{cell(_lines(model, current_model()[0])[0])}\n{model.folder}\n")
    card = model.folder / "docs" / "README.md"
    typer.echo(shown(card.read_text(encoding="utf-8", errors="replace") if card.is_file() else model.description))


@app.command()
def accept(name: Name) -> None:
    """Make a model the current one: it is used from now on where no model is named."""
    from NeonatalSegLib.models import store

    before = store.current_name()
    typer.echo(f"Current model: {store.accept(name).name} (before: {before})")


@app.command()
def use(
    name: Name,
    study: Annotated[Path, typer.Option(help="Folder of the study.")],
) -> None:
    """Let a study name a model for its own scans: `--model STUDY` then means it. The current model stays."""
    from NeonatalSegLib.models.for_study import name_for_study
    from NeonatalSegLib.models.registry import as_option, installed_model

    model = installed_model(name)
    name_for_study(study, model)
    command = f"neonatalseg segment --model {as_option(study)} ..."
    typer.echo(f"{study} names {model.name}: `{command}` uses it, and so does batch.")


@app.command("roll-back")
def roll_back() -> None:
    """Take the last acceptance back: the model that was current before is so again."""
    from NeonatalSegLib.models import store

    before = store.current_name()
    typer.echo(f"Current model: {store.roll_back().name} (before: {before})")


@app.command()
def discard(name: Name) -> None:
    """Delete one of your own models for good; neither the current one nor a shipped one."""
    from NeonatalSegLib.models import store

    store.discard(name)
    typer.echo(f"Discarded: {name}")


@app.command("export")
def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The zip file, or a folder for it.")],
    names: Annotated[
        bool, typer.Option("--names", help="Keep the names of scans and raters; else codes stand for them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is no export of this model.")] = False,
) -> None:
    """Write a model into one zip file to pass on, without the names of scans and raters (docs/privacy.md)."""
    from NeonatalSegLib.models import store

    typer.echo(f"Written: {store.export_model(name, file, names=names, force=force)}")


@app.command()
def openvino(
    name: Annotated[str, typer.Argument(help="Name of a model, or its folder.")],
    cache: Annotated[
        Optional[Path],
        typer.Option(help="Prepared arrays of its training (of `neonatalseg train`): calibrates and writes int8."),
    ] = None,
) -> None:
    """Make the network that CPUs run, beside the weights: fp32, or int8 where --cache is given.

    int8 needs nncf. (`models export` is something else: the whole model in one zip file, for another computer.)
    """
    from NeonatalSegLib.models.exported import export_model
    from NeonatalSegLib.models.registry import find_model

    model = find_model(name)
    windows, subjects = None, list[str]()
    if cache is not None:
        from NeonatalSegLib.training.calibration import calibration_windows

        windows, subjects = calibration_windows(model, cache)
        typer.echo(f"Calibrating on {len(windows)} windows of {len(subjects)} training subjects ...")
    calibration = {"windows": len(windows), "subjects": subjects} if windows else None
    file = export_model(model, windows, calibration)
    typer.echo(f"Written: {file} ({file.stat().st_size / 1e6:.1f} MB)")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A zip file that `neonatalseg models export` wrote.")],
    name: Annotated[str, typer.Option(help="Give it another name.")] = "",
) -> None:
    """Take over an exported model as a candidate; it is checked, and not used until it is accepted."""
    from NeonatalSegLib.models import store

    model = store.import_model(file, name)
    typer.echo(f"Imported: {model.name}\n{model.folder}")


def _lines(model: Model, current: str) -> list[str]:
    """What the list says of a model."""
    from NeonatalSegLib.models import store
    from NeonatalSegLib.models.scores import Scores, dice_text
    from NeonatalSegLib.tissues import PHYSIOLOGICAL

    state = store.state_of(model) + (", current" if model.name == current else "")
    lines = [f"{model.name}  {state}  {model.spacing_mm} mm  sha256 {model.hash[:12]}", f"  {model.description}"]
    for inputs, figure in model.facts.figures.items():
        lines.append(f"  {inputs}: mean DSC {figure['mean_dsc_no_bg']:.3f} on {figure['subjects']} held-out newborns")
    if lineage := model.facts.lineage:
        short = {t.name: t.abbreviation for t in PHYSIOLOGICAL}
        lines.append(f"  from {lineage.parent}, {lineage.date}")
        rows = Scores.of(vars(lineage)).rows
        scores = [
            f"{short.get(n, n)} {before} -> {after}" for n, before, after, change in rows if change != dice_text(None)
        ]
        lines += [f"  DSC {', '.join(scores)}"] if scores else []
    return lines
