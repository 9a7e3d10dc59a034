"""The hammer: two programs at once, kills, a full disk, and files with mistakes in them (on POSIX systems).

    python benchmarks/faults.py [--kills 500] [--tries 20] [--mutations 300] [--seed 0] [--folder FOLDER]

Prints the tables of docs/reliability.md. Kills are spread over the scenes, with two writers in half of them; ``tries``
is how often the disk is filled under each command. A kill does not empty the system's cache as a power cut does: the
order of writing and syncing, on which that case rests, is tested in Testing/test_annotation.py.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fault_disks import Tries, fill
from benchmarks.fault_kills import SCENES, kill_once
from benchmarks.fault_mutations import mutations

KILLS_PER_FOLDER = 25


@dataclass
class Kills:
    """What came of the kills of one scene; ``wrong`` must be empty. ``ended``: works that had ended before a kill."""

    one_writer: int = 0
    two_writers: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)


def kills(number: int, folder: Path, seed: int = 0) -> dict[str, Kills]:
    """So many kills, spread over the scenes, on new files from time to time."""
    chance = random.Random(seed)
    figures = {name: Kills() for name in SCENES}
    for place, name in enumerate(SCENES):
        share = number // len(SCENES) + (place < number % len(SCENES))
        scene = None
        for at in range(share):
            if at % KILLS_PER_FOLDER == 0:
                root = folder / f"{place}-{at}"
                scene = SCENES[name](root)
            writers = 1 + at % 2
            ended, wrong = kill_once(scene, chance, writers)
            figures[name].ended += ended
            figures[name].one_writer += writers == 1
            figures[name].two_writers += writers == 2
            figures[name].wrong += [f"{name}, kill {at}, {writers} writers: {text}" for text in wrong]
        print("\n".join([f"{name}: {share} kills", *figures[name].wrong]), file=sys.stderr, flush=True)
    return figures


def kills_table(figures: dict[str, Kills]) -> str:
    heads = ["Killed in the middle of", "Kills, one writer", "Kills, two writers", "Works ended before", "Lost or torn"]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {k.one_writer} | {k.two_writers} | {k.ended} | {len(k.wrong)} |" for name, k in figures.items()
    ]
    return "\n".join(lines)


def disks_table(found: dict[str, Tries]) -> str:
    lines = ["| Command | Tries | Said that it failed | Old file torn, or a message untrue |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {n} | {t.tries} | {t.told} | {len(t.wrong)} |" for n, t in found.items())])


def mutations_table(found: dict) -> str:
    lines = ["| Mistakes in | Opened | Refused in words | Traceback, death, or over 1 GB |", "|---|---:|---:|---:|"]
    rows = [f"| {kind} | {f['opened']} | {f['refused']} | {len(f['wrong'])} |" for kind, f in found.items()]
    return "\n".join([*lines, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default the system's temporary folder")
    arguments = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, started = Path(name), time.monotonic()
        if arguments.kills:
            figures = kills(arguments.kills, folder / "kills", arguments.seed)
            wrong += [text for k in figures.values() for text in k.wrong]
            print(f"{kills_table(figures)}\n\n{time.monotonic() - started:.0f} s\n", flush=True)
        if arguments.tries:
            how, full = fill(arguments.tries, folder / "full", arguments.seed)
            wrong += [text for tries in full.values() for text in tries.wrong]
            print(f"Disk: {how}\n\n{disks_table(full)}\n", flush=True)
        if arguments.mutations:
            found = mutations(arguments.mutations, folder / "mutations", arguments.seed)
            wrong += [text for f in found.values() for text in f["wrong"]]  # type: ignore[union-attr]
            print(f"{mutations_table(found)}\n", flush=True)
    print("\n".join(wrong) or "Nothing was lost, torn or let in.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
