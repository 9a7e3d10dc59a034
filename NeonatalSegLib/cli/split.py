"""``neonatalseg split``: who of a data set trains, validates and tests. Registered in ``cli/app.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from NeonatalSegLib.cli.options import OverwriteFile
from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    from NeonatalSegLib.datasets.splits import Aged, Split

# Which options each kind of split takes, besides --seed.
KINDS: dict[str, tuple[str, ...]] = {
    "paper": ("share", "train", "validation", "test"),
    "subset": ("share",),
    "transfer": ("source", "train", "test"),
    "ages": ("source_min", "target_max"),
    "folds": ("test", "validation", "folds"),
}


def split(
    data: Annotated[Path, typer.Option(help="dHCP release (anatomical pipeline) or any BIDS folder.")],
    out: Annotated[Path, typer.Option(help="TSV to write; folds go to OUT with _fold-1, _fold-2 ... in its name.")],
    kind: Annotated[str, typer.Option(help=", ".join(KINDS))] = "paper",
    share: Annotated[
        Optional[float],
        typer.Option(help="subset: share of the scans (0.2). paper: sizes of training and validation from this share."),
    ] = None,
    train: Annotated[Optional[int], typer.Option(help="Scans: paper 114, transfer 40.")] = None,
    validation: Annotated[Optional[int], typer.Option(help="paper: scans, 28. folds: newborns a fold, 1.")] = None,
    test: Annotated[
        Optional[int], typer.Option(help="paper: scans, 100. transfer: scans, 80. folds: newborns a fold, 3.")
    ] = None,
    source: Annotated[Optional[int], typer.Option(help="transfer: oldest scans, 100.")] = None,
    source_min: Annotated[Optional[float], typer.Option(help="ages: source from so many weeks, 41.")] = None,
    target_max: Annotated[Optional[float], typer.Option(help="ages: target up to so many weeks, 39.")] = None,
    folds: Annotated[Optional[int], typer.Option(help="folds: how many; default: as many as go.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another draw.")] = 0,
    overwrite: OverwriteFile = False,
) -> None:
    """Split a data set by age, the sessions of a newborn always on one side, and write it to a table.

    paper: training, validation and independent test set. subset: an age-representative share and the rest. transfer:
    oldest scans as source, youngest as target. ages: source and target by thresholds. folds: leave some newborns out.
    Scans without T1, T2, labels or age are listed and left out.
    """
    from NeonatalSegLib.datasets.dhcp import find_complete
    from NeonatalSegLib.datasets.split_files import write_split
    from NeonatalSegLib.segmentation.ownership import check_new

    given = {
        "share": share,
        "train": train,
        "validation": validation,
        "test": test,
        "source": source,
        "source_min": source_min,
        "target_max": target_max,
        "folds": folds,
    }
    options = _checked(kind, {name: value for name, value in given.items() if value is not None})
    found = find_complete(data)
    typer.echo(found.summary(), err=bool(found.incomplete))
    splits = make_splits(found.subjects, kind, options, seed)
    folds_out = [out.with_name(f"{out.stem}_fold-{n}{out.suffix or '.tsv'}") for n in range(1, len(splits) + 1)]
    paths = folds_out if kind == "folds" else [out]
    for path in paths:
        check_new(path, overwrite=overwrite)
    for path, one in zip(paths, splits, strict=True):
        typer.echo(f"{write_split(one, path)}\n{_table(one)}")


def _checked(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    if kind not in KINDS:
        raise NeonatalSegError(f"There is no kind of split {kind!r}: choose from {', '.join(KINDS)}.")
    if unused := [name for name in options if name not in KINDS[kind]]:
        takes = ", ".join(_option(name) for name in KINDS[kind])
        raise NeonatalSegError(f"{_option(unused[0])} means nothing for a split of kind {kind}, which takes {takes}.")
    if "share" in options and options.keys() & {"train", "validation"}:
        raise NeonatalSegError("Give either --share or --train and --validation: the share decides both numbers.")
    return options


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_splits(subjects: tuple[Aged, ...], kind: str, options: dict[str, Any], seed: int) -> list[Split]:
    """The splits of one kind (several for "folds"); options as in :data:`KINDS`, the paper's where left out."""
    from NeonatalSegLib.datasets import splits

    options = dict(options)
    if kind == "subset":
        return [splits.representative_subset(subjects, options.get("share", splits.PAPER_SHARE), seed=seed)]
    if kind == "transfer":
        names = {"train": "target_train", "test": "target_test", "source": "source"}
        return [splits.transfer_split(subjects, **{names[k]: v for k, v in options.items()}, seed=seed)]
    if kind == "ages":
        return [splits.by_age(subjects, options.get("source_min", 41.0), options.get("target_max", 39.0))]
    if kind == "folds":
        k_test, validation = options.get("test", 3), options.get("validation", 1)
        return splits.leave_out_folds(subjects, k_test, validation, options.get("folds"), seed)
    if "share" in options:
        options["train"], options["validation"] = splits.paper_sizes(len(subjects), options.pop("share"))
    return [splits.paper_split(subjects, **options, seed=seed)]


def _table(split: Split) -> str:
    from statistics import median

    lines = [f"{'side':<14}{'scans':>6}{'newborns':>10}   weeks (youngest, median, oldest)"]
    for side, members in split.sides.items():
        ages = [m.age_weeks for m in members]
        text = f"{min(ages):.1f}  {median(ages):.1f}  {max(ages):.1f}" if ages else ""
        lines.append(f"{side:<14}{len(members):>6}{len({m.participant for m in members}):>10}   {text}")
    return "\n".join(lines)
