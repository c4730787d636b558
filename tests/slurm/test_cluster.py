"""The private cluster behaves as the launcher expects of Slurm, and nothing of it stays behind."""

from __future__ import annotations

import getpass
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import SlurmCluster, poll
from keeper import descendants, processes

# Every rank tells which signals reach it; rank 0 stops itself, as a hung process would.
RANK = """\
import os, signal, sys, time
def tell(number, frame):
    print(rank, signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, tell)
rank = os.environ["SLURM_PROCID"]
print(rank, "start", flush=True)
if rank == "0":
    os.kill(os.getpid(), signal.SIGSTOP)
while not (rank == "1" and os.path.exists("fail")):
    time.sleep(0.05)
sys.exit(1)
"""


@pytest.fixture(autouse=True)
def idle(slurm: SlurmCluster) -> Iterator[None]:
    """Cancel what a test left and start what it stopped, so that the next one finds idle nodes."""
    yield
    slurm.run("scancel", f"--user={getpass.getuser()}")
    for name in set(slurm.names) - set(slurm.pids):
        slurm.start_node(name)
    poll(lambda: set(slurm.nodes().values()) == {"IDLE"}, 60, "idle nodes")


def submit_ranks(slurm: SlurmCluster, directory: Path) -> int:
    """Submit a job whose two ranks run RANK, and wait until rank 0 has stopped itself."""
    (directory / "rank.py").write_text(RANK)
    command = f"cd {shlex.quote(str(directory))}; srun --kill-on-bad-exit=1 {shlex.quote(sys.executable)} rank.py"
    job = slurm.submit(f"{command}; echo srun returned $?", "--nodes=2", "--ntasks=2")
    poll(lambda: slurm.output(job).count("start") == 2, 20, "both ranks")
    return job


def test_one_step_runs_on_both_nodes(slurm: SlurmCluster) -> None:
    names = slurm.run("srun", "--nodes=2", "printenv", "SLURMD_NODENAME").stdout.split()
    assert sorted(names) == ["node1", "node2"]


def test_nothing_is_shared_with_the_slurm_of_the_machine(slurm: SlurmCluster) -> None:
    settings = dict(re.findall(r"^(\w+)\s+= (.*)$", slurm.run("scontrol", "show", "config").stdout, re.MULTILINE))
    own = ("SLURM_CONF", "StateSaveLocation", "SlurmctldPidFile", "SlurmctldLogFile", "SlurmdSpoolDir", "SlurmdPidFile")
    assert {name for name in own if not settings[name].startswith(str(slurm.directory))} == set()
    assert f"socket={slurm.directory}/munge.socket" in settings["AuthInfo"]
    nodes = slurm.run("scontrol", "show", "node").stdout
    ports = {settings["SlurmctldPort"], *re.findall(r"Port=(\d+)", nodes)}
    assert len(ports) == 3
    assert not ports & {"6817", "6818"}


def test_a_failed_job_cancels_all_that_waits_for_it(slurm: SlurmCluster) -> None:
    first = slurm.submit("sleep 1; exit 3")
    second = slurm.submit("echo ran", f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    third = slurm.submit("echo ran", f"--dependency=afterok:{second}", "--kill-on-invalid-dep=yes")
    assert slurm.wait_for(first, "FAILED")["ExitCode"] == "3:0"
    for job in (second, third):
        assert slurm.wait_for(job, "CANCELLED")["Reason"] == "DependencyNeverSatisfied"
        assert slurm.output(job) == ""


def test_the_elements_of_an_array_are_found_by_their_index(slurm: SlurmCluster) -> None:
    job = slurm.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-2")
    slurm.wait_for(f"{job}_0", "COMPLETED")
    slurm.wait_for(f"{job}_1", "FAILED")
    slurm.wait_for(f"{job}_2", "FAILED")
    exit_codes = {record["ArrayTaskId"]: record["ExitCode"] for record in slurm.jobs(job)}
    assert exit_codes == {"0": "0:0", "1": "1:0", "2": "2:0"}


@pytest.mark.slow
def test_a_job_that_requeues_itself_keeps_its_dependants_waiting(slurm: SlurmCluster) -> None:
    script = 'echo attempt ${SLURM_RESTART_COUNT:-0}; [ "$SLURM_RESTART_COUNT" ] && exit 0\n'
    job = slurm.submit(script + "scontrol requeue $SLURM_JOB_ID; exit 75")
    dependant = slurm.submit("echo ran", f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes")
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "1"
    slurm.wait_for(dependant, "COMPLETED")
    assert re.findall("attempt .", slurm.output(job)) == ["attempt 0", "attempt 1"]


@pytest.mark.slow
def test_preemption_warns_the_batch_script_which_requeues_itself(slurm: SlurmCluster) -> None:
    script = """
        [ "$SLURM_RESTART_COUNT" ] && exit 0
        trap 'echo warned; scontrol requeue $SLURM_JOB_ID; exit 75' USR1
        echo started; sleep 300 & wait"""
    job = slurm.submit(script, "--nodes=2", "--exclusive", "--signal=B:USR1@60")
    poll(lambda: "started" in slurm.output(job), 20, "the job")
    urgent = slurm.submit("true", "--nodes=2", "--exclusive", "--partition=urgent")
    slurm.wait_for(urgent, "COMPLETED")
    assert "warned" in slurm.output(job)
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "1"


@pytest.mark.slow
def test_the_batch_script_is_warned_of_its_time_limit(slurm: SlurmCluster) -> None:
    # Slurm looks at the limits every 30 seconds and warns early rather than late.
    script = "trap 'echo warned; exit 0' USR1; sleep 300 & wait; exit 1"
    job = slurm.submit(script, "--time=1", "--signal=B:USR1@30")
    slurm.wait_for(job, "COMPLETED", timeout=100)
    assert "warned" in slurm.output(job)


@pytest.mark.slow
def test_a_lost_node_requeues_its_job(slurm: SlurmCluster) -> None:
    script = '[ "$SLURM_RESTART_COUNT" ] || srun --ntasks=2 sh -c "echo started; sleep 300"'
    job = slurm.submit(script, "--nodes=2", "--ntasks=2")
    poll(lambda: slurm.output(job).count("started") == 2, 30, "both tasks")
    host = slurm.job(job)["BatchHost"]
    other = next(name for name in slurm.names if name != host)
    slurm.stop_node(other)
    poll(lambda: slurm.job(job)["Restarts"] == "1", 90, "Slurm to notice")
    assert "DOWN" in slurm.nodes()[other]
    slurm.start_node(other)
    slurm.wait_for(job, "COMPLETED")


@pytest.mark.slow
def test_a_node_whose_daemon_alone_died_keeps_its_steps(slurm: SlurmCluster) -> None:
    job = slurm.submit("srun --ntasks=2 sh -c 'echo started; sleep 4'", "--nodes=2", "--ntasks=2")
    poll(lambda: slurm.output(job).count("started") == 2, 30, "both tasks")
    slurm.stop_node("node2", steps=False)
    slurm.start_node("node2")
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "0"


def test_a_signal_to_the_step_reaches_every_rank(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = submit_ranks(slurm, tmp_path)
    slurm.run("scancel", "--signal=USR1", f"{job}.0")
    poll(lambda: "1 SIGUSR1" in slurm.output(job), 10, "rank 1")
    assert "0 SIGUSR1" not in slurm.output(job)
    slurm.run("scancel", "--signal=CONT", f"{job}.0")
    poll(lambda: "0 SIGUSR1" in slurm.output(job), 10, "the stopped rank")


def test_a_failed_rank_ends_the_others_even_a_stopped_one(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = submit_ranks(slurm, tmp_path)
    (tmp_path / "fail").touch()
    # The rank that failed left with 1: srun tells the greatest of the exit codes, not the first.
    poll(lambda: "srun returned 75" in slurm.output(job), 20, "srun")
    assert "0 SIGTERM" in slurm.output(job)


def test_a_detached_process_neither_outlives_its_step_nor_drains_the_node(slurm: SlurmCluster) -> None:
    job = slurm.submit("srun sh -c '(setsid sleep 301 & echo detached $!)'; echo done")
    poll(lambda: "detached" in slurm.output(job), 20, "the step")
    detached = int(re.search(r"detached (\d+)", slurm.output(job))[1])
    slurm.wait_for(job, "COMPLETED")
    poll(lambda: not is_alive({detached}), 10, "the detached process to end")
    assert set(slurm.nodes().values()) == {"IDLE"}


def is_alive(pids: set[int]) -> bool:
    return any(process.pid in pids for process in processes())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process_that_started_the_cluster(
    slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory, end: signal.Signals
) -> None:
    directory = tmp_path_factory.mktemp("ended")
    command = [sys.executable, str(Path(__file__).with_name("cluster.py")), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        name, _, value = owner.stdout.readline().removeprefix("export ").strip().partition("=")
        submit = ["sbatch", "--nodes=2", "--output=/dev/null", "--wrap=srun sleep 302"]
        subprocess.run(submit, env=slurm.environment | {name: value}, check=True, capture_output=True)

        def step() -> bool:
            return sum(process.name == "sleep" for process in processes() if process.pid in descendants(owner.pid)) == 2

        poll(step, 20, "the job's two tasks")
        started = set(descendants(owner.pid))
        owner.send_signal(end)
    poll(lambda: not is_alive(started), 10, "every process to end")
