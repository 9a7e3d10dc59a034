"""The pool of heads on disk: drawn once, painted many times.

python -m NeonatalSegLib.brain_finder.pool --alberts DIR --templates DIR --heads DIR --out runs/finder/pool
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from NeonatalSegLib.brain_finder import heads
from NeonatalSegLib.brain_finder.heads import Composed, Head, Newborn

HELD_OUT_NEWBORNS = ("07", "16", "17", "10")  # three for tests, one for validation
HELD_OUT_HEAD = "adult-chris"
TIGHT = ("02", "09")  # ALBERTs without a rim, part of their outer fluid cut away: only as they are
SHARES = {"real": 0.40, "drawn": 0.20, "shells": 0.06, "as it is": 0.26, "own": 0.08}


def write(composed: Composed, path: Path) -> None:
    """One head as one file, not compressed; never half there."""
    part = path.with_suffix(".part.npz")
    np.savez(
        part, parts=composed.parts, guides=composed.guides, distance=composed.distance_mm, scale=composed.true_scale
    )
    os.replace(part, path)


def read(path: Path) -> Composed:
    with np.load(path) as data:
        return Composed(data["parts"], data["guides"], data["distance"], float(data["scale"]))


def newborns_of(
    alberts: Path, templates: Path, *, held_out: bool = False, spacing_mm: float = heads.GRID_MM
) -> list[Newborn]:
    """The newborns to train on (ALBERTs and templates), or the ones held out."""
    out = []
    for folder in sorted(alberts.glob("sub-*")):
        number, anat = folder.name[-2:], folder / "anat"
        if (number in HELD_OUT_NEWBORNS) == held_out:
            labels = (
                alberts / "derivatives" / "drawem" / folder.name / "anat" / f"{folder.name}_desc-drawem9_dseg.nii.gz"
            )
            t1, t2 = (anat / f"{folder.name}_{c}.nii.gz" for c in ("T1w", "T2w"))
            out.append(heads.load_newborn(number, t1, t2, labels, spacing_mm))
    for folder in [] if held_out else sorted(templates.glob("age-*")):
        t1, t2, labels = (folder / f"{folder.name}_{c}.nii.gz" for c in ("T1w", "T2w", "dseg"))
        out.append(heads.load_newborn(folder.name, t1, t2, labels))
    return out


def heads_of(folder: Path, *, held_out: bool = False) -> list[Head]:
    """The heads to train on, or the one held out."""
    names = sorted(p.name.removesuffix("_T1w.nii.gz") for p in folder.glob("*_T1w.nii.gz"))
    names = [n for n in names if (n == HELD_OUT_HEAD) == held_out]
    return [heads.load_head(n, folder / f"{n}_T1w.nii.gz", folder / f"{n}_desc-brain_mask.nii.gz") for n in names]


class Drawer:
    """Draws heads of all kinds; fits between heads and newborns are made once and kept."""

    def __init__(self, newborns: Sequence[Newborn], real: Sequence[Head]) -> None:
        self.newborns, self.real = list(newborns), list(real)
        self._fits: dict[tuple[str, str], object] = {}

    def draw(self, rng: np.random.Generator, kind: str | None = None) -> Composed:
        kind = kind or str(rng.choice(list(SHARES), p=list(SHARES.values())))
        whole = [n for n in self.newborns if n.name not in TIGHT]
        newborn = whole[rng.integers(len(whole))]
        head = self.real[rng.integers(len(self.real))]
        if kind == "own":
            return heads.own_brain(head, rng)
        if kind == "as it is":
            return heads.as_it_is(self.newborns[rng.integers(len(self.newborns))], rng)
        if kind == "drawn":
            return heads.drawn_around(newborn, rng)
        if kind == "shells":
            return heads.shells_around(newborn, rng)
        key = (newborn.name, head.name)
        if key not in self._fits:
            self._fits[key] = heads.fit_head(head, newborn)
        return heads.head_around(newborn, head, self._fits[key], rng)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("alberts", "templates", "heads", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    drawer = Drawer(newborns_of(options.alberts, options.templates), heads_of(options.heads))
    for number in range(options.count):
        path = options.out / f"head-{number:05d}.npz"
        if not path.exists():
            write(drawer.draw(np.random.default_rng([options.seed, number])), path)
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
