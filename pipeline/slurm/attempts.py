"""Attempts of a job: what ended each, and whether there is to be another.

    runs/<run>/stages/<stage>/attempts.jsonl      a line when an attempt starts, another when it ends

An attempt without an end was killed together with its driver.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import time
from pathlib import Path

from posttrain.pipeline.config.slurm import Retries
from posttrain.stage.errors import EXIT_DONE, EXIT_REQUEUE, EXIT_USAGE
from posttrain.stage.outcome import Outcome
from posttrain.stage.schema import to_dict

_RANK_DIED = re.compile(r"srun: error: \S+: tasks?.* \S+: (Killed|Segmentation fault|Bus error|Aborted|Illegal)")
_RANK_ENDED = re.compile(r"srun: error: \S+: tasks?.* \S+: .*")
_RANK_LEFT = re.compile(r"srun: error: \S+: tasks?.* \S+: Exited with exit code (\d+)")
_OF_SLURM = re.compile(r"srun: |slurmstepd\S*: |Try \"srun ")
_NO_PROGRAM = re.compile(r"slurmstepd\S*: error: execve\(\): .*")
_COMPLAINT = re.compile(r"^srun: (error|fatal|unrecognized|invalid|ambiguous|option)", re.MULTILINE)
_FOR_NOW = re.compile(
    r"completing|completed|timed out|time limit|contact|connect|communicat|confirm allocation|controller|socket|"
    r"node fail|down, drained|busy|revoked|expired|invalid job|abort|cancelled|terminat|unreachable|unavailable|"
    r"zero bytes",
    re.I,
)
_SLURM_LINE = re.compile(r"^(?:srun|slurmstepd): error: .*$", re.MULTILINE)
_PEER_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|nccl|gloo|distbackend|diststore|tcpstore", re.I)
_OUT_OF_MEMORY = re.compile(r"out of memory|outofmemory|memoryerror|can't allocate memory|oom.?kill", re.I)


class Cause(enum.StrEnum):
    """What ended an attempt; those of `Retries` may be followed by another."""

    DONE = "done"
    USAGE = "usage"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time_limit"
    INTERRUPTED = "interrupted"
    PROCESS_LOST = "process_lost"
    HUNG = "hung"
    LEASE_HELD = "lease_held"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    NOT_STARTED = "not_started"


@dataclasses.dataclass
class Attempt:
    """One start of a job."""

    number: int
    """Counted over all jobs of the stage, as the logs are."""
    job: str
    started: float
    """Seconds since the epoch, as are all times here."""
    step: int
    """Checkpoint that it started from; 0 is the beginning."""
    ended: float | None = None
    cause: Cause = Cause.INTERRUPTED
    message: str = ""


class Ledger:
    """The attempts of one stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempts = _read(path)

    def begin(self, number: int, job: str, step: int) -> Attempt:
        """Note that an attempt starts."""
        attempt = Attempt(number, job, time.time(), step)
        self.attempts.append(attempt)
        self._append(attempt)
        return attempt

    def end(self, cause: Cause, message: str) -> None:
        """Note how the last attempt ended."""
        attempt = self.attempts[-1]
        attempt.ended, attempt.cause, attempt.message = time.time(), cause, message
        self._append(attempt)

    def _append(self, attempt: Attempt) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(dataclasses.asdict(attempt)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> list[Attempt]:
    """Return the attempts in a file; the last line of each counts, and one that a crash cut short does not."""
    found: dict[int, Attempt] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            attempt = Attempt(**json.loads(line))
        except ValueError:
            continue
        attempt.cause = Cause(attempt.cause)
        found[attempt.number] = attempt
    return list(found.values())


def cause_of(outcome: Outcome | None, log: str, asked_to_stop: Cause | None, running: bool) -> Cause:
    """Return what ended an attempt.

    ``outcome`` is what the stage left, ``log`` the end of what `srun` and the stage printed, ``asked_to_stop`` why
    Slurm wanted the job to end (if it did), and ``running`` whether Slurm still counts the job as running.
    """
    if outcome is not None and outcome.code == EXIT_DONE:
        return Cause.DONE
    if outcome is not None and outcome.code == EXIT_USAGE:
        return Cause.USAGE
    if not running:
        return Cause.CANCELLED
    if outcome is not None and outcome.error == "LeaseHeldError":
        return Cause.LEASE_HELD
    if asked_to_stop is not None:
        return asked_to_stop
    message = outcome.message if outcome is not None else ""
    if _OUT_OF_MEMORY.search(message) or _OUT_OF_MEMORY.search("\n".join(_SLURM_LINE.findall(log))):
        return Cause.OUT_OF_MEMORY
    if outcome is None and own_failure(log):
        return Cause.NOT_STARTED
    if _first_rank_died(log):
        return Cause.PROCESS_LOST
    if outcome is None and _first_rank_left(log):
        return Cause.FAILED
    if outcome is not None and outcome.code == EXIT_REQUEUE:
        return Cause.CANCELLED  # someone signalled the stage by hand
    return Cause.PROCESS_LOST if outcome is None or _PEER_LOST.search(message) else Cause.FAILED


def _first_rank_died(log: str) -> bool:
    """Return whether the first rank that ended was killed; what its peers say then is that they miss it."""
    first = _RANK_ENDED.search(log)
    return first is not None and _RANK_DIED.match(first[0]) is not None


def _first_rank_left(log: str) -> bool:
    """Return whether the first rank that ended left with an exit code that is no signal's, as after a failed import."""
    first = _RANK_ENDED.search(log)
    left = _RANK_LEFT.match(first[0]) if first is not None else None
    return left is not None and 0 < int(left[1]) < 128


def own_failure(log: str) -> str:
    """Return what `srun` failed at by itself before any rank ran, such as an option that it does not know, or nothing.

    What may be otherwise the next time, such as a node that does not answer, is none.
    """
    if (missing := _NO_PROGRAM.search(log)) is not None:
        return missing[0]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not _COMPLAINT.search(log) or any(
        not _OF_SLURM.match(line) or _RANK_ENDED.match(line) or _FOR_NOW.search(line) for line in lines
    ):
        return ""
    return "; ".join(line for line in lines if not line.startswith("Try "))


def why_not_again(attempts: list[Attempt], cause: Cause, step: int, retries: Retries) -> str | None:
    """Return why a job is not to start again after ``cause``, or None when it is.

    ``attempts`` are those of this job, ``step`` is the newest checkpoint now.
    """
    limits: dict[str, int] = to_dict(retries)
    without_progress = limits.pop("without_progress")
    if cause not in limits:
        return f"{cause} is not tried again"
    times = sum(attempt.cause == cause for attempt in attempts)
    if times > limits[cause]:
        return f"{cause}, for the {_ordinal(times)} time (launcher.slurm.retries.{cause}={limits[cause]})"
    recent = [attempt.step for attempt in attempts[-without_progress:]]
    of_others = cause in (Cause.PREEMPTED, Cause.LEASE_HELD)
    if not of_others and len(recent) == without_progress and set(recent) == {step}:
        return (
            f"{without_progress} attempts in a row ended at step {step}, where they began "
            f"(launcher.slurm.retries.without_progress); the last by {cause}"
        )
    return None


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def newest_step(work: Path) -> int:
    """Return the step of the newest checkpoint below a stage's work directory, 0 when there is none."""
    names = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in work.glob("checkpoints/checkpoint-*"))
    return max((int(name[1]) for name in names if name), default=0)
