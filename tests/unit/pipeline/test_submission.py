"""What was submitted stays as it was, whatever is run or submitted afterwards; what is refused changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_slurm import FakeSlurm

from posttrain.pipeline.commands.run import prepare, run_pipelines
from posttrain.pipeline.commands.run_slurm import submit_pipelines
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.graph.environment import inherited_environment
from posttrain.pipeline.runs.rundir import read_jobs
from posttrain.pipeline.runs.state import Queue, run_status
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.slurm.attempts import Cause, Ledger
from posttrain.pipeline.slurm.job import driver_of
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.errors import LeaseHeldError, PosttrainError
from posttrain.stage.lease import Lease

SETUP = "launcher.slurm.setup=[umask 2]"
TWO_NODES = ("launcher=slurm_cpu", "distributed=ddp", "launcher.slurm.train.nodes=2")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def points_of(root: Path, *overrides: str) -> dict[str, Point]:
    common = ["recipe=smoke", f"root={root}", "run_name=r", "tracking=none"]
    return {label: prepare(config) for label, config in compose_sweep([*common, *overrides]).items()}


def submit(root: Path, *overrides: str) -> dict[str, Point]:
    points = points_of(root, *overrides)
    assert submit_pipelines(points, StopRequests()) == 0
    return points


def orders(root: Path, stage: str, run: str = "r") -> list[Path]:
    return sorted((root / "runs" / run / "slurm").glob(f"{stage}-*.json"))


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_file() or path.is_symlink()) and path.name != "lease"
    }


def test_a_queued_job_does_what_it_was_submitted_for(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    submit(root, *TWO_NODES, SETUP)
    (queued,) = orders(root, "sft")
    before = len(slurm.calls("sbatch"))
    capsys.readouterr()
    submit(root, *TWO_NODES, SETUP, "launcher.slurm.retries.hung=9")
    assert capsys.readouterr().err == ""
    submit(root, "launcher=slurm_cpu", "distributed=ddp", "launcher.slurm.train.nodes=1", SETUP)
    assert len(slurm.calls("sbatch")) == before
    driver = driver_of([str(queued)], {})
    assert "--nodes=2" in driver.launcher.srun(driver.stage, tmp_path / "spec.json")
    assert driver.launcher.distributed(driver.stage).num_processes == 2
    job = read_jobs(driver.run)["sft"]
    warnings = capsys.readouterr().err.splitlines()
    assert (
        f"warning: sft: job {job} stays as it was submitted (--nodes=2, where this command says --nodes=1); "
        "`posttrain cancel r` first to change it" in warnings
    )


FOREIGN = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_CPU", "SLURM_CPU_BIND", "SBATCH_PARTITION")
FOREIGN += ("SQUEUE_PARTITION", "PMI_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def test_nothing_of_the_submitting_shell_s_own_job_reaches_the_jobs(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a shell's defaults: `sbatch` takes options from variables, and exports all of them to the job."""
    for name in (*FOREIGN, "SLURM_CONF", "KEPT"):
        monkeypatch.setenv(name, "1")
    (slurm.folder / "during").write_text("exit 1\n")
    with pytest.raises(PosttrainError):
        submit_pipelines(points_of(tmp_path / "store", *TWO_NODES), StopRequests())
    found = slurm.environment()
    assert {"SLURM_CONF", "KEPT"} <= found
    assert not set(FOREIGN) & found


def test_in_its_job_srun_keeps_what_it_needs_and_hands_all_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_EXPORT_ENV", "OMPI_MCA_btl"):
        monkeypatch.setenv(name, "1")
    found = inherited_environment(own_job=True)
    assert {"SLURM_JOB_ID", "OMPI_MCA_btl"} <= set(found)  # a line of `setup` may have set the latter
    assert "SLURM_EXPORT_ENV" not in found


def test_a_setup_line_that_fails_ends_the_job_and_is_told(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    setup = 'launcher.slurm.setup=["true","echo before; (exit 3)","echo after"]'
    (point,) = submit(root, *TWO_NODES, setup).values()
    monkeypatch.setenv("SLURM_JOB_ID", read_jobs(point.run)["sft"])
    done = subprocess.run(
        ["bash", point.run.path / "slurm" / "sft.sbatch"], capture_output=True, text=True, check=False
    )
    said = "launcher.slurm.setup: 'echo before; (exit 3)' ended with exit code 3; mend it, or add `|| true` to go on"
    assert (done.returncode, done.stdout, done.stderr) == (2, "before\n", f"error: {said}\n")
    states = {status.stage: status for status in run_status(point.run, Queue(read_jobs(point.run), {}))}
    assert (states["sft"].state, states["sft"].detail) == ("failed", said)
    assert [attempt.cause for attempt in Ledger(point.run.attempts_file("sft")).attempts] == [Cause.USAGE]


def test_the_queue_is_asked_for_the_jobs_of_whoever_submitted_them(slurm: FakeSlurm, tmp_path: Path) -> None:
    (point,) = submit(tmp_path / "store", *TWO_NODES).values()
    slurm.end("102")
    queue = read_queue(point.run)
    assert ("101" in queue.live, "102" in queue.live, len(queue.live)) == (True, False, 29)
    (asked,) = slurm.calls("squeue")
    assert "--me" not in asked
    assert f"--jobs={','.join(str(number) for number in range(101, 131))}" in asked.split()
    slurm.end()
    assert read_queue(point.run) == Queue(read_jobs(point.run), {})  # Slurm forgets jobs, and says so as an error


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_jobs_of_someone_else_that_slurm_does_not_list_are_not_called_cancelled(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    """With `PrivateData=jobs` it lists only one's own."""
    (point,) = submit(tmp_path / "store", *TWO_NODES).values()
    slurm.end()
    os.chown(point.run.jobs, 4711, -1)
    queue = read_queue(point.run)
    assert queue.silent == "it lists no job of uid 4711, who submitted them: all have ended, or it hides them"
    assert {status.state for status in run_status(point.run, queue)} == {"pending"}


def test_elements_of_an_array_have_a_configuration_each_as_it_was_composed(slurm: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "store"
    points = list(submit(root, *TWO_NODES, "train.dpo.beta=0.1,0.2").values())
    (queued,) = orders(root, "dpo", "r-beta-0.1")
    drivers = [driver_of([str(queued)], {"SLURM_ARRAY_TASK_ID": str(index)}) for index in (0, 1)]
    assert [driver.stage.config.beta for driver in drivers] == [0.1, 0.2]
    assert [(driver.run.name, driver.config) for driver in drivers] == [(p.run.name, p.config) for p in points]
    assert list(drivers[0].config.stages) == list(points[0].config.stages)


def test_a_run_whose_jobs_are_queued_is_not_run_here_too(slurm: FakeSlurm, tmp_path: Path) -> None:
    root = tmp_path / "store"
    submit(root, *TWO_NODES)
    before = contents(root)
    with pytest.raises(LeaseHeldError, match=r"^run r: 30 of its jobs are in Slurm's queue \(101, .*\); `posttrain"):
        run_pipelines(points_of(root, "launcher=local"), StopRequests())
    assert contents(root) == before


def test_a_refused_launcher_changes_nothing_of_the_first(slurm: FakeSlurm, tmp_path: Path) -> None:
    """Neither a local one, nor a sweep of which only the second point is being run."""
    root = tmp_path / "store"
    submit(root, *TWO_NODES, "train.dpo.beta=0.1,0.2")
    slurm.end()
    before = contents(root)
    with Lease(root / "runs" / "r-beta-0.2" / "lease", "r-beta-0.2"):
        with pytest.raises(LeaseHeldError):
            submit_pipelines(
                points_of(root, "launcher=slurm_cpu", "launcher.lease_wait_seconds=0", "train.dpo.beta=0.1,0.2"),
                StopRequests(),
            )
        points = points_of(root, "launcher.max_parallel=1", "launcher.lease_wait_seconds=0", "train.dpo.beta=0.1,0.2")
        with pytest.raises(LeaseHeldError):
            run_pipelines({"second": list(points.values())[1]}, StopRequests())
    assert contents(root) == before


def test_a_signal_during_the_submission_takes_all_of_it_back(slurm: FakeSlurm, tmp_path: Path) -> None:
    """Also the job that was being submitted just then, whose id only its `sbatch` knows; also a second signal."""
    stops = StopRequests()
    (slurm.folder / "during").write_text("[ $number != 103 ] || { kill -INT $PPID; kill -INT $PPID; sleep 0.2; }\n")
    points = points_of(tmp_path / "store", *TWO_NODES)
    with stops.heeded(), pytest.raises(KeyboardInterrupt, match="SIGINT"):
        submit_pipelines(points, stops)
    assert len(slurm.calls("sbatch")) == 3
    assert slurm.queue() == []
    assert read_jobs(points[""].run) == {}


def clock(sleep: Callable[[float], None]) -> SimpleNamespace:
    """The module `time`, as far as it is needed, with another idea of sleeping."""
    return SimpleNamespace(sleep=sleep, monotonic=time.monotonic)


def test_waiting_outlasts_a_silent_controller_and_says_so(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        silent = slurm.folder / "silent"
        if len(looks) == 1:
            silent.touch()
        elif len(looks) == 3:
            silent.unlink()
            slurm.end()

    monkeypatch.setattr("posttrain.pipeline.commands.run_slurm.time", clock(pause))
    points = points_of(tmp_path / "store", *TWO_NODES, "launcher.slurm.wait=true")
    assert submit_pipelines(points, StopRequests()) == 75
    assert len(looks) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if "not known" in line]
    assert said == [
        "Slurm's queue is not known: squeue: slurm_load_jobs error: Unable to contact slurm controller; asked again"
    ]


def test_ctrl_c_while_waiting_leaves_the_jobs_and_says_so(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = StopRequests()
    interrupt = clock(lambda seconds: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("posttrain.pipeline.commands.run_slurm.time", interrupt)
    with stops.heeded():
        assert submit_pipelines(points_of(tmp_path / "store", *TWO_NODES, "launcher.slurm.wait=true"), stops) == 75
    assert len(slurm.queue()) == 30
    assert capsys.readouterr().err.splitlines()[-1] == (
        "stopped waiting (SIGINT); the jobs go on: `posttrain status r` shows how far they are, "
        "`posttrain cancel r` ends them"
    )
