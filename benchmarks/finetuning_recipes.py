"""Recipes of fine-tuning against each other: one scan annotated, others tested, and what the model's own kind loses.

python benchmarks/finetuning_recipes.py --fetal FETAL_CRL --alberts ALBERTS --out OUT [--cells CELLS.tsv]

Every cell (domain, recipe, percent of slices, seed) trains once and adds one row for each mix of old and new weights to
OUT/rows.tsv; cells with rows are passed over, so that the command goes on where it was ended. CELLS.tsv is read anew
before each cell. Tests are of the middle of each brain, 96 voxels each way, in one window; the source is a newborn
that training never saw.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.augmentation.randomisation import Randomisation, RandomisationSettings, Volume
from NeonatalSegLib.datasets.cache import prepare_phantom
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.experiments.annotator.domains import (
    DomainScan,
    prepare_domain,
    read_labelled,
    with_changed_contrast,
)
from NeonatalSegLib.experiments.annotator.simulation import reveal, to_plan
from NeonatalSegLib.finetuning.guard import labels_of, paint
from NeonatalSegLib.finetuning.loop import FineTuningRun
from NeonatalSegLib.finetuning.mixing import evaluate, mean_tissue_dsc, mixed, score_of
from NeonatalSegLib.finetuning.run import PHANTOMS, fully_labelled
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, central_part
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.torch_engine import faster_on_cpu
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.preprocessing import labels_on, prepare
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import UNKNOWN

WINDOW = 96  # voxels each way, of a test
GUARD_WINDOW = (64, 64, 64)
CPU = torch.device("cpu")
MIXES = (0.4, 1.0)
SOURCES = ("sub-ALBERT07", "sub-ALBERT16", "sub-ALBERT17")
FETAL_MERGED = ((2, 9), (0, 4))  # its labels have neither hippocampus nor the rest of the head
SMALL = {"patch": (48, 48, 48)}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {**SMALL, "steps": 120},
    "teacher": {**SMALL, "steps": 120, "teacher": 0.5},
    "distil": {**SMALL, "steps": 120, "distil": True},
    "both": {**SMALL, "steps": 120, "teacher": 0.5, "distil": True},
    "fast": {**SMALL, "steps": 120, "learning_rate": 1.5e-3},
    "fast-both": {**SMALL, "steps": 120, "learning_rate": 1.5e-3, "teacher": 0.5, "distil": True},
    "long-both": {**SMALL, "steps": 300, "teacher": 0.5, "distil": True},
}
for rate in (6e-4, 2e-3, 4e-3):
    RECIPES[f"short-{rate:g}"] = {**SMALL, "steps": 24, "learning_rate": rate}
    RECIPES[f"short-{rate:g}-distil"] = {**SMALL, "steps": 24, "learning_rate": rate, "distil": True}
ALL_CONTRASTS = RandomisationSettings(
    synthetic=1, hybrid=0, skull=0, tight=0, younger=0, motion=0, coarse=0, misaligned=0, drop_modality=0, moved=0
)  # fmt: skip
FIRST_CELLS = [
    ("fetal", "plain", 10, 0),
    ("fetal", "both", 10, 0),
    ("fetal", "plain", 100, 0),
    ("fetal", "fast-both", 10, 0),
    ("fetal", "long-both", 10, 0),
    ("fetal", "both", 10, 1),
    ("fetal", "plain", 10, 1),
]


class Guard(NamedTuple):
    """An image (2, z, y, x), the labels it was drawn from and what the old model says of it, both (z, y, x)."""

    image: np.ndarray
    labels: np.ndarray
    old: np.ndarray


class Bench:
    """What all cells share."""

    def __init__(self, fetal: Path, alberts: Path, out: Path) -> None:
        self.fetal, self.alberts, self.out = fetal, alberts, out
        self.domain, self.window = cache(self._domain), cache(self._window)
        self.source, self.guards = cache(self._source), cache(self._guards)
        self.model: Model = find_model("neonatal-v2")
        self.shape = self.model.network
        self.old = faster_on_cpu(self.model.load_network(), CPU)
        self.phantoms = [
            fully_labelled(f"p{n}", *prepare_phantom(n, self.model.spacing_mm)[1:]) for n in range(PHANTOMS)
        ]

    def _domain(self, name: str) -> dict[str, DomainScan]:
        """Prepared scans by name: fetal or contrast."""

        def pairs() -> list[Any]:
            if name == "fetal":
                weeks = range(28, 39, 2)
                return [
                    (
                        load_scan(t2=self.fetal / f"week-{w}_T2w.nii.gz", name=f"week-{w}", age_weeks=float(w)),
                        read_labels(self.fetal / f"week-{w}_dseg.nii.gz").image,
                    )
                    for w in weeks
                ]
            found = read_labelled(self.alberts, (*SOURCES, "sub-ALBERT10"))
            return [(with_changed_contrast(scan, n), truth) for n, (scan, truth) in enumerate(found)]

        scans = prepare_domain(self.out / name, pairs, Segmenter(self.model, "cpu"), name)
        return {scan.name: scan for scan in scans}

    def _window(self, domain: str, name: str) -> SparseCase:
        """The whole brain of a scan, for one window; its truth is held out."""
        scan = self.domain(domain)[name]
        return part_of_brain(scan, scan.labels)

    def _source(self, name: str, t2_alone: bool) -> SparseCase:
        """The middle of a newborn of the model's own kind."""
        ((scan, truth),) = read_labelled(self.alberts, (name,))
        prepared = prepare(scan, self.model.spacing_mm)
        image = prepared.array
        if t2_alone:
            image[0] = 0
        part = central_part(fully_labelled(name, image, labels_on(prepared.grid, truth)), (96, 96, 96))
        return replace(part, held_out=part.labels)

    def _guards(self, domain: str, annotated: str) -> dict[str, Guard]:
        """Images on which old and new model may be compared without any scan of the model's own kind."""
        drawn = central_part(self.phantoms[-1], GUARD_WINDOW)
        found = {"drawn": (drawn.image, drawn.labels)}
        scan, phantom = self.domain(domain)[annotated], self.phantoms[0]
        for key, image, labels in (
            ("contrasts", phantom.image, phantom.labels),
            ("own_contrasts", np.asarray(scan.image, np.float32), scan.prediction),
        ):
            volume = Volume.of(image, labels, self.model.spacing_mm)
            patch = Randomisation(ALL_CONTRASTS, self.model.spacing_mm, GUARD_WINDOW)(volume, 1, whole=32)
            whole = SparseCase("", patch.image.numpy(), patch.labels.numpy(), patch.labels.numpy())
            part = central_part(whole, GUARD_WINDOW)
            found[key] = (part.image, part.labels)
        painted = SparseCase("", paint(scan.prediction, phantom), scan.prediction, scan.prediction)
        part = central_part(painted, GUARD_WINDOW)
        found["own_painted"] = (part.image, part.labels)
        return {key: Guard(*pair, labels_of(self.old, pair[0], self.shape, CPU)) for key, pair in found.items()}

    def run(self, domain: str, recipe: str, percent: float, seed: int) -> list[dict[str, Any]]:
        """Train one cell; a row for each mix."""
        scans = self.domain(domain)
        names = sorted(scans)
        if domain == "fetal":
            annotated = f"week-{(34, 32, 36, 30, 34)[seed % 5]}"
        else:
            annotated = names[seed % len(names)]
        others = [n for n in names if n != annotated]
        tested = [
            others[i]
            for i in np.random.default_rng(seed).permutation(len(others))[: 1 if recipe.startswith("short") else 2]
        ]
        own = SOURCES[seed % 3] if domain == "fetal" else next(n for n in SOURCES if n != annotated)
        merged = FETAL_MERGED if domain == "fetal" else ()
        settings = FineTuningSettings.from_json({**RECIPES[recipe], "seed": seed, "merged": merged, "judge_every": 0})
        budget = BudgetSettings(
            amount=percent, unit="percent", per="scan", axis="axial" if percent >= 100 else "mixed",
            selection="equidistant", extent="brain", seed=seed,
        )  # fmt: skip
        plan = plan_slices([to_plan(scans[annotated])], budget)
        case = reveal(scans[annotated], plan.slices, settings.held_out, seed)
        began = time.perf_counter()
        run = FineTuningRun(
            self.old, self.shape, [case], settings, rehearsal=self.phantoms, before=None, device=CPU, report=tell,
            should_stop=lambda: False,
        )  # fmt: skip
        new, _ = run.train()
        seconds = time.perf_counter() - began
        (self.out / "weights").mkdir(exist_ok=True)
        torch.save(new.state_dict(), self.out / "weights" / f"{domain}-{recipe}-{percent:g}-{seed}.pt")
        nobody = np.where((case.labels == UNKNOWN) & (case.held_out == UNKNOWN), scans[annotated].labels, UNKNOWN)
        rest = part_of_brain(scans[annotated], nobody.astype(np.uint8))
        rows = []
        for mix in (0.0, *MIXES):
            network = mixed(self.old, new, mix)
            print(time.strftime("%H:%M:%S"), "mix", mix, flush=True)
            row: dict[str, Any] = {
                "domain": domain, "recipe": recipe, "percent": percent, "seed": seed, "mix": mix,
                "slices": len(plan.slices), "annotated": annotated, "seconds": round(seconds),
            }  # fmt: skip
            if percent < 100 and not recipe.startswith("short"):
                row["held_out"] = score_of(evaluate(network, self.shape, [case], merged))
            for n, name in enumerate(tested):
                row[f"test{n}"] = one_window(network, self.window(domain, name), merged)
            row["target"] = float(np.mean([row[f"test{n}"] for n in range(len(tested))]))
            if not recipe.startswith("short"):
                row["rest"] = one_window(network, rest, merged)
                row["source_t2"] = one_window(network, self.source(own, True), ())
            row["source"] = one_window(network, self.source(own, False), ())
            for key, guard in self.guards(domain, annotated).items():
                mine = labels_of(network, guard.image, self.shape, CPU)
                known = guard.labels != UNKNOWN
                row[f"agree_{key}"] = mean_tissue_dsc(dice_per_class(mine, guard.old))
                row[f"truth_{key}"] = mean_tissue_dsc(dice_per_class(mine[known], guard.labels[known]))
            rows.append(row)
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        return rows


def part_of_brain(scan: DomainScan, judged: np.ndarray) -> SparseCase:
    """The middle ``WINDOW`` voxels of a scan's brain, and of ``judged`` what lies in it."""
    places = np.argwhere((scan.labels != 0) & (scan.labels != 4))
    centre = (places.min(0) + places.max(0)) // 2
    sides = [min(WINDOW, n // 16 * 16) for n in scan.labels.shape]
    first = [int(min(max(c - w // 2, 0), n - w)) for c, w, n in zip(centre, sides, scan.labels.shape, strict=True)]
    box = tuple(slice(a, a + w) for a, w in zip(first, sides, strict=True))
    return SparseCase(scan.name, np.asarray(scan.image[(slice(None), *box)], np.float32), judged[box], judged[box])


def one_window(network: nn.Module, case: SparseCase, merged: Any) -> float:
    """Mean DSC over the tissues, of an image in one window."""
    return score_of(evaluate(network, Window(case.image.shape[1:], 16), [case], merged))  # type: ignore[arg-type]


class Window(NamedTuple):
    """Of network settings what a prediction in one window needs."""

    patch: tuple[int, ...]
    stride: int


def tell(stage: str, fraction: float, facts: Any) -> None:
    if stage == "train" and facts["step"] % 20 == 0:
        print(time.strftime("%H:%M:%S"), facts["step"], round(facts["loss"], 3), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fetal", type=Path, required=True)
    parser.add_argument("--alberts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", default="rows", help="name of the table, and of its list of cells")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table, wanted = given.out / f"{given.table}.tsv", given.out / f"{given.table}_cells.tsv"
    if not wanted.exists():
        wanted.write_text("\n".join("\t".join(map(str, cell)) for cell in FIRST_CELLS) + "\n", encoding="utf-8")
    bench = Bench(given.fetal, given.alberts, given.out)
    while (cell := next_cell(wanted, table)) is not None:
        print(time.strftime("%H:%M:%S"), cell, flush=True)
        add_rows(table, bench.run(*cell))


def next_cell(wanted: Path, table: Path) -> tuple[str, str, float, int] | None:
    """The first cell of the list that has no rows yet."""
    done = set()
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            done = {
                (r["domain"], r["recipe"], float(r["percent"]), int(r["seed"]))
                for r in csv.DictReader(file, delimiter="\t")
            }
    for line in wanted.read_text(encoding="utf-8").splitlines():
        if line.strip():
            domain, recipe, percent, seed = line.split()
            cell = (domain, recipe, float(percent), int(seed))
            if cell not in done:
                return cell
    return None


def add_rows(table: Path, rows: list[dict[str, Any]]) -> None:
    new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
