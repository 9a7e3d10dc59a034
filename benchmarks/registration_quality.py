"""How well T1 and T2 of one newborn agree, and those of two: the figures behind preprocessing.MIN_AGREEMENT.

    python benchmarks/registration_quality.py --data ../shared/data/alberts [--pairs 40]

Pairs of two newborns are registered first, as ``segment`` would do.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import SimpleITK as sitk

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.scans.preprocessing import MIN_AGREEMENT, foreground
from NeonatalSegLib.scans.registration import agreement, register_rigid
from NeonatalSegLib.scans.scan import load_scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=40, help="pairs of two newborns, drawn with a fixed seed")
    arguments = parser.parse_args()
    scans = [load_scan(s.t1, s.t2, name=s.name) for s in find_subjects(arguments.data) if s.t1 and s.t2]
    same = [agreement(s.t2, s.t1, sitk.Transform(), foreground(s.t2)) for s in scans]
    others = [(a, b) for a in scans for b in scans if a is not b]
    mixed = []
    for fixed, moving in random.Random(0).sample(others, min(arguments.pairs, len(others))):
        mask = foreground(fixed.t2)
        before = agreement(fixed.t2, moving.t1, sitk.Transform(), mask)
        found = register_rigid(fixed.t2, moving.t1, mask)
        mixed.append(max(before, agreement(fixed.t2, moving.t1, found, mask)))
    print(f"one newborn,  {len(same)} pairs: {min(same):.3f} to {max(same):.3f}")
    print(f"two newborns, {len(mixed)} pairs: {min(mixed):.3f} to {max(mixed):.3f}")
    print(f"threshold: {MIN_AGREEMENT}")


if __name__ == "__main__":
    main()
