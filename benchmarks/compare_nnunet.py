"""nnU-Net v2 beside a model of NeonatalSeg: the same newborns, the same minutes, the same device, the same cells.

    pip install -r benchmarks/requirements-nnunet.txt -c constraints.txt     (how: see there)
    python benchmarks/compare_nnunet.py prepare --data ALBERTS --model MODEL --work WORK
    python benchmarks/compare_nnunet.py train   --work WORK --minutes 120 --device cuda
    python benchmarks/compare_nnunet.py score   --data ALBERTS --model MODEL --work WORK --device cuda --ours ROBUSTNESS

NOT COMPARED YET: no machine with a GPU was at hand. All three steps were run on drawn newborns at 2 mm with one epoch
of two steps on a CPU (prepare, training, native cells scored), which shows that they work and nothing about nnU-Net.
There are no figures of this comparison.

prepare: writes nnU-Net's raw data set from the subjects on which MODEL was trained (phantoms and age templates are left
out: the peer does not get them), with MODEL's validation subject as the validation of the only fold. As in any fold of
nnU-Net, the planning sees that subject too. Held-out subjects are not written.

train: nnU-Net's planning and preprocessing as they come (default planner, 3d_fullres, default trainer), then training
for at most --minutes. nnU-Net's length is a number of epochs (1000), and its learning rate falls with the epoch. Here
the share of the minutes that has gone by takes the place of the share of the epochs, in the same formula: a schedule
cut off would be unfair, and a number of epochs chosen from seconds measured beforehand would miss the time as much as
the machine's speed varies. No epoch is begun that would, at the length of the longest so far, end too late; the first
is run in any case. Planning and preprocessing are not counted, nor is the making of our cache. The weights of the last
epoch are used, as nnU-Net does.

score: every held-out newborn under every cell of ``neonatalseg experiment robustness`` (same code, same seed), as
NIfTI files for ``nnUNetv2_predict`` with its defaults. What differs from our model's way, to be told with the figures:

- A missing contrast is an array of zeros. nnU-Net as it comes is not trained with missing contrasts.
- nnU-Net reads arrays as they are stored and does not turn them into one orientation.
- Its label map is brought onto the grid of the truth by nearest neighbour; ours interpolates probabilities.
- A T1 on another grid than the T2 is brought there first, by NeonatalSeg's own alignment.

WORK/comparison.tsv has DSC by model, subject, cell and tissue; WORK/comparison.md the means side by side. ROBUSTNESS
is the --out folder of ``neonatalseg experiment robustness`` for MODEL with the same seed; without it only the peer's
figures are given.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks import nnunet_peer
from benchmarks.nnunet_peer import (
    CONFIGURATION,
    DATASET,
    FOLD,
    Budget,
    plan_command,
    predict_command,
    run,
    train_command,
)
from NeonatalSegLib.datasets.bids import Subject, find_subjects, read_table
from NeonatalSegLib.datasets.kinds import NEWBORN, kind_by_name
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.tables import markdown_table
from NeonatalSegLib.experiments.annotator.simulation import dsc_merged
from NeonatalSegLib.experiments.robustness.alterations import FACTORS, Alteration, altered, scaled
from NeonatalSegLib.experiments.robustness.matrix import CONTRASTS, Source, alterations, held_out, make_jobs
from NeonatalSegLib.experiments.robustness.report import read_earlier
from NeonatalSegLib.files.atomic import write_file
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import DEFAULT_MODEL, find_model
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.preprocessing import align, foreground
from NeonatalSegLib.scans.scan import Scan, load_scan
from NeonatalSegLib.tissues import PHYSIOLOGICAL, TISSUES

PEER = "nnU-Net"


def split_subjects(model: Model, data: Path) -> tuple[list[Subject], list[Subject]]:
    """The newborns on disk on which the model was trained, and those on which its weights were chosen.

    Raises:
        NeonatalSegError: one of them is also held out (in any session), is not in ``data``, or lacks a file.
    """
    facts = model.facts
    known = {s.name: s for s in find_subjects(data)}
    test = {name.split("_")[0] for name in facts.test_subjects}
    parts = []
    sides = {"training subjects": facts.training_subjects, "validation subjects": facts.validation_subjects}
    for key, listed in sides.items():
        names = [name for name in listed if kind_by_name(name) == NEWBORN]
        if both := sorted(n for n in names if n.split("_")[0] in test):
            raise NeonatalSegError(
                f"{both[0]} is among the {key} of the model {model.name} and among its test subjects: nothing that is "
                "trained on it can be evaluated on it. Expected each newborn on one side; correct the metadata."
            )
        if not names:
            raise NeonatalSegError(f"The model {model.name} states no {key}: it cannot be said what the peer may see.")
        if missing := [n for n in names if n not in known]:
            raise NeonatalSegError(
                f"{missing[0]} of the {key} of {model.name} is not in {data}: expected the data of its training."
            )
        parts.append([known[n] for n in names])
        for subject in parts[-1]:
            if None in (subject.t1, subject.t2, subject.labels):
                raise NeonatalSegError(
                    f"{subject.name} in {data} lacks T1w, T2w or *_dseg: the peer is given all three."
                )
    training, validation = parts
    if both := sorted({s.participant for s in training} & {s.participant for s in validation}):
        raise NeonatalSegError(
            f"{both[0]} is a training and a validation subject of {model.name}: expected one of them."
        )
    return training, validation


def write_dataset(training: Sequence[Subject], validation: Sequence[Subject], work: Path) -> Path:
    """Write nnU-Net's raw data set and the split of its only fold; returns the data set's folder.

    Raises:
        NeonatalSegError: there is one already.
    """
    folder, preprocessed = work / "raw" / DATASET, work / "preprocessed" / DATASET
    if folder.exists():
        raise NeonatalSegError(f"{folder} is there already: give another --work, or delete the folder.")
    part = work / "raw" / f".{DATASET}.part"
    shutil.rmtree(part, ignore_errors=True)
    for name in ("imagesTr", "labelsTr"):
        (part / name).mkdir(parents=True)
    for subject in (*training, *validation):
        assert subject.labels is not None  # split_subjects
        scan = load_scan(subject.t1, subject.t2, name=subject.name)
        write_channels(scan, part / "imagesTr", subject.name)
        labels = read_labels(subject.labels).image
        if Grid.of(labels).is_like(Grid.of(scan.reference)):
            labels.CopyInformation(scan.reference)  # nnU-Net compares headers to the last digit
        else:
            labels = sitk.Resample(labels, scan.reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        sitk.WriteImage(sitk.Cast(labels, sitk.sitkUInt8), str(part / "labelsTr" / f"{subject.name}.nii.gz"))
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background" if t.index == 0 else t.key: t.index for t in TISSUES},
        "numTraining": len(training) + len(validation),
        "file_ending": ".nii.gz",
    }
    (part / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    split = [{"train": [s.name for s in training], "val": [s.name for s in validation]}]
    preprocessed.mkdir(parents=True, exist_ok=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(split, indent=1), encoding="utf-8")
    os.replace(part, folder)
    return folder


def write_channels(scan: Scan, folder: Path, case: str) -> None:
    """T1 as channel 0 and T2 as channel 1 on the grid of the scan's reference; zeros for a contrast that is missing."""
    for channel, key in enumerate(("t1", "t2")):
        sitk.WriteImage(_on_reference(scan, key), str(folder / f"{case}_{channel:04d}.nii.gz"))


def _on_reference(scan: Scan, key: str) -> sitk.Image:
    image, reference = getattr(scan, key), scan.reference
    grid = Grid.of(reference)
    if image is None:
        return grid.image(np.zeros(grid.shape, np.float32))
    if Grid.of(image).is_like(grid):
        image = sitk.Image(image)
        image.CopyInformation(reference)
        return image
    transform, _, _ = align(scan, foreground(reference), trust_headers=False)
    return sitk.Resample(image, reference, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)


@lru_cache(maxsize=1)
def altered_case(source: Source, alteration: Alteration, seed: int) -> tuple[Scan, sitk.Image]:
    """The altered scan with both contrasts, and its truth, as in ``experiments/robustness/matrix.py``."""
    scan = load_scan(source.t1, source.t2, name=source.name, age_weeks=source.age_weeks)
    return altered(scan, alteration, seed), scaled(read_labels(source.labels).image, float(alteration.scale))


def alteration_of(job: Mapping[str, Any]) -> Alteration:
    return Alteration(**{name: job[name] for name in FACTORS})


def shown(scan: Scan, contrast: str) -> Scan:
    """The scan with the contrasts of a cell alone."""
    keys = CONTRASTS[contrast]
    return replace(scan, t1=scan.t1 if "t1" in keys else None, t2=scan.t2 if "t2" in keys else None)


def score_subject(
    source: Source, jobs: Sequence[Mapping[str, Any]], work: Path, device: str, processes: int
) -> list[dict[str, Any]]:
    """Predict every cell of one newborn and compare with its truth; a row a cell, ``dsc`` by class."""
    images, out = work / "cells" / source.name / "images", work / "cells" / source.name / "labels"
    shutil.rmtree(images.parent, ignore_errors=True)
    images.mkdir(parents=True)
    for number, job in enumerate(jobs):
        scan, _ = altered_case(source, alteration_of(job), job["seed"])
        write_channels(shown(scan, job["contrast"]), images, f"cell{number:05d}")
    run(predict_command(images, out, device, processes), work)
    rows = []
    for number, job in enumerate(jobs):
        _, truth = altered_case(source, alteration_of(job), job["seed"])
        label_map = sitk.ReadImage(str(out / f"cell{number:05d}.nii.gz"))
        dsc = dsc_onto_truth(label_map, truth, source.merged)
        rows.append({**job, "model": PEER, "dsc": {t.key: float(dsc[t.index]) for t in PHYSIOLOGICAL}})
    shutil.rmtree(images.parent)
    return rows


def dsc_onto_truth(label_map: sitk.Image, truth: sitk.Image, merged: Any = ()) -> np.ndarray:
    """DSC of each class [10] on the grid of the truth, to which the label map goes by nearest neighbour."""
    moved = sitk.Resample(label_map, truth, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    return dsc_merged(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(truth), merged)


def our_rows(folder: Path, jobs: Sequence[Mapping[str, Any]], seed: int, model: Model) -> list[dict[str, Any]]:
    """The rows of our model for the same cells, from the folder of its robustness matrix.

    Raises:
        NeonatalSegError: the folder holds none, those of another model or seed, or lacks a cell.
    """
    there = read_earlier(folder, {"seed": seed, "alterations": alterations.FORMAT}).model
    if there != model.name:
        raise NeonatalSegError(f"{folder} holds the matrix of the model {there}: expected that of {model.name}.")
    table = {
        (r["subject"], alteration_of(r), r["contrast"]): {
            t.key: float("nan") if r[t.key] == "n/a" else float(r[t.key]) for t in PHYSIOLOGICAL
        }
        for r in read_table(folder / "robustness.tsv")
        if r["part"] != "templates"
    }
    keys = [(job["subject"], alteration_of(job), job["contrast"]) for job in jobs]
    for subject, alteration, contrast in keys:
        if (subject, alteration, contrast) not in table:
            raise NeonatalSegError(
                f"{folder} has no figure for {subject}, {alteration.key}, {contrast}: evaluate with the same --sample "
                "and --seed."
            )
    return [{**job, "model": model.name, "dsc": table[key]} for job, key in zip(jobs, keys, strict=True)]


def write_tables(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], work: Path) -> list[Path]:
    """``comparison.tsv``, a row a subject, cell and model, and ``comparison.md``, the means over subjects."""
    tsv, page = work / "comparison.tsv", work / "comparison.md"
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["model", "subject", *FACTORS, "contrast", *(t.key for t in PHYSIOLOGICAL), "mean"])
    for row in rows:
        texts = ["n/a" if np.isnan(f) else f"{f:.4f}" for f in (*row["dsc"].values(), mean_dsc(row))]
        writer.writerow([row["model"], row["subject"], *(row[f] for f in FACTORS), row["contrast"], *texts])
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        cell = cells.setdefault((alteration_of(row).key, row["contrast"]), {})
        cell.setdefault(row["model"], []).append(mean_dsc(row))
    lines = [
        [alteration, contrast, *(f"{np.mean(cell[m]):.3f}" for m in models), str(len(cell[models[0]]))]
        for (alteration, contrast), cell in cells.items()
    ]
    means = [f"{np.mean([np.mean(cell[m]) for cell in cells.values() if m in cell]):.3f}" for m in models]
    lines.append(["mean of these cells", "", *means, ""])
    text = f"""# nnU-Net beside NeonatalSeg

Mean DSC over the eight tissues, mean over the held-out newborns; one training each. nnU-Net {facts["nnunetv2"]},
{CONFIGURATION}: {facts["epochs"]} epochs of {facts["iterations_per_epoch"]} steps in {facts["seconds"] / 60:.1f} of
{facts["minutes_allowed"]:g} minutes on {facts["device"]}. It got zeros for a missing contrast, and was not trained for
that.

{markdown_table(["Scan", "Contrast", *models, "Newborns"], lines)}
"""
    for file, content in ((tsv, table.getvalue()), (page, text)):
        write_file(file, partial(Path.write_text, data=content, encoding="utf-8", newline="\n"))
    return [tsv, page]


def mean_dsc(row: Mapping[str, Any]) -> float:
    """Mean over the tissues that the truth or the prediction holds."""
    return float(np.nanmean(list(row["dsc"].values())))


def prepare(given: argparse.Namespace) -> None:
    training, validation = split_subjects(find_model(given.model), given.data)
    folder = write_dataset(training, validation, given.work)
    print(f"{folder}: {len(training)} newborns to train on, {len(validation)} for validation")


def train(given: argparse.Namespace) -> None:
    command = train_command(given.minutes, given.device, given.iterations, given.validation_iterations)
    Budget(60 * given.minutes)  # a wrong limit is told before the preprocessing
    print(f"planning and preprocessing: {run(plan_command(given.processes), given.work):.0f} s", flush=True)
    print(f"training, with starting and ending: {run(command, given.work):.0f} s")


def refuse_known(names: Sequence[str], work: Path) -> None:
    """Nothing is scored that the peer was trained or validated on.

    Raises:
        NeonatalSegError: a newborn stands in the split of ``work``, in any session, or there is no split.
    """
    file = work / "preprocessed" / DATASET / "splits_final.json"
    try:
        split = json.loads(file.read_text(encoding="utf-8"))
        seen = {name.split("_")[0] for fold in split for part in fold.values() for name in part}
    except (OSError, ValueError, AttributeError) as error:
        raise NeonatalSegError(f"{file} is missing or broken: give prepare first, with the same --work.") from error
    if known := [name for name in names if name.split("_")[0] in seen]:
        raise NeonatalSegError(
            f"{known[0]} is to be scored, but the peer in {work} was trained with it: that folder belongs to another "
            "model. Prepare and train in another --work."
        )


def score(given: argparse.Namespace) -> None:
    model = find_model(given.model)
    sources = held_out(given.data, [], model)
    refuse_known([s.name for s in sources], given.work)
    results = given.work / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    file = results / f"fold_{FOLD}" / "training.json"
    if not file.is_file():
        raise NeonatalSegError(f"{file} is missing: the peer has not been trained in {given.work}. Give train first.")
    jobs = list(make_jobs(sources, "one-at-a-time", given.sample, given.seed).values())
    if given.cells:
        jobs = [job for job in jobs if alteration_of(job).key in given.cells.split(",")]
    ours = our_rows(given.ours, jobs, given.seed, model) if given.ours else []
    rows: list[dict[str, Any]] = []
    for source in sources:
        mine = [job for job in jobs if job["subject"] == source.name]
        rows += score_subject(source, mine, given.work, given.device, given.processes)
    for written in write_tables([*rows, *ours], json.loads(file.read_text(encoding="utf-8")), given.work):
        print(written)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("prepare", "train", "score"):
        step = steps.add_parser(name, parents=[nnunet_peer.make_parser()] if name == "train" else [])
        step.add_argument("--work", type=Path, required=True, help="folder of all that nnU-Net reads and writes")
        if name != "train":
            step.add_argument("--data", type=Path, required=True, help="BIDS folder with label maps")
            step.add_argument("--model", default=DEFAULT_MODEL, help="whose subjects are used")
        if name != "prepare":
            step.add_argument("--processes", type=int, default=3, help="of preprocessing and of writing")
    step.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    step.add_argument("--ours", type=Path, help="OUT of neonatalseg experiment robustness for this model")
    step.add_argument("--seed", type=int, default=0)
    step.add_argument("--sample", type=int, default=0, help="further cells of the full product, as there")
    step.add_argument("--cells", default="", help="these alterations alone, such as native,skull; default: all")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given = make_parser().parse_args(arguments)
    try:
        {"prepare": prepare, "train": train, "score": score}[given.step](given)
    except NeonatalSegError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
