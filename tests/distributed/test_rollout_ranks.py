"""PPO, RLOO and GRPO on two ranks, which share the rollouts, train what one process trains, and go on as exactly."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import build_model, build_prompts, build_reward_model
from forked_ranks import distributed, logs_of, start_ranks, train, wait_for, work_order
from safetensors.torch import load_file

from posttrain.stage.files import sha256_file

COMMON: dict[str, Any] = {
    "rollout_batch_size": 16,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "max_new_tokens": 8,
    "max_steps": 8,
    "save_steps": 3,  # within a rollout, not at its end
    "log_steps": 1,
    "optimizer": {"learning_rate": 1e-3},
}
GROUPS = {"samples_per_prompt": 4, "num_iterations": 2, "beta": 0.05, "rewards": [{"kind": "regex", "pattern": "e"}]}
KNOBS = {"ppo": {"ppo_epochs": 2}, "rloo": GROUPS, "grpo": GROUPS}
SAME = ["loss", "grad_norm", "objective/scores", "objective/rlhf_reward", "objective/entropy", "objective/kl"]
KINDS = ["ddp", "zero2", "zero3", "fsdp2"]
LORA = {"adapter": {"kind": "lora", "rank": 4}}


class Rollouts:
    """The inputs of the stages, and what one process makes of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root, attention_dropout=0.0)
        self.prompts = build_prompts(root, self.model)
        self.reward = build_reward_model(root, self.model)

    def inputs(self, stage: str) -> dict[str, Path]:
        reward = {"reward": self.reward} if stage == "ppo" else {}
        return {"model": self.model, "data": self.prompts, **reward}

    def train(self, stage: str, kind: str, processes: int, tag: str = "", **knobs: Any) -> Path:
        """Return the artifact of a stage, made once."""
        output = self.root / "artifacts" / f"{stage}_{kind}_{processes}{tag}"
        if not output.exists():
            knobs = COMMON | KNOBS[stage] | knobs
            train(stage, output, self.inputs(stage), distributed(kind, processes), **knobs)
        return output


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    return Rollouts(tmp_path_factory.mktemp("rollouts"))


def history(artifact: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def same(one: Path, two: Path) -> None:
    """Check that two runs logged and learnt the same, but for the order of float32 sums."""
    assert len(history(one)) == COMMON["max_steps"]
    for alone, together in zip(history(one), history(two), strict=True):
        for name in SAME:
            assert (name in alone) == (name in together)
            if name in alone:
                assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name
    (name,) = (path.name for path in one.glob("*.safetensors"))
    weights, expected = load_file(two / name), load_file(one / name)
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(weights[key], tensor, atol=1e-4, rtol=0)


IN_CI = [pytest.param(kind, marks=[] if kind in ("ddp", "zero3") else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize(
    ("stage", "kind"),
    [*(("ppo", kind) for kind in KINDS), ("rloo", "ddp"), ("rloo", "fsdp2"), ("grpo", "zero2"), ("grpo", "zero3")],
)
def test_two_ranks_equal_one(rollouts: Rollouts, stage: str, kind: str) -> None:
    same(rollouts.train(stage, "single", 1), rollouts.train(stage, kind, 2))


@pytest.mark.parametrize("kind", [*KINDS[:2], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])])
@pytest.mark.parametrize("critic", ["reward_model", pytest.param("shared", marks=pytest.mark.slow)])
def test_two_ranks_equal_one_with_an_adapter(rollouts: Rollouts, kind: str, critic: str) -> None:
    knobs = LORA | {"critic": {"kind": critic}}
    alone = rollouts.train("ppo", "single", 1, f"_lora_{critic}", **knobs)
    same(alone, rollouts.train("ppo", kind, 2, f"_lora_{critic}", **knobs))


@pytest.mark.parametrize("kind", IN_CI)
def test_a_killed_rank_goes_on_bit_identical(rollouts: Rollouts, kind: str) -> None:
    """The checkpoint lies between two steps of a rollout, whose episodes it holds."""
    undisturbed = rollouts.train("ppo", kind, 2)
    output = rollouts.root / "artifacts" / f"killed_{kind}"
    inputs, knobs = rollouts.inputs("ppo"), COMMON | KNOBS["ppo"]
    spec = work_order("ppo", output, inputs, distributed(kind, 2), **knobs)
    children = start_ranks("ppo", spec, 2)
    checkpoint = output.with_name(f"{output.name}.work") / "checkpoints" / "checkpoint-3"
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert time.monotonic() < deadline, logs_of(spec)
        time.sleep(0.001)
    os.kill(children[1], signal.SIGKILL)
    assert wait_for(children)[1] == -signal.SIGKILL
    assert not output.exists()
    train("ppo", output, inputs, distributed(kind, 2), **knobs)
    assert [row["loss"] for row in history(output)] == [row["loss"] for row in history(undisturbed)]
    assert sha256_file(output / "model.safetensors") == sha256_file(undisturbed / "model.safetensors")
