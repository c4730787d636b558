"""The state of every stage of a run, read from its folder and from what Slurm's queue says of its jobs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from posttrain.pipeline.runs.progress import latest_metrics, speed_and_end
from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory, own_outcome, read_stages, signs_of_life
from posttrain.stage.errors import EXIT_DONE, EXIT_GATE, EXIT_REQUEUE, UsageError
from posttrain.stage.heartbeat import RankBeat, read_beats
from posttrain.stage.lease import holder
from posttrain.stage.outcome import Outcome, read_outcome
from posttrain.stage.spec import StageSpec
from posttrain.stage.wording import duration

LIVE_STATES = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What Slurm knows of a job, or of one element of a job array."""

    id: str
    """``123``, or ``123_4``."""
    state: str
    reason: str
    """Why it is pending, or ``None``."""
    nodes: str
    start: str
    """When it started, or is expected to: ``2026-11-22T10:00:00``, or ``N/A``."""
    time_left: str

    @property
    def live(self) -> bool:
        """Whether it may still run, or run on."""
        return self.state in LIVE_STATES


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """One line of the status table."""

    stage: str
    state: str
    detail: str
    attempt: str
    job: str = ""


@dataclasses.dataclass(frozen=True)
class Queue:
    """The jobs of a run: all that were ever submitted, and those that Slurm still has."""

    jobs: dict[str, str]
    live: dict[str, Job]
    silent: str = ""
    """Why Slurm could not be asked."""


def run_status(run: RunDirectory, queue: Queue) -> list[StageStatus]:
    """Return the state of every stage of a run, in the order of its identity file."""
    statuses: dict[str, StageStatus] = {}
    for stage, facts in read_stages(run).items():
        status = _stage_status(run, stage, queue)
        if status.state == "pending" and status.job and not queue.silent:
            status = _cancelled(run, status, [statuses[parent] for parent in dict.fromkeys(facts["inputs"].values())])
        statuses[stage] = status
    return list(statuses.values())


def _cancelled(run: RunDirectory, status: StageStatus, parents: list[StageStatus]) -> StageStatus:
    """Return the state of a stage whose job is gone without having started."""
    because = next((parent for parent in parents if parent.state not in ("done", "cached")), None)
    printed = run.path / "slurm" / f"{status.stage}-{status.job}.out"
    itself = f"its job ended before its driver began: {printed}" if printed.exists() else "its job was cancelled"
    detail = f"{because.stage} {because.state}" if because else itself
    return dataclasses.replace(status, state="cancelled", detail=detail)


def _stage_status(run: RunDirectory, stage: str, queue: Queue) -> StageStatus:
    attempts = run.attempts(stage)
    attempt = str(len(attempts)) if attempts else ""
    job = queue.jobs.get(stage, "")
    state, detail = _state(run, stage, queue.live.get(job), len(attempts))
    return StageStatus(stage, state, detail, attempt, job)


def _state(run: RunDirectory, stage: str, job: Job | None, attempts: int) -> tuple[str, str]:
    path = run.spec(stage)
    try:
        spec = StageSpec.read(path) if path.exists() else None
        made = committed(spec) if spec is not None else None
    except UsageError as error:
        return "damaged", str(error)
    if made is not None:
        detail = f"{made.directory.name}  {duration(made.manifest.wall_seconds)}  {made.manifest.headline}"
        return "done" if attempts else "cached", detail
    if job is not None and job.state == "PENDING":
        return "queued", _why_queued(job)
    if spec is None:
        if job is not None:
            return "starting", f"on {job.nodes}"
        outcome = read_outcome(run.outcome(stage))  # the job ended before it had a work order
        return _left(outcome) if outcome is not None else ("pending", "")
    work = Path(spec.work)
    if (who := holder(work / "lease")) is not None:
        return "running", "  ".join(filter(None, [_progress(run, stage, work), job.nodes if job else who]))
    if job is not None:
        return "starting", f"on {job.nodes}"
    return _ended(run, spec, work, attempts)


def launched_by(run: RunDirectory, queue: Queue) -> str:
    """Return in words who works on a run: its launcher, Slurm, or nobody."""
    if (launcher := holder(run.lease)) is not None:
        return f"launched by {launcher}"
    return f"{len(queue.live)} jobs in the queue" if queue.jobs else "no launcher runs"


def latest_beats(run: RunDirectory, stage: str) -> list[RankBeat]:
    """Return what the ranks of a stage's latest attempt last said."""
    attempts = run.attempts(stage)
    return read_beats(signs_of_life(attempts[-1])) if attempts else []


def _progress(run: RunDirectory, stage: str, work: Path) -> str:
    beats = latest_beats(run, stage)
    last_step = beats[0].last_step if beats else None
    metrics = work / "metrics.jsonl"
    of_all = f"of {last_step}" if last_step is not None else ""
    return "  ".join(filter(None, [latest_metrics(metrics), of_all, speed_and_end(metrics, last_step, time.time())]))


def _why_queued(job: Job) -> str:
    waits = {"Dependency": "for the stages before it", "BeginTime": "to start again", "None": "for the scheduler"}
    when = f", expected to start {job.start}" if job.start != "N/A" else ""
    return f"waits {waits.get(job.reason, f'({job.reason})')}{when}"


def _ended(run: RunDirectory, spec: StageSpec, work: Path, attempts: int) -> tuple[str, str]:
    """Return the state of a stage that nobody is working on, from what its last attempt left."""
    outcome = read_outcome(Path(spec.outcome))
    if outcome is None and (logs := run.attempts(spec.stage)):
        outcome = read_outcome(own_outcome(logs[-1]))  # of a job whose driver was killed before it could say
    if outcome is None:
        if not attempts:
            return "pending", ""
        if holder(run.lease) is not None:
            return "starting", ""
        return "killed", f"{latest_metrics(work / 'metrics.jsonl')}  the same command goes on".strip()
    return _left(outcome)


def _left(outcome: Outcome) -> tuple[str, str]:
    """Return the state that an attempt left, of a stage that is not made."""
    if outcome.code == EXIT_REQUEUE:
        return "stopped", outcome.message
    if outcome.code == EXIT_GATE:
        return "blocked", outcome.message
    if outcome.code == EXIT_DONE:
        return "pending", "its artifact was removed"
    return "failed", outcome.message.splitlines()[0] if outcome.message else f"exit code {outcome.code}"
