"""PPO, preempted in the middle of a rollout and of an update: nothing is lost, and the weights are the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cluster import SlurmCluster, poll
from pipelines import PATIENCE, Pipeline, copy_artifacts, suspended_until_warned

from posttrain.pipeline.slurm.attempts import Cause
from posttrain.stage.heartbeat import RankBeat

BEFORE_PPO = (
    *(
        "sources",
        "items",
        "gold_comparisons",
        "demonstrations",
        "comparisons",
        "texts",
        "untrained",
        "text_tokens",
        "base",
    ),
    *("demonstration_tokens", "comparison_tokens", "prompt_tokens", "sft", "reward"),
)
EARLIEST_STEP = 8  # of the second rollout


def start(smoke: Pipeline, root: Path, name: str) -> Pipeline:
    copy_artifacts(smoke.root, root / name, *BEFORE_PPO)
    pipeline = Pipeline(smoke.cluster, root / name, name, ("recipe=long_ppo", "distributed=ddp"))
    pipeline.run()
    assert set(pipeline.jobs()) == {"ppo"}
    return pipeline


def catch(pipeline: Pipeline, phase: str) -> list[RankBeat]:
    """Suspend both ranks while they are in a phase, after some steps."""
    ranks = pipeline.wait_for_step("ppo", EARLIEST_STEP)

    def in_phase() -> bool:
        return all(rank.phase == phase for rank in pipeline.ranks("ppo"))

    def caught() -> list[RankBeat] | None:
        if not in_phase():
            return None
        for rank in ranks:
            os.kill(rank.pid, signal.SIGSTOP)
        if in_phase():
            return ranks
        for rank in ranks:  # they got on in between
            os.kill(rank.pid, signal.SIGCONT)
        return None

    return poll(caught, PATIENCE, f"PPO to be {phase}")


def test_preempted_in_a_rollout_and_in_an_update(smoke: Pipeline, tmp_path: Path, slurm: SlurmCluster) -> None:
    sampling, training = (start(smoke, tmp_path, phase) for phase in ("sampling", "training"))
    caught = [rank for pipeline in (sampling, training) for rank in catch(pipeline, pipeline.name)]
    with suspended_until_warned(caught):
        struck = time.time()
        urgent = slurm.submit("sleep 2", "--partition=urgent", "--nodes=2", "--exclusive")
    calm = start(smoke, tmp_path, "calm")
    for pipeline in (sampling, training, calm):
        pipeline.wait()
    assert slurm.job(urgent)["JobState"] == "COMPLETED"
    assert [attempt.cause for attempt in calm.attempts("ppo")] == [Cause.DONE]
    for pipeline in (sampling, training):
        first, second = pipeline.attempts("ppo")
        assert (first.cause, second.cause) == (Cause.PREEMPTED, Cause.DONE), first.message
        assert first.ended is not None and first.ended > struck
        assert second.step >= EARLIEST_STEP
        assert [row["step"] for row in pipeline.metrics("ppo") if "loss" in row] == list(range(1, 41))
        assert pipeline.manifest("ppo").digest == calm.manifest("ppo").digest
    assert "stopped on request in rollout" in sampling.attempts("ppo")[0].message
    assert "stopped on request at step" in training.attempts("ppo")[0].message
