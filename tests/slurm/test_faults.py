"""Whatever ends a job of two ranks on two nodes, the pipeline ends without a human in the weights of a calm run."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import pairwise

import pytest
from cluster import SlurmCluster, poll
from pipelines import BEFORE_SFT, PATIENCE, Pipeline, copy_artifacts, suspended_until_warned

from posttrain.pipeline.runs.rundir import signs_of_life
from posttrain.pipeline.slurm.attempts import Cause

SAVE_STEPS = 20  # as conf/recipe/long_sft.yaml says
STRIKE_STEP = 30
Calm = Callable[[str], str]


@dataclasses.dataclass
class Storm:
    """A run of SFT that something strikes."""

    pipeline: Pipeline
    struck: float = 0.0
    """When, in seconds since the epoch."""


@pytest.fixture(scope="module")
def start(smoke: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pipeline]:
    """Submit SFT, and what waits for it unless it is alone, in a store of its own that holds everything before it."""

    def submit(name: str, *overrides: str, alone: bool = True) -> Pipeline:
        root = tmp_path_factory.mktemp(name)
        copy_artifacts(smoke.root, root, *BEFORE_SFT)
        pipeline = Pipeline(smoke.cluster, root, name, ("recipe=long_sft", *overrides))
        pipeline.run(*["stages.evaluate_sft=null"] * alone)
        return pipeline

    return submit


@pytest.fixture(scope="module")
def calm(start: Callable[..., Pipeline]) -> Calm:
    """The digest of the model that an uninterrupted run makes, by distribution."""

    @cache
    def digest(kind: str) -> str:
        pipeline = start(f"calm-{kind}", f"distributed={kind}")
        pipeline.wait()
        assert causes(pipeline) == [Cause.DONE]
        return pipeline.manifest("sft").digest

    return digest


def kill_a_rank(storm: Storm) -> None:
    """SIGKILL a rank of the last element of a job array, whose own job id is that of the whole array."""
    storm.pipeline = dataclasses.replace(storm.pipeline, name=f"{storm.pipeline.name}-learning_rate-0.003")
    ranks = storm.pipeline.wait_for_step("sft", STRIKE_STEP)
    storm.struck = time.time()
    os.kill(ranks[1].pid, signal.SIGKILL)


def stop_a_rank(storm: Storm) -> None:
    ranks = storm.pipeline.wait_for_step("sft", STRIKE_STEP)
    storm.struck = time.time()
    os.kill(ranks[1].pid, signal.SIGSTOP)


def kill_a_rank_of_each_attempt(storm: Storm) -> None:
    for attempt in (1, 2):
        ranks = storm.pipeline.wait_for_step("sft", 1, attempt)
        storm.struck = time.time()
        os.kill(ranks[1].pid, signal.SIGKILL)


# A machine that is busy with other work may not even start within these times: then tries until it does.
PATIENT = ["launcher.slurm.retries.without_progress=50", "launcher.slurm.retries.hung=50"]
INDEPENDENT: dict[str, tuple[Callable[[Storm], None], list[str]]] = {
    "rank-stopped": (stop_a_rank, ["distributed.timeout_seconds=40", *PATIENT]),
    "rank-killed": (kill_a_rank, ["stages.sft.with.optimizer.learning_rate=1e-3,3e-3"]),
    "crash-loop": (kill_a_rank_of_each_attempt, ["launcher.slurm.retries.without_progress=2"]),
}


@pytest.fixture(scope="module")
def storms(start: Callable[..., Pipeline]) -> Iterator[dict[str, Future[Storm]]]:
    """What strikes one job alone, all at once, since most of it is waiting."""

    def weather(strike: Callable[[Storm], None], storm: Storm) -> Storm:
        strike(storm)
        storm.pipeline.wait()
        return storm

    with ThreadPoolExecutor(len(INDEPENDENT)) as pool:
        yield {
            name: pool.submit(
                weather, strike, Storm(start(name, "distributed=ddp", *overrides, alone=name != "crash-loop"))
            )
            for name, (strike, overrides) in INDEPENDENT.items()
        }


def causes(pipeline: Pipeline) -> list[Cause]:
    return [attempt.cause for attempt in pipeline.attempts("sft")]


def lost_steps(pipeline: Pipeline) -> list[int]:
    """Return how many steps each attempt did that the next had to do again."""
    attempts = pipeline.attempts("sft")
    reached = [max((rank.step or 0 for rank in pipeline.ranks("sft", one.number)), default=0) for one in attempts]
    return [max(step - following.step, 0) for step, following in zip(reached[:-1], attempts[1:], strict=True)]


def check(storm: Storm, digest: str, cause: Cause, most_lost: int) -> None:
    """The run ended by itself after attempts that ``cause`` ended, in the calm run's weights, each step logged once."""
    pipeline = storm.pipeline
    found = causes(pipeline)
    print(figures(storm))
    assert set(found[:-1]) == {cause}, [attempt.message for attempt in pipeline.attempts("sft")]
    assert found[-1] is Cause.DONE
    assert max(lost_steps(pipeline)) <= most_lost, lost_steps(pipeline)
    assert pipeline.attempts("sft")[-1].step > 0
    assert pipeline.manifest("sft").digest == digest
    steps = [line["step"] for line in pipeline.metrics("sft") if "loss" in line]
    assert steps == list(range(1, 201))


def figures(storm: Storm) -> str:
    """Return one line: what ended the attempt, and the seconds until each stage of the recovery."""
    pairs = pairwise(storm.pipeline.attempts("sft"))
    attempt, following = next(pair for pair in pairs if (pair[0].ended or pair[1].started) > storm.struck)
    ended = attempt.ended or following.started
    first = next(line["time"] for line in storm.pipeline.metrics("sft") if line["step"] == following.step + 1)
    return (
        f"{storm.pipeline.name:<16} {attempt.cause:<13} end of the attempt {ended - storm.struck:5.1f} s, "
        f"in the queue {following.started - ended:5.1f} s, first new step {first - following.started:5.1f} s, "
        f"lost steps {lost_steps(storm.pipeline)}"
    )


def test_a_killed_rank(storms: dict[str, Future[Storm]], calm: Calm) -> None:
    storm = storms["rank-killed"].result()
    check(storm, calm("ddp"), Cause.PROCESS_LOST, SAVE_STEPS)
    other = dataclasses.replace(storm.pipeline, name="rank-killed-learning_rate-0.001")
    poll(lambda: not other.in_queue(), PATIENCE, "the other element of the array to end")
    assert causes(other) == [Cause.DONE]


def test_a_rank_that_stands_still(storms: dict[str, Future[Storm]], calm: Calm) -> None:
    storm = storms["rank-stopped"].result()
    check(storm, calm("ddp"), Cause.HUNG, SAVE_STEPS)
    (named,) = [one for one in storm.pipeline.attempts("sft") if one.message.startswith("rank 1 (pid ")]
    assert ", stopped) stood still for 40 s (" in named.message
    folder = signs_of_life(storm.pipeline.run_directory.attempts("sft")[named.number - 1])
    assert all("most recent call first" in (folder / f"rank_{rank}.stack.txt").read_text() for rank in (0, 1))


@pytest.mark.slow
def test_the_time_limit(start: Callable[..., Pipeline], calm: Calm) -> None:
    limit = ["stages.sft.slurm.time_limit='2'", "launcher.slurm.signal_seconds=60"]
    storm = Storm(start("time-limit", "distributed=ddp", *limit, *PATIENT))
    with suspended_until_warned(storm.pipeline.wait_for_step("sft", STRIKE_STEP)):  # until Slurm warns it
        storm.struck = time.time()
    storm.pipeline.wait()
    check(storm, calm("ddp"), Cause.TIME_LIMIT, 0)


def test_a_crash_loop_is_given_up(storms: dict[str, Future[Storm]]) -> None:
    pipeline = storms["crash-loop"].result().pipeline
    assert causes(pipeline) == [Cause.PROCESS_LOST, Cause.PROCESS_LOST]
    assert pipeline.states() == {"sft": "FAILED", "evaluate_sft": "CANCELLED"}
    assert pipeline.cluster.job(pipeline.jobs()["sft"])["ExitCode"] == "1:0"
    first = pipeline.status().splitlines()[0]
    assert first.startswith("error: sft: ")
    assert "2 attempts in a row ended at step 0, where they began" in first


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("ddp",), ("zero3", "fsdp2")])
def test_preempted(kinds: tuple[str, ...], start: Callable[..., Pipeline], calm: Calm, slurm: SlurmCluster) -> None:
    """A job with more priority takes both nodes; every stage saves within the grace time and comes back.

    So does one whose batch script is not done with its setup.
    """
    pipelines = {kind: start(f"preempted-{kind}", f"distributed={kind}") for kind in kinds}
    with ExitStack() as suspended:
        for pipeline in pipelines.values():
            suspended.enter_context(suspended_until_warned(pipeline.wait_for_step("sft", STRIKE_STEP)))
        early = start(f"preempted-early-{len(kinds)}", "distributed=ddp", "launcher.slurm.setup=[sleep 20]")
        slurm.wait_for(early.jobs()["sft"], "RUNNING")
        struck = time.time()
        urgent = slurm.submit("sleep 5", "--partition=urgent", "--nodes=2", "--exclusive")
    for kind, pipeline in pipelines.items():
        pipeline.wait()
        check(Storm(pipeline, struck), calm(kind), Cause.PREEMPTED, 0)
    assert slurm.job(urgent)["JobState"] == "COMPLETED"
    early.wait()
    assert slurm.job(early.jobs()["sft"])["Restarts"] == "1"
    assert (causes(early), early.manifest("sft").digest) == ([Cause.DONE], calm("ddp"))


@pytest.mark.parametrize("node", ["node1", pytest.param("node2", marks=pytest.mark.slow)])
def test_a_lost_node(node: str, start: Callable[..., Pipeline], calm: Calm, slurm: SlurmCluster) -> None:
    """The first node of the job runs its driver, the second only a rank."""
    storm = Storm(start(f"lost-{node}", "distributed=ddp"))
    storm.pipeline.wait_for_step("sft", STRIKE_STEP)
    storm.struck = time.time()
    slurm.stop_node(node)
    poll(lambda: slurm.nodes()[node].startswith("DOWN"), PATIENCE, f"{node} to be missed")
    slurm.start_node(node)
    storm.pipeline.wait()
    check(storm, calm("ddp"), Cause.INTERRUPTED, SAVE_STEPS)
