"""``neonatalseg experiment``: the paper's experiments, resumable run by run. Registered in ``cli/app.py``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from NeonatalSegLib.cli.options import Model, Scheduler, TemplateAges

if TYPE_CHECKING:
    from NeonatalSegLib.experiments.paper.settings import ExperimentSettings

experiment = typer.Typer(
    name="experiment",
    help=(
        "The paper's experiments with their tables and plots. An interrupted command goes on where it was when it is "
        "given again, and with more --runs it adds runs. Several GPUs or machines with a shared file system: start "
        "'dask scheduler', then for every GPU 'CUDA_VISIBLE_DEVICES=N dask worker tcp://HOST:8786 --nthreads 1 "
        "--no-nanny', and give the scheduler's address as --scheduler."
    ),
    no_args_is_help=True,
)

Data = Annotated[
    Optional[Path], typer.Option(help="dHCP release or BIDS folder with T1w, T2w and *_dseg; none: read the cache.")
]
Out = Annotated[
    Path, typer.Option(help="Folder of the runs, tables and plot; an interrupted experiment goes on there.")
]
Runs = Annotated[int, typer.Option(help="Runs of every condition, each with a seed of its own.")]
Config = Annotated[
    Optional[Path],
    typer.Option(help="JSON of what differs from the paper's settings, Resources/Experiments/paper.json."),
]
Parallel = Annotated[int, typer.Option(help="Runs at once on this machine, one thread each.")]
Cache = Annotated[
    Optional[Path], typer.Option(help="Folder of prepared arrays, also of several OUTs; default: OUT/cache.")
]
SplitFiles = Annotated[
    Optional[list[Path]],
    typer.Option(
        "--split",
        help="Table of 'neonatalseg split', instead of drawing who trains and who tests; several (folds): run by run.",
    ),
]
Exclude = Annotated[str, typer.Option(help="Scans or newborns (sub-X), with commas, as if not in the data.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="A scan that cannot be prepared is missing on its side, and told.")
]
Processes = Annotated[
    Optional[int], typer.Option(help="Scans prepared at once, about 1 GB each; default: half the cores, at most 8.")
]
Check = Annotated[bool, typer.Option("--check", help="Tell disk, memory and hours, write the lists, and stop.")]


def _add(names: tuple[str, ...], name: str, text: str) -> None:
    def command(
        out: Out,
        data: Data = None,
        runs: Runs = 4,
        config: Config = None,
        parallel: Parallel = 1,
        scheduler: Scheduler = None,
        cache: Cache = None,
        split: SplitFiles = None,
        exclude: Exclude = "",
        keep_going: KeepGoing = False,
        processes: Processes = None,
        check: Check = False,
    ) -> None:
        from NeonatalSegLib.datasets.split_files import read_split
        from NeonatalSegLib.experiments.paper.report import Preparation
        from NeonatalSegLib.experiments.paper.settings import ExperimentSettings, read_experiment

        settings = read_experiment(config) if config else ExperimentSettings.paper()
        settings = replace(settings, splits=tuple(read_split(path) for path in split or ()))
        at_once = processes or max(1, min(8, (os.cpu_count() or 2) // 2))
        preparation = Preparation(cache, tuple(_names(exclude)), keep_going, at_once)
        # On the page the command stands with what changes its figures: the configuration and the number of runs.
        shown = f" --config {Path('Resources', 'Experiments', config.name).as_posix()}" if config else ""
        shown += f" --runs {runs} --parallel {parallel}" + f" --exclude {exclude}" * bool(exclude)
        shown += "".join(f" --split {path.name}" for path in split or ())
        for one in names:
            _run(
                one, data, settings, out, f"neonatalseg experiment {one} --data DATA{shown} --out OUT",
                runs=runs, parallel=parallel, scheduler=scheduler, preparation=preparation, check_only=check,
            )  # fmt: skip

    experiment.command(name, help=text)(command)


def _run(name: str, data: Path | None, settings: ExperimentSettings, out: Path, command: str, **options: Any) -> None:
    from NeonatalSegLib.experiments.paper.report import run_experiment

    typer.echo(f"--- {name}")
    for file in run_experiment(name, data, settings, out, command=command, report=typer.echo, **options):
        typer.echo(str(file))


PAPER = ("baseline", "age", "budget", "transfer")
_add(PAPER[:1], "baseline", "Every slice labelled: Tables 1 and 2.")
_add(PAPER[1:2], "age", "AgeU-Net beside the U-Net, its error in weeks beside that of the mean age.")
_add(PAPER[2:3], "budget", "A third of the slices of three times the scans, along four choices of axis: Table 3.")
_add(PAPER[3:], "transfer", "From older to younger newborns with six strategies.")
_add(("heads",), "heads", "The base line with the outputs' losses summed, and divided by the sum of their weights.")
_add((*PAPER, "heads"), "all", "All of these in one folder, one after the other.")


@experiment.command()
def rehearsal(
    out: Out,
    newborns: Annotated[int, typer.Option(help="Drawn newborns, at least 13.")] = 14,
    config: Annotated[
        Optional[Path], typer.Option(help="Settings (JSON); default: Resources/Experiments/rehearsal.json.")
    ] = None,
    parallel: Parallel = 1,
) -> None:
    """Minutes instead of days: the paper's experiments, every step of them, on drawn newborns laid out as the dHCP."""
    from NeonatalSegLib.experiments.paper.rehearsal import rehearse

    for file in rehearse(out, newborns, config, parallel, typer.echo):
        typer.echo(str(file))


@experiment.command()
def annotator(
    out: Out,
    templates: Annotated[
        Optional[Path], typer.Option(help="Folder of age templates (age-28/age-28_T2w.nii.gz ...) to adapt to.")
    ] = None,
    ages: TemplateAges = "28,30,32,34",
    data: Annotated[Optional[Path], typer.Option(help="Or: BIDS folder with T1w, T2w and *_dseg to adapt to.")] = None,
    subjects: Annotated[str, typer.Option(help="Its subjects, with commas; default: all with labels.")] = "",
    change_contrast: Annotated[
        bool, typer.Option("--change-contrast", help="Of these keep T1 alone, with another contrast and a bias field.")
    ] = False,
    source: Annotated[
        Optional[Path], typer.Option(help="BIDS folder with labelled scans of the model's own domain.")
    ] = None,
    source_subjects: Annotated[str, typer.Option(help="Its subjects, none of which trained the model.")] = "",
    model: Model = None,
    runs: Annotated[int, typer.Option(help="Seeds.")] = 3,
    config: Annotated[Optional[Path], typer.Option(help="Settings that differ from the defaults (JSON).")] = None,
    parallel: Parallel = 1,
    scheduler: Scheduler = None,
) -> None:
    """A simulated annotator: DSC against number of slices, for every strategy and selection."""
    from NeonatalSegLib.experiments.annotator.command import AnnotatorRun, run_annotator

    wanted = AnnotatorRun(
        out=out,
        templates=templates,
        ages_weeks=_ages(ages),
        data=data,
        subjects=_names(subjects),
        change_contrast=change_contrast,
        source=source,
        source_subjects=_names(source_subjects),
        model=model,
        runs=runs,
        config=config,
    )
    _list(run_annotator(wanted, parallel=parallel, scheduler=scheduler, report=typer.echo))


@experiment.command()
def robustness(
    out: Out,
    data: Annotated[Optional[Path], typer.Option(help="BIDS folder with T1w, T2w and *_dseg.")] = None,
    subjects: Annotated[
        str, typer.Option(help="Newborns that the model does not know, with commas; default: its test subjects.")
    ] = "",
    templates: Annotated[
        Optional[Path], typer.Option(help="Folder of age templates (age-28/age-28_T2w.nii.gz ...), taken as they are.")
    ] = None,
    ages: TemplateAges = "28,30,32,34,36,38,40,42,44",
    head: Annotated[
        Optional[Path], typer.Option(help="T1 of a whole head, NAME_T1w.nii.gz, NAME_desc-brain_mask.nii.gz beside it.")
    ] = None,
    model: Model = None,
    before: Annotated[
        Optional[Path], typer.Option(help="OUT folder of the same command with an earlier model, to compare with.")
    ] = None,
    design: Annotated[
        str, typer.Option(help="one-at-a-time: every alteration alone; full: all combinations (very long).")
    ] = "one-at-a-time",
    sample: Annotated[int, typer.Option(help="Further cells drawn from all combinations, each on one newborn.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sampled cells and of what is drawn in the alterations.")] = 0,
    parallel: Parallel = 1,
) -> None:
    """One model on altered scans of held-out newborns (voxels, skull, grid, corruption, size), and on templates."""
    from NeonatalSegLib.experiments.robustness.matrix import RobustnessRun, run_robustness

    wanted = RobustnessRun(
        out=out,
        data=data,
        subjects=_names(subjects),
        templates=templates,
        ages_weeks=_ages(ages),
        head=head,
        model=model,
        before=before,
        design=design,
        sample=sample,
        seed=seed,
    )
    _list(run_robustness(wanted, parallel=parallel, report=typer.echo))


def _list(files: Iterable[Path]) -> None:
    for file in files:
        typer.echo(str(file))


def _ages(text: str) -> list[int]:
    return [int(age) for age in _names(text)]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
