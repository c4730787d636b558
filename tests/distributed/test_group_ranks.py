"""RLOO and GRPO on two ranks, which share the rollouts, train what one process trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from build_artifacts import build_model, build_prompts
from forked_ranks import distributed, start_ranks, train, wait_for, work_order
from safetensors.torch import load_file

KNOBS = {
    "rollout_batch_size": 16,
    "samples_per_prompt": 4,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "num_iterations": 2,
    "max_new_tokens": 8,
    "max_steps": 6,
    "log_steps": 1,
    "rewards": [{"kind": "regex", "pattern": "e"}],
    "optimizer": {"learning_rate": 1e-3},
}
SAME = ["loss", "grad_norm", "objective/scores", "objective/rlhf_reward", "objective/entropy", "policy/approxkl"]


def history(artifact: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(("stage", "kind"), [("rloo", "ddp"), ("grpo", "ddp"), ("grpo", "zero2")])
def test_two_ranks_equal_one(tmp_path: Path, stage: str, kind: str) -> None:
    model = build_model(tmp_path, attention_dropout=0.0)
    inputs = {"model": model, "data": build_prompts(tmp_path, model)}
    artifacts = tmp_path / "artifacts"
    one = train(stage, artifacts / "one", inputs, distributed("single", 1), **KNOBS)
    two = train(stage, artifacts / "two", inputs, distributed(kind, 2), **KNOBS)
    for alone, together in zip(history(one), history(two), strict=True):
        for name in SAME:
            assert (name in alone) == (name in together)
            if name in alone:
                assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5)
    weights = load_file(two / "model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "engine"), [("zero3", "zero3"), ("fsdp2", "fsdp")])
def test_weights_in_parts_are_refused_before_a_model_loads(tmp_path: Path, kind: str, engine: str) -> None:
    model = build_model(tmp_path)
    output = tmp_path / "artifacts" / "refused"
    inputs = {"model": model, "data": build_prompts(tmp_path, model)}
    spec = work_order("grpo", output, inputs, distributed(kind, 2), **KNOBS)
    assert wait_for(start_ranks("grpo", spec, 2)) == [2, 2]
    message = output.with_name("refused.outcome.json").read_text()
    assert f"distributed={engine}: train.grpo samples from the policy" in message
    assert "use distributed=ddp or zero2" in message
