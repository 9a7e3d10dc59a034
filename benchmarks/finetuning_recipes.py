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
from typing import Any

import numpy as np
import torch
from torch import nn

from NeonatalSegLib.annotation.plan import BudgetSettings, PlannedSlice
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.datasets.cache import prepare_phantom
from NeonatalSegLib.evaluation.metrics import dice_per_class
from NeonatalSegLib.experiments.annotator.domains import (
    DomainScan,
    prepare_domain,
    read_labelled,
    with_changed_contrast,
)
from NeonatalSegLib.experiments.annotator.simulation import reveal, to_plan
from NeonatalSegLib.finetuning.guard import agreement, kept, painted_guard
from NeonatalSegLib.finetuning.loop import SOURCE_TOLERANCE, FineTuningRun
from NeonatalSegLib.finetuning.mixing import evaluate, mixed, score_of
from NeonatalSegLib.finetuning.run import PHANTOMS, fully_labelled
from NeonatalSegLib.finetuning.settings import RECIPES as PROMISED
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, central_part
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.cpu_form import faster_on_cpu
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.openvino_engine import OpenVINOEngine
from NeonatalSegLib.networks.openvino_export import exported
from NeonatalSegLib.networks.sliding_window import Engine, predict_windows
from NeonatalSegLib.scans.labels import read_labels
from NeonatalSegLib.scans.preprocessing import labels_on, prepare
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.scans.way_back import most_probable
from NeonatalSegLib.segmentation.segmenter import Segmenter, entropy
from NeonatalSegLib.tissues import UNKNOWN

WINDOW = 96  # voxels each way, of a test
CPU = torch.device("cpu")
MIXES = (0.4, 0.7, 1.0)
SOURCES = ("sub-ALBERT07", "sub-ALBERT16", "sub-ALBERT17")
MERGED = {"fetal": ((2, 9), (0, 4)), "contrast": ()}  # the atlas has neither hippocampus nor the rest of the head
FOR_EVERYTHING = PROMISED["everything"]
ROUNDS = 3  # of annotation and fine-tuning, in the recipes of that name
ACCEPTED = 0.7  # share of the new weights by which the next slices are chosen, where every round begins anew
SMALL = {"patch": (48, 48, 48)}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {**SMALL, "steps": 120},
    "fast": {**SMALL, "steps": 120, "learning_rate": 1.5e-3},
    "long": {**SMALL, "steps": 300},
    "long-teacher": {**SMALL, "steps": 300, "teacher": 0.5},
    "long-distil": {**SMALL, "steps": 300, "distil": True},
    "long-both": {**SMALL, "steps": 300, "teacher": 0.5, "distil": True},
    "long-fast": {**SMALL, "steps": 300, "learning_rate": 1.5e-3},
    "longest": {**SMALL, "steps": 600},
    "wide": {"patch": (64, 64, 64), "steps": 150},
    "rounds": {**SMALL, "steps": 100},  # each goes on from the weights of the one before
}
RECIPES["two-scans"] = RECIPES["long-fast"]  # half of the slices each
RECIPES["rounds-anew"] = RECIPES["long-fast"]  # each begins from the old model, as the panel and the command do
RECIPES |= {  # the defaults, and slices chosen in other ways
    f"long-fast-{choice}": RECIPES["long-fast"] for choice in ("uncertainty", "foreground-random")
}
FIRST_CELLS = [("fetal", "long", 10, 0), ("fetal", "long", 100, 0), ("fetal", "long-teacher", 10, 0)]


class Bench:
    """What all cells share."""

    def __init__(self, fetal: Path, alberts: Path, out: Path, model: str | None) -> None:
        self.fetal, self.alberts, self.out = fetal, alberts, out
        self.domain, self.window = cache(self._domain), cache(self._window)
        self.source = cache(self._source)
        self.model: Model = find_model(model)
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

    def _source(self, name: str) -> SparseCase:
        """The middle of a newborn of the model's own kind."""
        ((scan, truth),) = read_labelled(self.alberts, (name,))
        prepared = prepare(scan, self.model.spacing_mm)
        part = central_part(fully_labelled(name, prepared.array, labels_on(prepared.grid, truth)), (96, 96, 96))
        return replace(part, held_out=part.labels)

    def run(self, domain: str, recipe: str, percent: float, seed: int) -> list[dict[str, Any]]:
        """Train one cell; a row for each mix."""
        scans = self.domain(domain)
        names = sorted(scans)
        if domain == "fetal":
            annotated = f"week-{(34, 32, 36, 30, 34)[seed % 5]}"
        else:
            annotated = names[seed % len(names)]
        others = [n for n in names if n != annotated]
        order = [others[i] for i in np.random.default_rng(seed).permutation(len(others))]
        tested, known = order[:2], [annotated, *(order[2:3] if recipe == "two-scans" else ())]
        own = SOURCES[seed % 3] if domain == "fetal" else next(n for n in SOURCES if n != annotated)
        settings = FineTuningSettings.from_json(
            {**RECIPES[recipe], "seed": seed, "merged": MERGED[domain], "judge_every": 0}
        )
        rounds = ROUNDS if recipe.startswith("rounds") else 1
        first = recipe.removeprefix("long-fast-") if recipe.startswith("long-fast-") else "equidistant"
        chosen: list[PlannedSlice] = []
        new, seconds, rows = self.old, 0.0, []
        for number in range(1, rounds + 1):
            budget = BudgetSettings(
                amount=percent / rounds / len(known), unit="percent", per="scan",
                axis="axial" if percent >= 100 else "mixed", selection=first if number == 1 else "uncertainty",
                extent="brain", seed=seed, exclude=tuple(s.key for s in chosen),
            )  # fmt: skip
            by = mixed(self.old, new, ACCEPTED) if recipe == "rounds-anew" else new
            seen = [scans[n] if number == 1 else seen_by(by, scans[n], self.shape) for n in known]
            chosen += plan_slices([to_plan(one) for one in seen], budget).slices
            cases = [
                reveal(scans[n], [s for s in chosen if s.scan == n], settings.held_out, seed) for n in known
            ]  # fmt: skip
            began = time.perf_counter()
            run = FineTuningRun(
                self.old if recipe == "rounds-anew" else new, self.shape, cases, settings, rehearsal=self.phantoms,
                before=None, device=CPU, report=tell, should_stop=lambda: False,
            )  # fmt: skip
            new, _ = run.train()
            seconds += time.perf_counter() - began
            (self.out / "weights").mkdir(exist_ok=True)
            torch.save(new.state_dict(), self.out / "weights" / f"{domain}-{recipe}-{percent:g}-{seed}-{number}.pt")
            common = {
                "domain": domain, "recipe": recipe, "percent": percent, "seed": seed, "round": number,
                "slices": len(chosen), "annotated": "+".join(known), "seconds": round(seconds),
            }  # fmt: skip
            mixes = (0.0, *MIXES) if number == rounds else (MIXES[-1],)
            rows += [{**common, **row} for row in self.tested(domain, cases[0], new, mixes, tested, own)]
        return rows

    def tested(
        self, domain: str, case: SparseCase, new: nn.Module, mixes: tuple[float, ...], others: list[str], own: str
    ) -> list[dict[str, Any]]:
        """What each mix of old and new weights is worth: on the annotated scan, on others, on the model's own kind."""
        annotated, merged = self.domain(domain)[case.name], MERGED[domain]
        nobody = np.where((case.labels == UNKNOWN) & (case.held_out == UNKNOWN), annotated.labels, UNKNOWN)
        rest = part_of_brain(annotated, nobody.astype(np.uint8))
        guard = painted_guard(self.old, self.shape, case, self.phantoms[-1], CPU)
        assert guard is not None
        few = np.mean(rest.held_out == UNKNOWN) < 0.5
        allowed = self.allowed(new, guard)
        rows = []
        for mix in sorted({*mixes, allowed} if 0.0 in mixes else mixes):
            network = mixed(self.old, new, mix)
            row: dict[str, Any] = {"mix": mix, "for_everything": mix == allowed}
            # All slices held out are a fifth of the scan: too long to judge.
            row["held_out"] = score_of(evaluate(network, self.shape, [case], merged)) if few else ""
            engine = OpenVINOEngine(*exported(network, self.shape), "fp32", threads=1)
            for n, name in enumerate(others):
                row[f"test{n}"] = one_window(engine, self.window(domain, name), merged)
            row["target"] = float(np.mean([row[f"test{n}"] for n in range(len(others))]))
            row["rest"] = one_window(engine, rest, merged) if few else ""
            row["source"] = one_window(engine, self.source(own), ())
            row["agreement"] = agreement(network, guard, self.shape, CPU)
            row["kept"] = kept(row["agreement"])
            rows.append(row)
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        return rows

    def allowed(self, new: nn.Module, guard: SparseCase) -> float:
        """The mix that a fine-tuning "for everything" would take: the largest that the guard allows, or the least."""
        shares = FOR_EVERYTHING.mixes
        lost = [1 - kept(agreement(mixed(self.old, new, share), guard, self.shape, CPU)) for share in shares]
        return max([a for a, one in zip(shares, lost, strict=True) if one <= SOURCE_TOLERANCE] or [min(shares)])


def seen_by(network: nn.Module, scan: DomainScan, shape: NetworkSettings) -> DomainScan:
    """The scan with what a network makes of it, to choose the next slices by."""
    engine = OpenVINOEngine(*exported(network, shape), "fp32", threads=1)
    found, _ = predict_windows(engine, np.asarray(scan.image, np.float32), shape.patch, shape.stride)
    return replace(scan, prediction=most_probable(found), uncertainty=entropy(found, axis=0))


def part_of_brain(scan: DomainScan, judged: np.ndarray) -> SparseCase:
    """The middle ``WINDOW`` voxels of a scan's brain, and of ``judged`` what lies in it."""
    places = np.argwhere((scan.labels != 0) & (scan.labels != 4))
    centre = (places.min(0) + places.max(0)) // 2
    sides = [min(WINDOW, n // 16 * 16) for n in scan.labels.shape]
    first = [int(min(max(c - w // 2, 0), n - w)) for c, w, n in zip(centre, sides, scan.labels.shape, strict=True)]
    box = tuple(slice(a, a + w) for a, w in zip(first, sides, strict=True))
    return SparseCase(scan.name, np.asarray(scan.image[(slice(None), *box)], np.float32), judged[box], judged[box])


def one_window(engine: Engine, case: SparseCase, merged: Any) -> float:
    """Mean DSC over the tissues, of an image in one window."""
    found, _ = predict_windows(engine, np.asarray(case.image, np.float32), case.image.shape[1:], 16)
    names = np.arange(256, dtype=np.uint8)
    for first, *others in merged:
        names[others] = first
    known = case.held_out != UNKNOWN
    truth = names[case.held_out[known]]
    return score_of(dice_per_class(names[found.argmax(0)[known]], truth))


def tell(stage: str, fraction: float, facts: Any) -> None:
    if stage == "train" and facts["step"] % 20 == 0:
        print(time.strftime("%H:%M:%S"), facts["step"], round(facts["loss"], 3), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fetal", type=Path, required=True)
    parser.add_argument("--alberts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", default="rows", help="name of the table, and of its list of cells")
    parser.add_argument("--model", help="name of the old model; default: the one that is shipped")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table, wanted = given.out / f"{given.table}.tsv", given.out / f"{given.table}_cells.tsv"
    if not wanted.exists():
        wanted.write_text("\n".join("\t".join(map(str, cell)) for cell in FIRST_CELLS) + "\n", encoding="utf-8")
    bench = Bench(given.fetal, given.alberts, given.out, given.model)
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
