"""What an evaluation found: the paper's Tables 1 and 2 in Markdown, and one row per subject and tissue as TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import (
    mean_dice,
    mean_dice_no_background,
)
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.text import cell
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL

COLUMNS = ("subject", "tissue", "dsc", "hd95_mm", "assd_mm", "volume_pred_ml", "volume_truth_ml")


@dataclass(frozen=True)
class TissueResult:
    """One tissue of one subject; NaN where a figure does not exist (tissue absent, surfaces not asked for)."""

    subject: str
    tissue: str
    dsc: float
    hd95_mm: float
    assd_mm: float
    volume_pred_ml: float
    volume_truth_ml: float


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_folders` found.

    Attributes:
        rows: ten rows per subject, in the order of subjects and of label values.
        surface: whether HD95 and ASSD were computed.
        warnings: sentences for the user: subjects without a partner, predictions that were resampled.
        failed: why a subject with a partner could not be measured, by subject; the others are.
    """

    rows: list[TissueResult]
    surface: bool = True
    warnings: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        """The subjects in the order of the rows."""
        return list(dict.fromkeys(row.subject for row in self.rows))

    def values(self, figure: str) -> npt.NDArray[np.float64]:
        """One figure (a column's name, such as ``"dsc"``) as an array [subjects, 10]."""
        flat = np.array([getattr(row, figure) for row in self.rows], dtype=np.float64)
        return flat.reshape(-1, NUMBER_OF_CLASSES)

    def table1(self) -> str:
        """Markdown in the layout of the paper's Table 1: mean DSC with and without the two background classes.

        Each is a mean over subjects of the subject's mean over classes, with the standard deviation over subjects
        (n - 1; the paper's is over four training runs). One subject has no deviation.
        """
        dice = self.values("dsc")
        cells = [
            _mean_and_deviation([mean_dice(subject) for subject in dice]),
            _mean_and_deviation([mean_dice_no_background(subject) for subject in dice]),
        ]
        return markdown_table(["", "Mean DSC", "Mean DSC (no BG)"], [["Mean DSC", *cells]])

    def table2(self) -> str:
        """Markdown in the layout of the paper's Table 2: DSC of the eight tissues, then HD95 and ASSD in mm.

        Each figure is the mean over the subjects that have it. A tissue that only one of the two label maps holds
        counts as DSC 0 but has no surface distance; a line under the table says how many values are missing so.
        """
        figures = {"dsc": ("DSC", 3)}
        if self.surface:
            figures |= {"hd95_mm": ("HD95 (mm)", 2), "assd_mm": ("ASSD (mm)", 2)}
        rows = []
        missing = []
        for figure, (head, digits) in figures.items():
            tissues = [(tissue, self.values(figure)[:, tissue.index]) for tissue in PHYSIOLOGICAL]
            rows.append([head, *(_number(_mean(column), digits) for _, column in tissues)])
            missing += [
                f"{head} of {tissue.abbreviation} ({np.isnan(column).sum()} of {len(column)})"
                for tissue, column in tissues
                if np.isnan(column).any()
            ]
        table = markdown_table(["", *(tissue.abbreviation for tissue in PHYSIOLOGICAL)], rows)
        if missing:
            table += "\n\nLeft out, since a label map does not hold the tissue (subjects): " + ", ".join(missing) + "."
        return table

    def write_tsv(self, path: Path) -> None:
        """Write one row per subject and tissue, tab-separated with a heading; ``n/a`` where there is no figure (BIDS).

        The file appears whole or not at all, and an older one stays until then.

        Raises:
            NeonatalSegError: the file cannot be written.
        """
        path = Path(path)
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(row, column)) for column in COLUMNS] for row in self.rows)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text.getvalue())
        except OSError as error:
            raise NeonatalSegError(
                f"Cannot write the results to {path}: {error.strerror or error}. Choose a path that can be written."
            ) from error


def _mean(values: npt.ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(np.nanmean(array)) if not np.isnan(array).all() else float("nan")


def _mean_and_deviation(values: Sequence[float]) -> str:
    text = _number(_mean(values), 3)
    present = [value for value in values if not np.isnan(value)]
    return f"{text} ± {np.std(present, ddof=1):.3f}" if len(present) > 1 else text


def _number(value: float, digits: int) -> str:
    return "n/a" if np.isnan(value) else f"{value:.{digits}f}"


def _cell(value: str | float) -> str:
    return cell(value) if isinstance(value, str) else _number(value, 6)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded[1:]]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])
