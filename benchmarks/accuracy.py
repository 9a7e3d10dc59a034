"""Accuracy of a model on the newborns that its training never saw, with both contrasts and with each alone.

    python benchmarks/accuracy.py --data ../shared/data/alberts [--model neonatal-t1t2] [--write]

Prints the tables of ``neonatalseg evaluate`` for T1+T2, T2 and T1, and for a model that tells the age how many weeks
it is off, beside the mean age of its training subjects as the answer to everything. ``--write`` puts the figures into
the model's metadata and card, between the marks there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from NeonatalSegLib.datasets.bids import Subject, find_subjects
from NeonatalSegLib.evaluation.folders import evaluate_folders
from NeonatalSegLib.evaluation.metrics import mean_dice, mean_dice_no_background
from NeonatalSegLib.evaluation.tables import Evaluation
from NeonatalSegLib.models.registry import DEFAULT_MODEL
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.outputs import segment_to_folder
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import PHYSIOLOGICAL

INPUTS = {"T1+T2": ("t1", "t2"), "T2": ("t2",), "T1": ("t1",)}
MARKS = ("<!-- figures -->", "<!-- end of figures -->")


def evaluate(
    segmenter: Segmenter, subjects: list[Subject], contrasts: tuple[str, ...]
) -> tuple[Evaluation, list[tuple[float, float]]]:
    """Segment every subject with these contrasts and compare with its labels; also its (true, told) age in weeks."""
    ages = []
    with tempfile.TemporaryDirectory() as folder:
        pred, truth = Path(folder) / "pred", Path(folder) / "truth"
        truth.mkdir()
        for subject in subjects:
            t1, t2 = (getattr(subject, key) if key in contrasts else None for key in ("t1", "t2"))
            written = segment_to_folder(segmenter, load_scan(t1, t2), pred, name=subject.name, picture=False)
            told = json.loads(written["sidecar"].read_text(encoding="utf-8")).get("PredictedAgeWeeks")
            if told is not None and subject.age_weeks is not None:
                ages.append((subject.age_weeks, told))
            assert subject.labels is not None
            shutil.copy(subject.labels, truth / f"{subject.name}_dseg.nii.gz")
        return evaluate_folders(pred, truth), ages


def age_figures(ages: list[tuple[float, float]], training: dict[str, float | None]) -> dict[str, float]:
    """Mean absolute error in weeks of (true, told) ages, and of the mean age of the training subjects."""
    if not ages:
        return {}
    figures = {"age_error_weeks": round(sum(abs(told - true) for true, told in ages) / len(ages), 2)}
    known = [age for age in training.values() if age is not None]
    if known:
        mean = sum(known) / len(known)
        figures["age_error_weeks_of_mean"] = round(sum(abs(mean - true) for true, _ in ages) / len(ages), 2)
    return figures


def age_text(figures: dict[str, float]) -> str:
    """The same as a sentence; empty without an age."""
    if not figures:
        return ""
    text = f"Age: {figures['age_error_weeks']:.2f} weeks off (mean absolute error)"
    base = figures.get("age_error_weeks_of_mean")
    return f"{text}." if base is None else f"{text}; the mean age of the training newborns: {base:.2f} weeks off."


def figures_of(evaluation: Evaluation) -> dict[str, object]:
    """What goes into the metadata: means over subjects."""
    dsc = evaluation.values("dsc")
    return {
        "subjects": len(dsc),
        "mean_dsc": round(sum(mean_dice(row) for row in dsc) / len(dsc), 4),
        "mean_dsc_no_bg": round(sum(mean_dice_no_background(row) for row in dsc) / len(dsc), 4),
        "dsc": {t.key: round(float(dsc[:, t.index].mean()), 4) for t in PHYSIOLOGICAL},
    }


def write(folder: Path, figures: dict[str, dict[str, object]], text: str) -> None:
    """Put the figures into metadata.json and between the marks of the card."""
    file = folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["neonatalseg"]["figures"] = figures
    file.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    card = folder / "docs" / "README.md"
    old = card.read_text(encoding="utf-8")
    if MARKS[0] not in old:
        old = f"{old.rstrip()}\n\n## Figures\n\n{MARKS[0]}\n{MARKS[1]}\n"
    before, rest = old.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    card.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    segmenter = Segmenter(arguments.model)
    facts = segmenter.model.facts
    found = find_subjects(arguments.data)
    subjects = [s for s in found if s.name in facts.test_subjects]
    training = {s.name: s.age_weeks for s in found if s.name in facts.training_subjects}
    ages = ", ".join(f"{s.name.removeprefix('sub-')} ({s.age_weeks:g} weeks)" for s in subjects)
    parts, figures = [f"Held out of training: {ages}. One model, one seed."], {}
    for name, contrasts in INPUTS.items():
        evaluation, ages = evaluate(segmenter, subjects, contrasts)
        age = age_figures(ages, training)
        figures[name] = figures_of(evaluation) | age
        tables = [f"**{name}**", evaluation.table1(), evaluation.table2(), age_text(age)]
        parts.append("\n\n".join(part for part in tables if part))
        print(f"{parts[-1]}\n", flush=True)
    if arguments.write:
        write(segmenter.model.folder, figures, "\n\n".join(parts))


if __name__ == "__main__":
    main()
