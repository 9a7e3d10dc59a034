"""The paper's experiments in minutes, on drawn newborns: every step of the evening on the dHCP, before that evening.

The newborns lie in a folder as the release does (sessions, tables of ages, labels), one of them without labels and one
with a damaged image. From there on everything is as in the real experiment: reading, lists, preparation in several
processes, memory maps, processes that draw patches, training, evaluation of whole scans, tables, plots, pages, and a
second call that finds everything done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from NeonatalSegLib.datasets.split_files import read_split
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper.designs import JOBS
from NeonatalSegLib.experiments.paper.report import Preparation, run_experiment
from NeonatalSegLib.experiments.paper.settings import read_experiment
from NeonatalSegLib.files.atomic import write_file, write_text
from NeonatalSegLib.resources import resources_folder

DAMAGED = "sub-CC00000XX00_ses-1"
SPACING_MM = 2.0


def rehearse(
    out: str | Path,
    newborns: int = 14,
    config: str | Path | None = None,
    parallel: int = 1,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Draw a release into ``out/release`` and run all experiments on it into ``out``; returns the written files.

    Raises:
        NeonatalSegError: too few newborns for the settings, or what the experiments raise.
    """
    out = Path(out)
    settings = read_experiment(config or resources_folder() / "Experiments" / "rehearsal.json")
    split, transfer = settings.split, settings.transfer
    least = max(
        (split.train or 0) + split.more + split.validation + split.test,
        (transfer.source or 0) + transfer.source_test + transfer.target_train + (transfer.target_test or 0),
    )
    if newborns <= least:
        raise NeonatalSegError(f"The rehearsal needs more than {least} newborns, {newborns} were asked for.")
    release = draw_release(out / "release", newborns, report)
    preparation = Preparation(keep_going=True, processes=2)
    again = Preparation(out / "cache", keep_going=True)
    files = []
    for name in JOBS:
        report(f"--- {name}")
        command = f"neonatalseg experiment rehearsal --newborns {newborns} --out OUT   ({name})"
        files += run_experiment(
            name, release, settings, out,
            runs=1, parallel=parallel, preparation=preparation, command=command, report=report,
        )  # fmt: skip
    listed = replace(settings, splits=(read_split(out / "lists" / "baseline-run0.tsv"),))
    for what, given, folder in (("done already", settings, out), ("by its written list", listed, out / "by-list")):
        report(f"--- baseline once more, {what}, from the prepared arrays alone")
        run_experiment("baseline", None, given, folder, runs=1, preparation=again, report=report)
    report("Rehearsed: all of it.")
    return files


def draw_release(folder: Path, newborns: int, report: Callable[[str], None] = print) -> Path:
    """A folder laid out as the dHCP release, of newborns of 28 to 44 weeks; what is there already stays."""
    import SimpleITK as sitk

    from NeonatalSegLib.datasets.phantom import draw_newborn

    names = []
    for number in range(newborns + 1):  # and one without labels
        name, age = f"sub-CC{number:05d}XX{number:02d}", round(28 + 16 * number / newborns, 2)
        names.append(name)
        anat = folder / name / "ses-1" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        write_text(folder / name / f"{name}_sessions.tsv", f"session_id\tscan_age\n1\t{age}\n")
        files = {kind: anat / f"{name}_ses-1_{kind}.nii.gz" for kind in ("T2w", "T1w", "desc-drawem9_dseg")}
        if all(file.is_file() for kind, file in files.items() if kind != "desc-drawem9_dseg"):
            continue
        drawn = draw_newborn(age, number, spacing_mm=SPACING_MM)
        images = {"desc-drawem9_dseg": drawn.labels, "T1w": drawn.t1, "T2w": drawn.t2}
        if number == newborns:
            del images["desc-drawem9_dseg"]
        for kind, image in images.items():
            write_file(files[kind], lambda part, image=image: sitk.WriteImage(image, str(part)))  # type: ignore[misc]
        if f"{name}_ses-1" == DAMAGED:
            write_text(files["T1w"], "not an image")
        report(f"drawn: {name}, {age} weeks")
    write_text(folder / "participants.tsv", "participant_id\n" + "".join(f"{name}\n" for name in names))
    return folder
