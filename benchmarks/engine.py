"""The compute process: first and second Segment, cancel, many requests in a row, a study against single calls.

    python benchmarks/engine.py --data ../shared/data/alberts [--requests 50] [--study]

Real worker, real scans. "everything but the network" is what a user waits for besides the network once the model is
warm. ``--study`` also times ``neonatalseg batch`` over all subjects against one ``neonatalseg segment`` for each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from NeonatalSegLib.datasets.bids import find_subjects
from NeonatalSegLib.engine import Client

SUBJECT = "sub-ALBERT07"


def stages(client: Client, t1: Path, t2: Path) -> dict[str, float]:
    """Seconds per stage of one request, and the whole as its user sees it."""
    started = time.perf_counter()
    request = client.segment(t1=t1, t2=t2)
    times = dict(request.result(600)["times_s"])
    request.release()
    return {**times, "whole": time.perf_counter() - started}


def first_and_second(client: Client, t1: Path, t2: Path) -> None:
    started = time.perf_counter()
    hello = client.request("hello").result(120)
    print(f"start to ready (hello answered, torch and MONAI imported): {time.perf_counter() - started:.1f} s")
    print(f"device: {hello['devices'][0]['text']}\n")
    first, second = stages(client, t1, t2), stages(client, t1, t2)
    print("| stage | first, s | second, s |\n|---|---|---|")
    for stage in first:
        print(f"| {stage} | {first[stage]:.2f} | {second.get(stage, 0.0):.2f} |")
    print(f"| everything but the network | {first['whole'] - first['network']:.2f} ", end="")
    print(f"| {second['whole'] - second['network']:.2f} |\n", flush=True)


def cancelled(client: Client, t1: Path, t2: Path, times: int = 5) -> None:
    """Cancel while the network runs; longest of a few."""
    longest = 0.0
    for _ in range(times):
        request = client.segment(t1=t1, t2=t2)
        while not any(event.get("stage") == "network" for event in request.poll()):
            time.sleep(0.01)
        started = time.perf_counter()
        request.cancel()
        request.wait(30)
        longest = max(longest, time.perf_counter() - started)
        request.release()
    print(f"cancel in the network to idle, longest of {times}: {longest:.2f} s\n", flush=True)


def many(client: Client, t1: Path, t2: Path, requests: int) -> None:
    """Memory of the worker after the tenth and the last of many requests, and files left."""
    sizes = []
    for _ in range(requests):
        stages(client, t1, t2)
        sizes.append(psutil.Process(client.worker_pid).memory_info().rss / 2**20)
    early = max(sizes[:10])
    print(
        f"{requests} requests: worker {early:.0f} MB (largest of the first ten), {sizes[-1]:.0f} MB after the last ",
        end="",
    )
    print(f"({100 * (sizes[-1] / early - 1):+.1f} %)\n", flush=True)


def study(data: Path) -> None:
    """One batch call against single calls, whole processes."""
    command = [sys.executable, "-m", "NeonatalSegLib.cli"]
    subjects = find_subjects(data)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([*command, "batch", "--bids", str(data), "--out", f"{folder}/batch"], check=True)
        together = time.perf_counter() - started
        started = time.perf_counter()
        for subject in subjects:
            scan = ["segment", "--t1", str(subject.t1), "--t2", str(subject.t2), "--out", f"{folder}/{subject.name}"]
            subprocess.run([*command, *scan], check=True, stdout=subprocess.DEVNULL)
        single = time.perf_counter() - started
    print(f"{len(subjects)} scans: one batch call {together:.0f} s, single calls {single:.0f} s ", end="")
    print(f"(ratio {together / single:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--study", action="store_true")
    arguments = parser.parse_args()
    anat = arguments.data.resolve() / SUBJECT / "anat"
    t1, t2 = anat / f"{SUBJECT}_T1w.nii.gz", anat / f"{SUBJECT}_T2w.nii.gz"
    with Client() as client:
        first_and_second(client, t1, t2)
        many(client, t1, t2, arguments.requests)
        cancelled(client, t1, t2)
    if arguments.study:
        study(arguments.data)


if __name__ == "__main__":
    main()
