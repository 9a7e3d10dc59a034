"""Time and memory of whole ``neonatalseg`` processes: help, one ALBERT scan, one scan of dHCP's size.

    python benchmarks/speed.py --data ../shared/data/alberts [--runs 3]

The dHCP-sized scan (290 x 290 x 203 at 0.5 mm) is an ALBERT resampled. Peak memory is that of the process itself as
the operating system accounts it (POSIX only).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import SimpleITK as sitk

SUBJECT = "sub-ALBERT07"
DHCP_SIZE, DHCP_SPACING_MM = (290, 290, 203), 0.5


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory (GB) of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    return time.perf_counter() - started, usage.ru_maxrss / unit


def like_dhcp(source: Path, target: Path) -> Path:
    """The image resampled to dHCP's grid, around the same centre."""
    image = sitk.ReadImage(str(source))
    centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    half = [(n - 1) / 2 * DHCP_SPACING_MM for n in DHCP_SIZE]
    origin = [c - h for c, h in zip(centre, half, strict=True)]
    grid = sitk.Image(DHCP_SIZE, sitk.sitkUInt8)
    grid.SetSpacing((DHCP_SPACING_MM,) * 3)
    grid.SetOrigin(origin)
    sitk.WriteImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkInt16), str(target))
    return target


def report(name: str, command: list[str], runs: int, out: Path | None) -> None:
    """Print one row: median seconds, median memory, network's seconds of the last run."""
    times, memory = zip(*(measure(command) for _ in range(runs)), strict=True)
    network = ""
    if out:
        facts = json.loads(next(out.glob("*_dseg.json")).read_text(encoding="utf-8"))
        network = f"{facts['SecondsPerStage']['network']:.1f}"
    print(f"| {name} | {statistics.median(times):.1f} | {network} | {statistics.median(memory):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    anat = arguments.data / SUBJECT / "anat"
    command = [sys.executable, "-m", "NeonatalSegLib.cli"]
    print("| whole process | seconds (median) | of these network | peak memory, GB |\n|---|---|---|---|")
    report("`neonatalseg --help`", [*command, "--help"], arguments.runs, None)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("ALBERT, 117x159x126 at 0.86 mm", None), ("dHCP size, 290x290x203 at 0.5 mm", like_dhcp)):
            files = []
            for contrast in ("T1w", "T2w"):
                source = anat / f"{SUBJECT}_{contrast}.nii.gz"
                files.append(make(source, Path(folder) / source.name) if make else source)
            out = Path(folder) / f"out-{bool(make)}"
            scan = ["segment", "--t1", str(files[0]), "--t2", str(files[1]), "--out", str(out)]
            report(name, [*command, *scan], arguments.runs, out)


if __name__ == "__main__":
    main()
