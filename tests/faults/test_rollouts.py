"""PPO and GRPO stopped or killed in a rollout, while it is scored and in an update: they go on exactly.

A rollout that is stopped leaves the state of the step before it; what it had sampled is sampled again.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_model, build_prompts, build_reward_model
from forked_ranks import logs_of, start_ranks, wait_for, work_order
from forked_stages import run_child, signal_in

from posttrain.stage.artifact import read_manifest
from posttrain.stage.outcome import Outcome, read_outcome
from posttrain.stage.spec import Distributed

KNOBS = {
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "save_steps": 5,
    "max_steps": 7,
    "log_steps": 1,
    "rollout_batch_size": 16,
    "max_new_tokens": 8,
}
STAGES = {
    # the coefficient adapts with every rollout, and some rollouts end before their last step
    "ppo": {"ppo_epochs": 1, "kl.target": 1.0, "kl.horizon": 64, "early_stop_kl": 1e-4},
    "grpo": {"samples_per_prompt": 2, "num_iterations": 1, "beta": 0.05},
}
EACH = ["ppo", pytest.param("grpo", marks=pytest.mark.slow)]
SAVED = "a checkpoint is saved; run the same command to go on"


class Bench:
    """What the stages need, and what undisturbed runs of them make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        model = build_model(root)
        self.inputs = {"model": model, "data": build_prompts(root, model), "reward": build_reward_model(root, model)}
        self.digests = {}
        for stage in STAGES:
            assert self.run(stage, "whole")[0] == 0, self.log()
            self.digests[stage] = read_manifest(self.output(stage, "whole")).digest

    def output(self, stage: str, name: str) -> Path:
        return self.root / "artifacts" / f"{stage}-{name}"

    def run(self, stage: str, name: str, function: str = "", call: int = 0, number: int = 0) -> tuple[int, str]:
        """Run a stage, with a signal to it in the ``call``-th call of a function; returns code and outcome."""
        output = self.output(stage, name)
        arguments = [f"inputs.{key}={path}" for key, path in self.inputs.items()]
        arguments += [f"output={output}", "tracking.wandb=disabled", "seed=3"]
        arguments += [f"{key}={value}" for key, value in (KNOBS | STAGES[stage]).items()]
        (self.root / "child.log").unlink(missing_ok=True)
        output.with_name(f"{output.name}.outcome.json").unlink(missing_ok=True)
        prepare = partial(signal_in, function, call, number) if function else None
        code, _ = run_child(f"posttrain.train.{stage}", arguments, self.root, prepare=prepare)
        outcome = read_outcome(output.with_name(f"{output.name}.outcome.json"))
        return code, outcome.message if outcome else ""

    def log(self) -> str:
        return (self.root / "child.log").read_text()[-3000:]

    def assert_goes_on(self, stage: str, name: str) -> None:
        assert self.run(stage, name)[0] == 0, self.log()
        assert read_manifest(self.output(stage, name)).digest == self.digests[stage]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("rollouts"))


def sampled_before(rollout: int) -> int:
    """Return a number of tokens by which that rollout has begun and is not over: 16 responses of 1 to 8 tokens."""
    return 16 * 8 * (rollout - 1) + 10


@pytest.mark.parametrize("stage", EACH)
def test_asked_to_stop_in_the_first_rollout_it_starts_again(bench: Bench, stage: str) -> None:
    message = (
        "stopped on request in rollout 1, after step 0 of 7; nothing was to be saved yet; the same command starts "
    )
    assert bench.run(stage, "first", "_go_on", 10, signal.SIGTERM) == (75, message + "again"), bench.log()
    assert not list(bench.root.glob("artifacts/*-first.work/checkpoints/checkpoint-*"))
    bench.assert_goes_on(stage, "first")


@pytest.mark.parametrize("stage", STAGES)
def test_asked_to_stop_in_a_later_rollout_it_saves_the_step_before(bench: Bench, stage: str) -> None:
    code, message = bench.run(stage, "later", "_go_on", sampled_before(2), signal.SIGUSR1)
    assert code == 75 and message.startswith("stopped on request in rollout 2, after step "), bench.log()
    assert message.endswith(SAVED)
    step = message.partition("after step ")[2].partition(" ")[0]
    (saved,) = bench.output(stage, "later.work").glob("checkpoints/checkpoint-*")
    assert saved.name == f"checkpoint-{step}"
    bench.assert_goes_on(stage, "later")


@pytest.mark.parametrize("stage", EACH)
@pytest.mark.parametrize(("function", "call"), [("_reward", 2), ("training_step", 4)])
def test_asked_to_stop_between_rollouts_it_ends_with_the_step(
    bench: Bench, stage: str, function: str, call: int
) -> None:
    code, message = bench.run(stage, function, function, call, signal.SIGTERM)
    assert code == 75 and message.startswith("stopped on request at step "), bench.log()
    bench.assert_goes_on(stage, function)


@pytest.mark.parametrize("stage", EACH)
@pytest.mark.parametrize(
    ("function", "call"), [("_go_on", sampled_before(3)), ("_reward", 3), ("compute_loss", 11), ("save_episodes", 1)]
)
def test_killed_it_goes_on(bench: Bench, stage: str, function: str, call: int) -> None:
    name = f"killed-{function}"
    assert bench.run(stage, name, function, call, signal.SIGKILL)[0] == -signal.SIGKILL
    bench.assert_goes_on(stage, name)


def test_one_rank_asked_to_stop_in_a_rollout_stops_both(bench: Bench) -> None:
    output = bench.output("ppo", "two-ranks")
    knobs = KNOBS | {"ppo_epochs": 1}
    spec = work_order("ppo", output, bench.inputs, Distributed("ddp", 2), **knobs)

    def prepare() -> None:
        os.environ.update(ENVIRONMENT)
        if os.environ["RANK"] == "1":
            signal_in("_go_on", 8 * 8 + 5, signal.SIGTERM)

    codes = wait_for(start_ranks("ppo", spec, 2, prepare))
    assert codes == [75, 75], logs_of(spec)[-3000:]
    message = f"stopped on request in rollout 2, after step 2 of 7; {SAVED}"
    assert read_outcome(output.with_name(f"{output.name}.outcome.json")) == Outcome(75, message, "StoppedError")
    assert wait_for(start_ranks("ppo", spec, 2)) == [0, 0], logs_of(spec)[-3000:]
    whole = bench.output("ppo", "two-ranks-whole")
    again = work_order("ppo", whole, bench.inputs, Distributed("ddp", 2), **knobs)
    assert wait_for(start_ranks("ppo", again, 2)) == [0, 0], logs_of(again)[-3000:]
    assert read_manifest(output).digest == read_manifest(whole).digest
