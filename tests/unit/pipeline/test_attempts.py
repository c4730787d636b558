"""What ended an attempt, whether another follows, and the ledger that survives a crash."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from posttrain.pipeline.config.slurm import Retries
from posttrain.pipeline.slurm.attempts import Attempt, Cause, Ledger, cause_of, newest_step, own_failure, why_not_again
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USAGE
from posttrain.stage.outcome import Outcome

KILLED = """\
2026-11-22 10:00:07,113 INFO posttrain.train.engine.fit: global batch 16 = 8 rows x 2 processes x 1 accumulation
srun: error: node2: task 1: Killed
srun: Terminating StepId=12.0
[rank0]: RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]
srun: error: node1: task 0: Exited with exit code 1
"""
CRASHED = """\
Traceback (most recent call last):
IndexError: index 400 is out of range
srun: error: node1: task 0: Exited with exit code 1
srun: Terminating StepId=12.0
srun: error: node2: task 1: Killed
"""
SEGMENTATION_FAULT = "srun: error: node1: tasks 0,3: Segmentation fault (core dumped)\n"
STEP_OUT_OF_MEMORY = """\
slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have been killed by the
cgroup out-of-memory handler.
srun: error: node2: task 1: Out Of Memory
"""
CONNECTION_LOST = Outcome(EXIT_FAILED, "RuntimeError: Connection closed by peer [127.0.0.1]:5132", "RuntimeError")
CUDA_OUT_OF_MEMORY = Outcome(EXIT_FAILED, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "E")
STOPPED = Outcome(EXIT_REQUEUE, "stopped on request at step 40 of 200", "StoppedError")
BUG = Outcome(EXIT_FAILED, "IndexError: index 400 is out of range", "IndexError")


@pytest.mark.parametrize(
    ("outcome", "log", "asked", "running", "cause"),
    [
        (Outcome(EXIT_DONE), "", None, True, Cause.DONE),
        (Outcome(EXIT_DONE), "", Cause.PREEMPTED, False, Cause.DONE),  # it was ready before it was to stop
        (Outcome(EXIT_USAGE, "inputs.data: no such file", "UsageError"), "", None, True, Cause.USAGE),
        (Outcome(EXIT_USAGE, "inputs.data: no such file", "UsageError"), "", Cause.TIME_LIMIT, True, Cause.USAGE),
        (STOPPED, "", None, False, Cause.CANCELLED),
        (None, KILLED, Cause.TIME_LIMIT, False, Cause.CANCELLED),
        (STOPPED, "", Cause.PREEMPTED, True, Cause.PREEMPTED),
        (STOPPED, "", Cause.TIME_LIMIT, True, Cause.TIME_LIMIT),
        (None, KILLED, Cause.PREEMPTED, True, Cause.PREEMPTED),  # too slow to save within the grace time
        (STOPPED, "", None, True, Cause.CANCELLED),
        (Outcome(EXIT_REQUEUE, "sft-01 is being written", "LeaseHeldError"), "", None, True, Cause.LEASE_HELD),
        (CUDA_OUT_OF_MEMORY, "srun: error: node1: task 0: Exited with exit code 1\n", None, True, Cause.OUT_OF_MEMORY),
        (None, STEP_OUT_OF_MEMORY, None, True, Cause.OUT_OF_MEMORY),
        (CONNECTION_LOST, KILLED, None, True, Cause.PROCESS_LOST),
        (None, KILLED, None, True, Cause.PROCESS_LOST),
        (None, SEGMENTATION_FAULT, None, True, Cause.PROCESS_LOST),
        (None, "", None, True, Cause.PROCESS_LOST),
        (CONNECTION_LOST, "srun: error: node1: task 0: Exited with exit code 1\n", None, True, Cause.PROCESS_LOST),
        (BUG, CRASHED, None, True, Cause.FAILED),
        (
            BUG,
            "srun: error: node1: task 0: Exited with exit code 1\nout of memory, says the data\n",
            None,
            True,
            "failed",
        ),
    ],
)
def test_the_cause_of_an_end(
    outcome: Outcome | None, log: str, asked: Cause | None, running: bool, cause: Cause
) -> None:
    assert cause_of(outcome, log, asked, running) == cause


# as Slurm 22.05 says it
OWN_FAILURES = [
    "srun: unrecognized option '--bogus=1'\nTry \"srun --help\" for more information\n",
    "srun: cluster configuration lacks support for cpu binding\n"
    'srun: error: unrecognized --cpu-bind argument "x"\nsrun: fatal: Failed to parse --cpu-bind= values.\n',
    "srun: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.\n",
    "srun: error: Only allocated 1 nodes asked for 9\n",
    "srun: error: Unable to create step for job 8: More processors requested than permitted\n",
    "srun: error: Invalid MPI type 'nosuch', --mpi=list for acceptable types\n",
    "srun: error: Invalid generic resource (gres) specification\n",
    "srun: error: node1: task 0: Exited with exit code 2\n"
    "slurmstepd-node1: error: execve(): /no/such/python: No such file or directory\n",
]
FOR_NOW = [
    "srun: Cancelled pending job step with signal 15\n"
    "srun: error: Unable to create step for job 11: Job/step already completing or completed\n",
    "srun: error: Unable to confirm allocation for job 12: Unable to contact slurm controller (connect failure)\n",
    "srun: error: Task launch for StepId=12.0 failed on node node2: Communication connection failure\n"
    "srun: error: Application launch failed: Communication connection failure\n",
    "srun: error: Node failure on node2\nsrun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n",
    "srun: cluster configuration lacks support for cpu binding\n",
]
NO_MODULE = """\
/usr/bin/python: Error while finding module specification for 'posttrain.train.sft' (ModuleNotFoundError: No module)
srun: error: node1: task 0: Exited with exit code 1
"""


@pytest.mark.parametrize("log", OWN_FAILURES)
def test_what_srun_itself_failed_at_is_its_own_cause_in_its_own_words(log: str) -> None:
    assert cause_of(None, log, None, True) is Cause.NOT_STARTED
    words = own_failure(log)
    assert words in log.replace("\n", "; ")
    assert not words.endswith("information")
    started = f"2026-11-22 10:00:07,113 INFO posttrain.train: loading\n{log}"
    assert own_failure(started) == "" or "execve" in log


@pytest.mark.parametrize("log", FOR_NOW)
def test_what_may_go_well_the_next_time_is_tried_again(log: str) -> None:
    assert cause_of(None, log, None, True) is Cause.PROCESS_LOST


def test_a_rank_that_left_by_itself_without_a_word_failed() -> None:
    assert cause_of(None, NO_MODULE, None, True) is Cause.FAILED
    assert cause_of(None, NO_MODULE.replace("code 1", "code 137"), None, True) is Cause.PROCESS_LOST


def attempts(*ended: tuple[Cause, int]) -> list[Attempt]:
    """Attempts by cause and by the step that each started from."""
    return [Attempt(number, "7", 0.0, step, 1.0, cause) for number, (cause, step) in enumerate(ended, start=1)]


def test_every_retryable_cause_has_its_knob() -> None:
    knobs = {field.name for field in dataclasses.fields(Retries)} - {"without_progress"}
    assert knobs == set(Cause) - {Cause.DONE, Cause.USAGE, Cause.CANCELLED, Cause.NOT_STARTED}


@pytest.mark.parametrize("cause", [Cause.USAGE, Cause.CANCELLED, Cause.NOT_STARTED])
def test_what_a_person_did_is_never_tried_again(cause: Cause) -> None:
    assert why_not_again(attempts((cause, 0)), cause, 0, Retries(failed=100)) == f"{cause} is not tried again"


def test_each_cause_is_counted_by_itself() -> None:
    lost, hung = Cause.PROCESS_LOST, Cause.HUNG
    retries = Retries(process_lost=2, hung=1)
    assert why_not_again(attempts((lost, 0), (hung, 10), (lost, 20)), lost, 30, retries) is None
    assert (
        why_not_again(attempts((lost, 0), (hung, 10), (lost, 20), (lost, 30)), lost, 40, retries)
        == "process_lost, for the 3rd time (launcher.slurm.retries.process_lost=2)"
    )
    assert (
        why_not_again(attempts((hung, 0), (lost, 10), (hung, 20)), hung, 30, retries)
        == "hung, for the 2nd time (launcher.slurm.retries.hung=1)"
    )
    assert (
        why_not_again(attempts((Cause.FAILED, 0)), Cause.FAILED, 40, retries)
        == "failed, for the 1st time (launcher.slurm.retries.failed=0)"
    )


def test_attempts_that_end_where_they_began_are_given_up() -> None:
    lost = Cause.PROCESS_LOST
    retries = Retries(process_lost=100, preempted=100, without_progress=2)
    assert why_not_again(attempts((lost, 0)), lost, 0, retries) is None
    assert why_not_again(attempts((lost, 0), (lost, 0)), lost, 5, retries) is None  # the second saved at step 5
    assert why_not_again(attempts((lost, 0), (lost, 5)), lost, 5, retries) is None  # only the second stood still
    assert (
        why_not_again(attempts((lost, 0), (lost, 5), (Cause.HUNG, 5)), Cause.HUNG, 5, Retries(without_progress=2))
        == "2 attempts in a row ended at step 5, where they began (launcher.slurm.retries.without_progress); "
        "the last by hung"
    )


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.LEASE_HELD])
def test_what_others_did_is_no_lack_of_progress(cause: Cause) -> None:
    stuck = attempts((cause, 0), (cause, 0), (cause, 0))
    assert why_not_again(stuck, cause, 0, Retries(without_progress=1)) is None


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "stages" / "sft" / "attempts.jsonl")
    ledger.begin(1, "12_0", 0)
    ledger.end(Cause.PREEMPTED, "stopped on request at step 40 of 200")
    ledger.begin(2, "12_0", 40)
    first, second = Ledger(ledger.path).attempts
    assert [first, second] == ledger.attempts
    assert (first.cause, first.message, first.step) == (Cause.PREEMPTED, "stopped on request at step 40 of 200", 0)
    assert first.ended is not None and first.started <= first.ended <= second.started
    assert (second.ended, second.cause) == (None, Cause.INTERRUPTED)  # no end: killed together with its driver


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    ledger = Ledger(path)
    ledger.begin(1, "12", 0)
    whole = path.stat().st_size
    ledger.end(Cause.DONE, "")
    for length in reversed(range(whole, path.stat().st_size - 1)):
        os.truncate(path, length)
        assert [attempt.cause for attempt in Ledger(path).attempts] == [Cause.INTERRUPTED], length


def test_an_attempt_after_a_torn_line_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    Ledger(path).begin(1, "12", 0)
    os.truncate(path, path.stat().st_size - 5)
    ledger = Ledger(path)
    assert ledger.attempts == []
    ledger.begin(2, "12", 20)
    assert Ledger(path).attempts == ledger.attempts


def test_the_newest_checkpoint_counts_by_number(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", ".checkpoint-300.incomplete", "checkpoint-best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 100
