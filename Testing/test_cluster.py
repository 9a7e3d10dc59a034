"""A study on a real scheduler and real workers: kills, full disks, memory, lost connections. The tests go in order."""

from __future__ import annotations

import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dask_processes import DaskProcesses, dask_processes
from tiny_models import exported_model

from NeonatalSegLib.clusters import SlurmJobs, Workers, slurm_cluster
from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.segmentation.batch import StudyResult, run_study
from NeonatalSegLib.segmentation.device import gpu_of_worker
from NeonatalSegLib.segmentation.study_scans import StudyScan
from NeonatalSegLib.segmentation.workers import StudyWorkers

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stops and limits processes")
Study = Callable[..., StudyResult]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return exported_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def t2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_newborn(tmp_path_factory.mktemp("scan"), seed=7, spacing_mm=3.0)["t2"]


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with dask_processes(tmp_path_factory.mktemp("dask") / "elsewhere", workers=2) as processes:
        yield processes


@pytest.fixture
def lines() -> list[str]:
    """What was told, line by line."""
    return []


@pytest.fixture
def study(model: Model, t2: Path, dask: DaskProcesses, tmp_path: Path, lines: list[str]) -> Study:
    """Segments so many scans (or these) at the scheduler; ``at_first`` is called when the first has ended."""

    def run(scans: int | list[StudyScan], at_first: Callable[[], object] = lambda: None) -> StudyResult:
        def report(line: str) -> None:
            lines.append(line)
            if line.startswith("[1/"):
                at_first()

        wanted = scans_of(t2, scans) if isinstance(scans, int) else scans
        segmenters = StudyWorkers(Workers(scheduler=dask.address), model.folder, "cpu")
        return run_study(segmenters, wanted, tmp_path / "out", report=report)

    return run


def scans_of(t2: Path, number: int) -> list[StudyScan]:
    return [StudyScan(f"scan{n}", None, t2, 40.0, Path(f"scan{n}"), f"scan{n}") for n in range(number)]


def rows(result: StudyResult) -> list[str]:
    assert result.table is not None
    return [line.split("\t")[0] for line in result.table.read_text(encoding="utf-8").splitlines()[1:]]


def hidden(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.name != ".bidsignore"]


def test_failures_are_told_per_scan_and_the_rest_is_done(study: Study, t2: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"broken")
    scans = [*scans_of(t2, 2), StudyScan("bad", None, broken, None, Path("bad"), "bad")]
    first = study(scans)
    assert (sorted(first.done), list(first.failed), first.exit_status) == (["scan0", "scan1"], ["bad"], 3)
    assert "broken.nii.gz" in first.failed["bad"] and rows(first) == ["scan0", "scan1"]
    again = study(scans)
    assert (again.skipped, list(again.failed)) == (["scan0", "scan1"], ["bad"])
    assert hidden(tmp_path / "out") == []


def test_a_full_disk_on_one_worker_loses_no_scan(
    study: Study, dask: DaskProcesses, tmp_path: Path, lines: list[str]
) -> None:
    process = dask.workers[0].pid
    before = resource.prlimit(process, resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    try:
        result = study(2)
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
    assert (sorted(result.done), result.failed) == (["scan0", "scan1"], {})
    assert any("could not be written" in line and "tried once more" in line for line in lines)
    assert hidden(tmp_path / "out") == []


def test_a_worker_out_of_memory_loses_no_scan(
    study: Study, dask: DaskProcesses, tmp_path: Path, lines: list[str]
) -> None:
    process = dask.workers[0].pid
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        pytest.skip("only Linux says how much address space a process has")
    used = next(
        int(line.split()[1]) for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmSize")
    )
    before = resource.prlimit(process, resource.RLIMIT_AS, (used * 1024 + 2_000_000, resource.RLIM_INFINITY))
    try:
        result = study(2)
    finally:
        resource.prlimit(process, resource.RLIMIT_AS, before)
    assert (sorted(result.done), result.failed) == (["scan0", "scan1"], {})
    assert any("memory" in line.lower() and "tried once more" in line for line in lines)


def test_a_worker_that_does_not_see_the_folder_says_so(study: Study, tmp_path: Path) -> None:
    result = study(6, at_first=lambda: [path.unlink() for path in (tmp_path / "out").glob(".neonatalseg-running-*")])
    assert len(result.done) >= 1 and result.exit_status == 3
    assert all("on a drive that all share" in why for why in result.failed.values())


def test_a_worker_killed_in_the_middle_loses_no_scan(study: Study, dask: DaskProcesses, tmp_path: Path) -> None:
    dask.workers[0].send_signal(signal.SIGSTOP)  # so that it has scans in hand when it is killed
    result = study(3, at_first=lambda: dask.kill_worker(0))
    assert (sorted(result.done), result.failed) == (["scan0", "scan1", "scan2"], {})
    assert rows(result) == sorted(result.done)


def test_a_scan_that_ends_its_workers_is_told(study: Study, dask: DaskProcesses) -> None:
    dask.add_worker()
    dask.wait()
    with distributed.Client(dask.address) as client:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    dask.workers[0].send_signal(signal.SIGSTOP)
    result = study(3, at_first=lambda: dask.kill_worker(0))
    assert result.exit_status == 3 and len(result.done) + len(result.failed) == 3
    assert all("out of memory?" in why for why in result.failed.values())
    assert sorted(study(3).done) == sorted(result.failed)


def test_a_scheduler_that_is_started_again_is_found_again(
    study: Study, dask: DaskProcesses, tmp_path: Path, lines: list[str]
) -> None:
    stamps: dict[Path, int] = {}

    def restart() -> None:
        stamps.update({path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*_dseg.nii.gz")})
        dask.kill_scheduler()
        dask.start_scheduler()
        dask.add_worker()

    result = study(3, at_first=restart)
    assert (sorted(result.done), result.failed) == (["scan0", "scan1", "scan2"], {})
    assert any("waiting for it" in line for line in lines)
    assert stamps and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_scheduler_that_does_not_answer_is_told(model: Model, t2: Path, tmp_path: Path) -> None:
    import dask

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
            pytest.raises(NeonatalSegError, match=f"{address} does not answer"),
        ):
            segmenters = StudyWorkers(Workers(scheduler=address), model.folder, "cpu")
            run_study(segmenters, scans_of(t2, 1), tmp_path / "out", report=lambda _: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_jobs_of_slurm_ask_for_what_was_asked() -> None:
    pytest.importorskip("dask_jobqueue")
    wanted = SlurmJobs.of_text("partition=gpu, gpus=8,account=brains,cpus=6,memory=24GB,time=02:00:00")
    assert wanted.number == 8
    with slurm_cluster(wanted) as cluster:
        script = cluster.job_script().splitlines()
    for line in ("-p gpu", "-A brains", "--cpus-per-task=6", "-t 02:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in script
    worker = script[-1] if script[-1] else script[-2]
    assert sys.executable in worker and "--nthreads 1 " in worker and "--tls-key" in worker
    with slurm_cluster(SlurmJobs.of_text("jobs=3")) as cluster:
        assert "gres" not in cluster.job_script()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "'gpu' is not understood"),
        ("gpus=8,color=red", "'color=red'"),
        ("gpus=many", "whole number"),
        ("jobs=0", "at least one"),
        ("partition=a\nrm", "is not understood"),
    ],
)
def test_jobs_of_slurm_that_cannot_be_are_refused(text: str, words: str) -> None:
    with pytest.raises(NeonatalSegError, match=words):
        SlurmJobs.of_text(text)


def test_workers_share_out_the_cards_of_a_computer() -> None:
    assert [gpu_of_worker(n, 2, None) for n in range(4)] == ["0", "1", "0", "1"]
    assert gpu_of_worker(1, 2, "4, 6") == "6"
