"""The side of every machine but the first in a run on several: start and end ranks as the first one says."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from posttrain.pipeline.local.launch import LocalLauncher
from posttrain.pipeline.local.machines import Line, Place
from posttrain.pipeline.local.process import StageProcess
from posttrain.pipeline.runs.rundir import signs_of_life
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.watch.stopping import StopRequests, Wanted
from posttrain.stage.errors import EXIT_DONE, EXIT_REQUEUE, UsageError

POLL_SECONDS = 0.05
CALL_SECONDS = 2.0
"""Between two attempts to reach the first machine, which may come up later."""


class Follower:
    """One machine's part in the runs of a command."""

    def __init__(
        self, parts: Mapping[str, tuple[Point, LocalLauncher]], place: Place, stops: StopRequests, console: Console
    ) -> None:
        """``parts`` are the pipelines of the command by their run's folder, each with what starts the ranks here."""
        self.parts = parts
        self.place = place
        self.stops = stops
        self._console = console
        self._process: StageProcess | None = None
        self._obeyed = Wanted.NOTHING

    def follow(self, line: Line) -> int:
        """Do as the first machine says until it says that the command has ended; return the exit code.

        Raises UsageError where it wants nothing of this machine.
        """
        line.send(machine=self.place.rank, runs=list(self.parts))
        try:
            while True:
                for message in line.receive():
                    if message["do"] == "exit":
                        return int(message["code"])
                    self._obey(message)
                if line.lost:
                    self._say(f"machine 0 ({self.place.address}) is gone; the same command goes on")
                    return EXIT_REQUEUE
                if self._process is not None and self._process.finished():
                    self._say(f"ranks ended with exit code {self._process.code}")
                    line.send(ended=self._process.code)
                    self._process = None
                if self._asked_to_leave():
                    return EXIT_REQUEUE
                time.sleep(POLL_SECONDS)
        finally:
            if self._process is not None:
                self._process.kill()
            line.close()

    def _obey(self, message: dict[str, Any]) -> None:
        if message["do"] == "refuse":
            raise UsageError(f"distributed.machine_rank: {self.place.rank}: {message['why']}")
        if message["do"] == "start":
            self._process = self._started(*self.parts[message["run"]], message)
        elif message["do"] == "end" and self._process is not None:
            self._process.kill()

    def _started(self, point: Point, launcher: LocalLauncher, order: dict[str, Any]) -> StageProcess:
        stage = next(one for one in point.stages if one.name == order["stage"])
        attempt = point.run.path / "logs" / stage.name / order["log"]
        log = attempt.with_name(f"machine_{self.place.rank}.{attempt.name}")
        log.parent.mkdir(parents=True, exist_ok=True)
        lent = launcher.devices().lend(launcher.devices_of(stage))
        command = launcher.command(stage, ["--spec", str(point.run.spec(stage.name))], lent, order["port"])
        self._say(f"{stage.name} started  log {log}")
        timeout = launcher.distributed(stage).timeout_seconds
        return StageProcess(command, log.with_suffix(".outcome.json"), log, timeout, signs_of_life(attempt))

    def _asked_to_leave(self) -> bool:
        """Pass stop signals on to the ranks; return whether one came and there are none, or no more."""
        wanted = self.stops.wanted
        if wanted is Wanted.NOTHING:
            return False
        if wanted > self._obeyed and self._process is not None:
            self._obeyed = wanted
            self._process.stop() if wanted is Wanted.SAVE else self._process.kill()
        return self._process is None

    def _say(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self._console.print(
            f"{clock}  machine {self.place.rank:<14} {text}", highlight=False, markup=False, soft_wrap=True
        )


def follow(follower: Follower, all_made: Callable[[], bool], patience_seconds: float) -> int:
    """Take part in the runs of a command as one of its machines but the first; return the exit code.

    ``all_made`` says whether there is nothing to do, so that the first machine may have left before this one came.
    Raises UsageError where the first machine refuses this one, or is not reached in time.
    """
    place, stops = follower.place, follower.stops
    deadline = time.monotonic() + patience_seconds
    with stops.noted():
        while stops.wanted is Wanted.NOTHING:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((place.address, place.port), timeout=CALL_SECONDS)
                return follower.follow(Line(connection))
            if all_made():
                return EXIT_DONE
            if time.monotonic() > deadline:
                raise UsageError(
                    f"distributed.main_address: machine 0 is not reached at {place.address}:{place.port}; start it too"
                )
            time.sleep(CALL_SECONDS)
    return EXIT_REQUEUE
