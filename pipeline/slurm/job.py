"""The driver of one stage inside its Slurm job: start the ranks, watch them, and decide what an end means.

    python -m posttrain.pipeline.slurm.job ORDERS.json                            what a batch script execs
    python -m posttrain.pipeline.slurm.job ORDERS.json --setup-failed LINE CODE   the same, where its setup failed

It gives the stage its work order, since only now its inputs are made; all else is as it was when the job was submitted.
Each attempt has its work order and its outcome to itself, beside its log, whatever else is started in the run's folder.
A job that is to start again puts itself back into the queue (`scontrol requeue`) while it still runs: had it ended, the
jobs that wait for it would be cancelled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.environment import inherited_environment
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.runs.notice import give_notice
from posttrain.pipeline.runs.promotion import refusal
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import RunDirectory, own_outcome, own_spec, signs_of_life
from posttrain.pipeline.runs.state import Queue, run_status
from posttrain.pipeline.slurm import queue
from posttrain.pipeline.slurm.attempts import Cause, Ledger, cause_of, newest_step, own_failure, why_not_again
from posttrain.pipeline.slurm.script import SlurmLauncher
from posttrain.pipeline.watch.watchdog import Watchdog
from posttrain.stage.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REQUEUE,
    EXIT_USAGE,
    GateRefusedError,
    PosttrainError,
    UsageError,
)
from posttrain.stage.heartbeat import VARIABLE as HEARTBEAT
from posttrain.stage.outcome import Outcome, read_outcome
from posttrain.stage.ranks import free_port
from posttrain.stage.schema import build
from posttrain.stage.spec import StageSpec

T = TypeVar("T")
POLL_SECONDS = 0.5
WAITS_SECONDS = (1, 5, 15, 30, 60)
LOG_TAIL_BYTES = 16384


class Driver:
    """One attempt at one stage."""

    def __init__(self, run: RunDirectory, shared_by: list[RunDirectory], stage: str, config: PipelineConfig) -> None:
        self.run = run
        self.shared_by = shared_by
        self.config = config
        self.stage: Stage = next(one for one in build_graph(self.config) if one.name == stage)
        self.launcher = SlurmLauncher(self.config)
        self._srun: subprocess.Popen[bytes] | None = None
        self._told_to_stop = False

    def main(self) -> int:
        """Run the stage unless its artifact is there; return the job's exit code, or put the job back in the queue."""
        for signal_number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signal_number, self._pass_on)
        ledger = Ledger(self.run.attempts_file(self.stage.name))
        number = len(self.run.attempts(self.stage.name)) + 1
        try:
            spec = self._work_order()
            made = committed(spec)
            if made is None:
                self._require_gates()
        except PosttrainError as error:
            ledger.begin(number, queue.own_id(), 0)
            return self._give_up(ledger, Outcome(error.exit_code, str(error), type(error).__name__), Cause.USAGE)
        if made is not None:
            print(f"{Path(spec.output).name} is there already", flush=True)
            return EXIT_DONE
        work = Path(spec.work)
        if (reason := self._not_after_interruptions(ledger, work)) is not None:
            ledger.begin(number, queue.own_id(), newest_step(work))
            return self._give_up(ledger, Outcome(EXIT_FAILED, f"not started again: {reason}"), Cause.INTERRUPTED)
        ledger.begin(number, queue.own_id(), newest_step(work))
        log = self.run.new_log(self.stage.name)
        own = dataclasses.replace(spec, outcome=str(own_outcome(log)))
        own.write(own_spec(log))
        self.run.outcome(self.stage.name).unlink(missing_ok=True)
        hung = self._attempt(own, log)
        return self._conclude(own, ledger, hung, _tail(log))

    def setup_failed(self, line: int, code: int) -> int:
        """Note that a line of the batch script's setup, counted from 1, ended with an exit code; return the job's."""
        ledger = Ledger(self.run.attempts_file(self.stage.name))
        ledger.begin(len(self.run.attempts(self.stage.name)) + 1, queue.own_id(), 0)
        text = self.config.launcher.slurm.setup[line - 1]
        message = f"launcher.slurm.setup: {text!r} ended with exit code {code}; mend it, or add `|| true` to go on"
        return self._give_up(ledger, Outcome(EXIT_USAGE, message), Cause.USAGE)

    def _work_order(self) -> StageSpec:
        """Return the stage's work order, left where every run that shares the stage finds it."""
        made = {parent: self._made(parent) for parent in dict.fromkeys(self.stage.inputs.values())}
        resolver = Resolver(self.config, self.run, self.launcher.distributed, frozen=True)
        spec = resolver.spec(self.stage, made)
        resolver.save()
        for run in (self.run, *self.shared_by):
            run.write_spec(spec)
        return spec

    def _require_gates(self) -> None:
        """Raise GateRefusedError where a gate refused a model that the stage builds upon."""
        for gate in self.stage.gates:
            if (why := refusal(gate, self._made(gate))) is not None:
                raise GateRefusedError(f"gate {gate}: {why}")

    def _made(self, parent: str) -> Made:
        path = self.run.spec(parent)
        made = committed(StageSpec.read(path)) if path.exists() else None
        if made is None:
            raise UsageError(f"inputs: the artifact of {parent} is gone; the same `posttrain run` makes it again")
        return made

    def _not_after_interruptions(self, ledger: Ledger, work: Path) -> str | None:
        """Return why the job must not go on where Slurm, and not a driver, put it back into the queue."""
        attempts = self._of_this_job(ledger)
        if not attempts or attempts[-1].cause is not Cause.INTERRUPTED:
            return None
        return why_not_again(attempts, Cause.INTERRUPTED, newest_step(work), self.config.launcher.slurm.retries)

    def _of_this_job(self, ledger: Ledger) -> list[Any]:
        return [attempt for attempt in ledger.attempts if attempt.job == queue.own_id()]

    def _attempt(self, spec: StageSpec, log: Path) -> str | None:
        """Run the ranks to their end; returns what the watchdog saw when they hung, else None."""
        signs = signs_of_life(log)
        watchdog = Watchdog(signs, spec.distributed.timeout_seconds)
        command = self.launcher.srun(self.stage, own_spec(log))
        print(" ".join(command), flush=True)
        with log.open("w", encoding="utf-8") as output:
            self._srun = subprocess.Popen(
                command,
                env=self._environment(spec) | {HEARTBEAT: str(signs)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self._told_to_stop:
            self._srun.send_signal(signal.SIGUSR1)
        while self._srun.poll() is None:
            time.sleep(POLL_SECONDS)
            if (hung := watchdog.hung()) is not None:
                watchdog.dump(self._signal_ranks)
                self._signal_ranks(signal.SIGKILL)
                self._srun.wait()
                return hung
        return None

    def _signal_ranks(self, number: int) -> None:
        """Signal every rank, on all nodes; those that have ended in the meantime need none."""
        try:
            queue.signal_step(0, signal.Signals(number).name.removeprefix("SIG"))
        except PosttrainError as error:
            print(f"no rank got {signal.Signals(number).name}: {error}", flush=True)
            if number == signal.SIGKILL and self._srun is not None:
                self._srun.kill()

    def _environment(self, spec: StageSpec) -> dict[str, str]:
        environment = {**inherited_environment(own_job=True), **self.launcher.environment(self.stage)}
        if spec.distributed.num_processes > 1:
            environment |= {"MASTER_ADDR": queue.first_node_address(), "MASTER_PORT": str(free_port())}
        return environment

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Ask the ranks to save and stop: `srun` hands SIGUSR1 to all of them, where SIGTERM would kill them."""
        self._told_to_stop = True
        if self._srun is not None and self._srun.poll() is None:
            self._srun.send_signal(signal.SIGUSR1)

    def _conclude(self, spec: StageSpec, ledger: Ledger, hung: str | None, log: str) -> int:
        """Note why the attempt ended; requeue the job or return its exit code."""
        outcome = read_outcome(Path(spec.outcome))
        if outcome is not None and outcome.code == EXIT_DONE and committed(spec) is None:
            outcome = None  # rank 0 alone commits; another rank's word is not enough
        if outcome is not None and outcome.code == EXIT_DONE:
            ledger.end(Cause.DONE, "")
            outcome.write(self.run.outcome(self.stage.name))
            self._tell_if_all_is_made()
            return EXIT_DONE
        if hung is not None:
            cause, outcome = Cause.HUNG, Outcome(EXIT_REQUEUE, hung)
        else:
            job = _patiently(queue.own_job)
            if queue.was_requeued(job):
                return self._leave_to_slurm(ledger, job, outcome)
            cause = cause_of(outcome, log, self._why_stopped(job), job["JobState"] == "RUNNING")
        if cause is Cause.NOT_STARTED:
            outcome = Outcome(EXIT_USAGE, f"the ranks were not started; {own_failure(log)}")
        outcome = outcome or Outcome(EXIT_FAILED, _first_line(log) or "the processes were killed and left no word")
        if cause is Cause.CANCELLED:
            return self._give_up(ledger, Outcome(EXIT_REQUEUE, f"{outcome.message} (cancelled)"), cause)
        attempts = self._of_this_job(ledger)
        attempts[-1].cause = cause
        reason = why_not_again(attempts, cause, newest_step(Path(spec.work)), self.config.launcher.slurm.retries)
        if reason is not None:
            code = EXIT_FAILED if outcome.code == EXIT_REQUEUE else outcome.code
            given_up = (
                "" if cause in (Cause.USAGE, Cause.FAILED, Cause.NOT_STARTED) else f"; not started again: {reason}"
            )
            return self._give_up(ledger, Outcome(code, outcome.message + given_up, outcome.error), cause)
        Outcome(EXIT_REQUEUE, outcome.message, outcome.error).write(self.run.outcome(self.stage.name))
        ledger.end(cause, outcome.message)
        try:
            return _requeue(cause, outcome.message)
        except PosttrainError as refused:
            message = f"{outcome.message}; not started again: {refused}"
            return self._give_up(ledger, Outcome(EXIT_FAILED, message, outcome.error), cause)

    def _leave_to_slurm(self, ledger: Ledger, job: dict[str, str], outcome: Outcome | None) -> int:
        """Note why Slurm took the job back, which starts again by itself: a node was lost, or the grace time over."""
        cause = Cause.PREEMPTED if self._why_stopped(job) is Cause.PREEMPTED else Cause.INTERRUPTED
        message = outcome.message if outcome is not None else "taken back by Slurm before it could save"
        Outcome(EXIT_REQUEUE, message).write(self.run.outcome(self.stage.name))
        ledger.end(cause, message)
        return EXIT_REQUEUE

    def _why_stopped(self, job: dict[str, str]) -> Cause | None:
        """Return why Slurm wanted the job to end, or None when it did not."""
        if job.get("PreemptTime", "None")[:1].isdigit() and job["PreemptTime"] >= job["StartTime"]:
            return Cause.PREEMPTED
        return Cause.TIME_LIMIT if self._told_to_stop else None

    def _give_up(self, ledger: Ledger, outcome: Outcome, cause: Cause) -> int:
        ledger.end(cause, outcome.message)
        outcome.write(self.run.outcome(self.stage.name))
        print(f"error: {outcome.message}", file=sys.stderr, flush=True)
        self._tell(outcome.code, f"{self.stage.name}: {outcome.message}")
        return outcome.code

    def _tell_if_all_is_made(self) -> None:
        states = [status.state for status in run_status(self.run, Queue({}, {}))]
        if set(states) <= {"done", "cached"}:
            self._tell(EXIT_DONE, f"{len(states)} of {len(states)} stages are made")

    def _tell(self, code: int, message: str) -> None:
        for run in (self.run, *self.shared_by):
            give_notice(self.config.launcher.notify, run, code, f"{run.name}: {message}")


def _requeue(cause: Cause, message: str) -> int:
    print(f"back into the queue ({cause}): {message}", flush=True)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the end is Slurm's now, and must not look like the job's own
    _patiently(queue.requeue_own_job)
    return EXIT_REQUEUE


def _patiently(ask: Callable[[], T]) -> T:
    """Ask Slurm again and again while its controller does not answer, which may restart at just this moment."""
    for seconds in WAITS_SECONDS:
        try:
            return ask()
        except PosttrainError as error:
            if not re.search("contact|no answer|timed out|connection", str(error), re.I):
                raise
            print(f"{error}; again in {seconds} s", flush=True)
            time.sleep(seconds)
    return ask()


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")


def _first_line(log: str) -> str:
    """Return the first complaint of `srun`, which names the rank that ended first."""
    return next((line.strip() for line in log.splitlines() if line.startswith("srun: error:")), "")


def main(arguments: list[str]) -> int:
    """Run the stage that this job, or this element of a job array, is for."""
    driver = driver_of(arguments, os.environ)
    return driver.setup_failed(*map(int, arguments[2:])) if len(arguments) > 1 else driver.main()


def driver_of(arguments: list[str], environment: Mapping[str, str]) -> Driver:
    """Return the driver of the stage that a job, or an element of a job array, is for."""
    orders = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    order = orders[int(environment.get("SLURM_ARRAY_TASK_ID", "0"))]
    home, *others = (RunDirectory(path.parents[1], path.name) for path in map(Path, order["runs"]))
    return Driver(home, others, order["stage"], build(PipelineConfig, order["config"], ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
