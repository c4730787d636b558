"""Pipelines on the test cluster: give commands, watch the ranks of a stage, read what became of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import SlurmCluster, poll

from posttrain.pipeline.runs.rundir import RunDirectory, read_jobs, signs_of_life
from posttrain.pipeline.slurm.attempts import Attempt, Ledger
from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.heartbeat import RankBeat, read_beats
from posttrain.stage.spec import StageSpec

CONF = Path(__file__).with_name("conf")
COMMON = ["tracking=none", "launcher=slurm_cpu", "launcher.slurm.train.nodes=2", "--config-dir", str(CONF)]
BEFORE_SFT = ("sources", "demonstrations", "items", "texts", "untrained", "text_tokens", "base", "demonstration_tokens")
PATIENCE = 400.0
"""Seconds to wait for anything; the machine may be busy with other work."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """One command line of `posttrain run`, and its run."""

    cluster: SlurmCluster
    root: Path
    name: str
    overrides: tuple[str, ...]

    @property
    def run_directory(self) -> RunDirectory:
        return RunDirectory(self.root, self.name)

    def run(self, *more: str, expect: int = 0) -> str:
        """Give the command and return what it prints; without ``launcher.slurm.wait=true`` it comes back at once."""
        command = ["run", *COMMON, f"root='{self.root}'", f"run_name={self.name}", *self.overrides, *more]
        return posttrain(self.cluster, *command, expect=expect)

    def status(self) -> str:
        return posttrain(self.cluster, "status", self.name, "--root", str(self.root))

    def cancel(self) -> str:
        return posttrain(self.cluster, "cancel", self.name, "--root", str(self.root))

    def jobs(self) -> dict[str, str]:
        """Return Slurm's job id of every stage that was submitted."""
        return read_jobs(self.run_directory)

    def states(self) -> dict[str, str]:
        """Return the state that Slurm gives for the job of every stage."""
        return {stage: self.cluster.job(job)["JobState"] for stage, job in self.jobs().items()}

    def wait(self) -> None:
        """Wait until none of the jobs is left in the queue."""
        poll(lambda: not self.in_queue(), PATIENCE, f"the jobs of {self.name} to end\n{self.root}")

    def in_queue(self) -> set[str]:
        """Return which of the jobs Slurm still has to run or is running."""
        listed = self.cluster.run("squeue", "--array", "--noheader", "--format=%i").stdout.split()
        return set(listed) & set(self.jobs().values())

    def attempts(self, stage: str) -> list[Attempt]:
        return Ledger(self.run_directory.attempts_file(stage)).attempts

    def ranks(self, stage: str, attempt: int = 0) -> list[RankBeat]:
        """Return what the ranks of an attempt last said: of the newest, or of the one with a number."""
        logs = self.run_directory.attempts(stage)
        return read_beats(signs_of_life(logs[attempt - 1])) if logs else []

    def wait_for_step(self, stage: str, step: int, attempt: int = 0, ranks: int = 2) -> list[RankBeat]:
        """Wait until every rank of a running attempt has done ``step`` optimizer steps; returns the ranks."""

        def arrived() -> list[RankBeat] | None:
            if len(self.run_directory.attempts(stage)) < attempt:
                return None
            said = self.ranks(stage)
            return said if len(said) == ranks and all((rank.step or 0) >= step for rank in said) else None

        return poll(arrived, PATIENCE, f"step {step} of {stage} in {self.root}")

    def artifact(self, stage: str) -> Path:
        """Return the directory that the work order of a stage names."""
        return Path(StageSpec.read(self.run_directory.spec(stage)).output)

    def manifest(self, stage: str) -> Manifest:
        return read_manifest(self.artifact(stage))

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """Return the lines of the training log that the artifact of a stage holds."""
        return [json.loads(line) for line in (self.artifact(stage) / "logs" / "metrics.jsonl").read_text().splitlines()]


def posttrain(cluster: SlurmCluster, *arguments: str, expect: int = 0) -> str:
    """Run the command line in the cluster's environment, check its exit code, and return what it prints."""
    command = [sys.executable, "-m", "posttrain.pipeline.cli", *arguments]
    environment = cluster.environment | {"COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expect, f"exit {done.returncode}, wanted {expect}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@contextmanager
def suspended_until_warned(ranks: list[RankBeat]) -> Iterator[None]:
    """Suspend ranks until they were asked to stop, so that a run of seconds does not end before Slurm asks."""
    for rank in ranks:
        os.kill(rank.pid, signal.SIGSTOP)
    yield
    poll(lambda: all(_is_pending(rank.pid, signal.SIGUSR1) for rank in ranks), PATIENCE, "the warning")
    for rank in ranks:
        os.kill(rank.pid, signal.SIGCONT)


def _is_pending(pid: int, number: int) -> bool:
    """Return whether a signal waits for a suspended process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> (number - 1) & 1)


def copy_artifacts(source: Path, root: Path, *stages: str) -> None:
    """Fill a new store with the artifacts of some stages of another."""
    (root / "artifacts").mkdir(parents=True)
    for stage in stages:
        for path in (source / "artifacts").glob(f"{stage}-*"):
            shutil.copytree(path, root / "artifacts" / path.name)
