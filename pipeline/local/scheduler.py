"""Runs the stages of a graph: each as soon as its inputs are made and there is room, none that is made already."""

from __future__ import annotations

import dataclasses
import enum
import time
from pathlib import Path

from posttrain.pipeline.config.pipeline import LauncherConfig
from posttrain.pipeline.graph.graph import GATE, Stage
from posttrain.pipeline.local.launch import LocalLauncher
from posttrain.pipeline.local.leader import Leader
from posttrain.pipeline.local.process import StageProcess
from posttrain.pipeline.runs.promotion import refusal
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import RunDirectory, signs_of_life
from posttrain.pipeline.watch.progress import Display
from posttrain.pipeline.watch.stopping import StopRequests, Wanted
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, EXIT_GATE, EXIT_REQUEUE, GateRefusedError
from posttrain.stage.lease import clear_unheld_work, holder
from posttrain.stage.outcome import Outcome
from posttrain.stage.spec import StageSpec
from posttrain.stage.wording import duration

POLL_SECONDS = 0.05


class State(enum.StrEnum):
    """What became of a stage in this run."""

    PENDING = "not run"
    CACHED = "cached"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    BLOCKED = "blocked"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclasses.dataclass
class Task:
    """One stage and how far it is."""

    stage: Stage
    state: State = State.PENDING
    spec: StageSpec | None = None
    made: Made | None = None
    process: StageProcess | None = None
    lent: list[str] = dataclasses.field(default_factory=list)
    """GPUs that it has to itself while it runs."""
    waiting_since: float = 0.0
    code: int = EXIT_DONE
    message: str = ""
    refusal: str | None = None
    """Of a gate: why nothing may build upon the model that it judged."""

    @property
    def open(self) -> bool:
        """Whether there is still something to do for it."""
        return self.state in (State.PENDING, State.WAITING)


class Scheduler:
    """The state of one run; `run` drives it to the end."""

    def __init__(
        self,
        stages: list[Stage],
        resolver: Resolver,
        run: RunDirectory,
        launcher: LocalLauncher,
        limits: LauncherConfig,
        display: Display,
        stops: StopRequests,
        keep_going: bool = False,
        others: Leader | None = None,
    ) -> None:
        """``keep_going`` goes on after a failure with the stages that do not need what failed.

        ``others`` are the other machines, where there are several.
        """
        self.tasks = {stage.name: Task(stage) for stage in stages}
        self._resolver = resolver
        self._run = run
        self._launcher = launcher
        self._devices = launcher.devices()
        self._limits = limits
        self._display = display
        self._stops = stops
        self._obeyed = Wanted.NOTHING
        self._keep_going = keep_going
        self._others = others or Leader(launcher.place)

    def run(self) -> None:
        """Return when every stage is made, or nothing runs any more after a failure or a stop.

        Stages that run when something goes wrong here are asked to save, as at a stop.
        """
        for task in self.tasks.values():
            if task.state is State.CACHED:
                self._announce_cached(task)
        try:
            while self._advance():
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._wind_down()
            raise
        finally:
            self._kill()

    def nothing_to_do(self) -> bool:
        """Mark what is made already; return whether that is everything, and the run's folder knows of it."""
        for task in self.tasks.values():
            if self._resolve(task) and task.made is not None:
                self._take_as_made(task)
        return all(task.state is State.CACHED and self._run.knows(task.spec) for task in self.tasks.values())

    def _advance(self) -> bool:
        """Take every step that is possible now; return whether there is anything left to wait for."""
        self._obey_stop_requests()
        self._display.whole(sum(task.made is not None for task in self.tasks.values()), len(self.tasks))
        for task in self._running():
            self._check(task)
        if self._obeyed or (any(task.code for task in self.tasks.values()) and not self._keep_going):
            for task in self.tasks.values():
                task.state = State.PENDING if task.open else task.state
            return bool(self._running())
        still_open = [task for task in self.tasks.values() if task.open and not self._block(task)]
        left = [task for task in still_open if not self._needs_what_failed(task.stage)]
        for task in left:
            if self._resolve(task):
                self._start_if_possible(task)
        return bool(left or self._running())

    def _needs_what_failed(self, stage: Stage) -> bool:
        above = [self.tasks[name] for name in (*stage.inputs.values(), *stage.gates)]
        return any(task.code or (task.open and self._needs_what_failed(task.stage)) for task in above)

    def _obey_stop_requests(self) -> None:
        wanted = self._stops.wanted
        if wanted <= self._obeyed:
            return
        self._obeyed = wanted
        if wanted is Wanted.KILL:
            self._display.say("pipeline", f"{self._stops.came[-1].number.name} once more: stages are killed")
            self._kill()
        else:
            why = self._stops.came[0].number.name
            self._display.say("pipeline", f"{why}: stages save and stop; Ctrl-C once more to kill them")
            self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        for task in self._running():
            assert task.process is not None
            task.process.stop()

    def _kill(self) -> None:
        for task in self._running():
            assert task.process is not None
            task.process.kill()

    def _wind_down(self) -> None:
        """Have what runs save and stop, and wait for it, unless someone insists."""
        self._ask_to_stop()
        processes = [task.process for task in self._running() if task.process is not None]
        while self._stops.wanted < Wanted.KILL and not _all_finished(processes):
            time.sleep(POLL_SECONDS)

    def _running(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.state is State.RUNNING]

    def _block(self, task: Task) -> bool:
        """Mark a stage that builds upon a model that its gate refused, or upon such a stage; return whether it does."""
        gates = [self.tasks[gate] for gate in task.stage.gates]
        refused = next((gate for gate in gates if gate.refusal is not None), None)
        needed = (*task.stage.inputs.values(), *task.stage.gates)
        blocked = next((made for made in needed if self.tasks[made].state is State.BLOCKED), None)
        if refused is None and blocked is None:
            return False
        task.state = State.BLOCKED
        why = (
            f"gate {refused.stage.name}: {refused.refusal}"
            if refused is not None
            else f"its input {blocked} is blocked"
        )
        self._display.say(task.stage.name, f"blocked  {why}")
        self._run.leave_outcome(task.stage.name, Outcome(EXIT_GATE, why, GateRefusedError.__name__))
        return True

    def _judge(self, task: Task) -> None:
        """Take up the verdict of a gate that is made."""
        if task.stage.type.run == GATE and task.made is not None:
            task.refusal = refusal(task.stage.name, task.made)

    def _gates_passed(self, stage: Stage) -> bool:
        return all(self.tasks[gate].made is not None and self.tasks[gate].refusal is None for gate in stage.gates)

    def _resolve(self, task: Task) -> bool:
        """Give a stage its work order once its inputs are made; return whether it has one."""
        made = {parent: self.tasks[parent].made for parent in task.stage.inputs.values()}
        present = {parent: artifact for parent, artifact in made.items() if artifact is not None}
        if len(present) < len(made):
            return False
        if task.spec is None:
            task.spec = self._resolver.spec(task.stage, present)
            self._resolver.save()
        task.made = committed(task.spec)
        return True

    def _start_if_possible(self, task: Task) -> None:
        assert task.spec is not None
        if task.made is not None:
            self._take_as_made(task)
            self._announce_cached(task)
        elif not self._gates_passed(task.stage):
            return
        elif self._can_start(task, task.spec) and self._is_current(task):
            self._start(task, task.spec)

    def _take_as_made(self, task: Task) -> None:
        assert task.spec is not None
        task.state = State.CACHED
        self._judge(task)
        clear_unheld_work(Path(task.spec.work), self._run.name)

    def _announce_cached(self, task: Task) -> None:
        assert task.spec is not None
        self._run.write_spec(task.spec)
        self._display.say(task.stage.name, f"cached   {Path(task.spec.output).name}")

    def _can_start(self, task: Task, spec: StageSpec) -> bool:
        return self._has_room(task.stage) and self._lease_is_free(task, spec) and self._others_wait(task)

    def _has_room(self, stage: Stage) -> bool:
        running = [task.stage for task in self._running()]
        on_device = sum(other.on_device for other in running)
        if stage.on_device and on_device >= self._launcher.max_on_device:
            return False
        return len(running) < self._limits.max_parallel and self._devices.has(self._launcher.devices_of(stage))

    def _lease_is_free(self, task: Task, spec: StageSpec) -> bool:
        """Return whether nobody else is making this artifact; after the wait that the user allows, give up."""
        who = holder(Path(spec.work) / "lease")
        if who is None:
            return True
        if task.state is State.PENDING:
            task.state, task.waiting_since = State.WAITING, time.monotonic()
            if self._limits.lease_wait_seconds != 0:
                self._display.say(task.stage.name, f"waiting for {who}; Ctrl-C gives up")
        if self._limits.lease_wait_seconds is None:
            return False
        if time.monotonic() - task.waiting_since >= self._limits.lease_wait_seconds:
            fix = "run the same command again when it is done, or wait with launcher.lease_wait_seconds=null"
            task.state, task.code = State.STOPPED, EXIT_REQUEUE
            task.message = f"{Path(spec.output).name} is being made by {who}; {fix}"
        return False

    def _others_wait(self, task: Task) -> bool:
        """Return whether all other machines wait for work; after as long as a rank may stand still, give up."""
        if task.stage.distributed.num_machines == 1:
            return True
        if missing := self._others.missing():
            who = f"machine {', '.join(map(str, missing))} of {self._others.place.of}"
            if task.state is State.PENDING:
                task.state, task.waiting_since = State.WAITING, time.monotonic()
                self._display.say(
                    task.stage.name, f"waiting for {who} at port {self._others.place.port}; Ctrl-C gives up"
                )
            if time.monotonic() - task.waiting_since >= task.stage.distributed.timeout_seconds:
                task.state, task.code = State.STOPPED, EXIT_REQUEUE
                task.message = f"{who} did not come; give it the same command with its own distributed.machine_rank"
        return self._others.ready()

    def _is_current(self, task: Task) -> bool:
        """Return whether code and outside files are still those of the work order, which may have waited for long."""
        before, task.spec = task.spec, None
        return self._resolve(task) and task.spec == before and task.made is None

    def _start(self, task: Task, spec: StageSpec) -> None:
        self._run.write_spec(spec)
        log = self._run.new_log(spec.stage)
        task.lent = self._devices.lend(self._launcher.devices_of(task.stage))
        spread = task.stage.distributed.num_machines > 1
        port = self._others.start(str(self._run.path), spec.stage, log) if spread else None
        command = self._launcher.command(task.stage, ["--spec", str(self._run.spec(spec.stage))], task.lent, port)
        task.process = StageProcess(command, Path(spec.outcome), log, spec.distributed.timeout_seconds)
        task.state = State.RUNNING
        on = f"  on GPU {', '.join(task.lent)}" if task.lent else ""
        self._display.started(spec.stage, f"started  {Path(spec.output).name}{on}  log {log}")

    def _check(self, task: Task) -> None:
        assert task.process is not None and task.spec is not None
        spread = task.stage.distributed.num_machines > 1
        if not task.process.finished():
            if spread and (lost := self._others.lost()):
                task.process.cut_off(lost)
            signs = signs_of_life(task.process.log)
            self._display.update(task.stage.name, Path(task.spec.work) / "metrics.jsonl", signs)
            return
        self._devices.take_back(task.lent)
        outcome = task.process.result()
        if spread:
            if outcome.code == EXIT_FAILED and (lost := self._others.went()):
                task.process.cut_off(lost)
                outcome = task.process.result()
            self._others.end()
        task.code, task.message = outcome.code, outcome.message
        task.made = committed(task.spec)
        if task.code == EXIT_DONE and task.made is None:
            task.code, task.message = EXIT_FAILED, f"reported success, but {task.spec.output} is not an artifact"
        if task.code == EXIT_DONE and task.made is not None:
            task.state = State.DONE
            self._judge(task)
            text = f"done     {duration(task.process.seconds)}  {task.made.manifest.headline}"
        elif task.code == EXIT_REQUEUE:
            task.state = State.STOPPED
            text = f"stopped  {task.message}"
        else:
            task.state = State.FAILED
            text = f"failed   {task.message}"
        self._display.ended(task.stage.name, text.rstrip())


def _all_finished(processes: list[StageProcess]) -> bool:
    """Return whether all have ended; each is looked at, since looking is what notices one that hangs."""
    return sum(process.finished() for process in processes) == len(processes)
