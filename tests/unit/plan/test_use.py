"""A training stage says what it made of its machine, beside what was planned for it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.plan.families import read_shape
from posttrain.plan.footprint import Rollouts, Setting, Training
from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import training_flops_per_token
from posttrain.plan.table import describe_memory
from posttrain.stage.spec import Distributed
from posttrain.train.config.common import OptimizerConfig
from posttrain.train.config.ppo import CriticConfig, PpoConfig
from posttrain.train.config.sft import SftConfig
from posttrain.train.engine.batching import BatchPlan
from posttrain.train.engine.opening import estimated_memory
from posttrain.train.engine.use import Trained, describe_use
from posttrain.train.rollouts.memory import estimated_rollouts

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _context(model: Path, run: str = "train.sft") -> Any:
    (model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    spec = SimpleNamespace(run=run, config={}, distributed=SimpleNamespace(num_processes=2))
    return SimpleNamespace(spec=spec, inputs={"model": model})


def _trained(tokens: int, seconds: float, adapter: int | None = None) -> Trained:
    return Trained(tokens, seconds, 100.0, adapter, "float32", tf32=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is that of a GPU here")
def test_rate_utilisation_and_memory_stand_in_one_line(tmp_path: Path) -> None:
    context = _context(tmp_path)
    shape = read_shape(tmp_path)
    memory = estimate_memory(shape, tokens=1000)
    share = 50_000 * training_flops_per_token(shape, 100) / (2 * torch.get_num_threads() * 100e9)
    line = describe_use(context, _trained(100_000, 2.0), memory)
    assert line.startswith(f"used: 50.0 k tokens/s; MFU {100 * share:.1f} % of 2 × ")
    assert f"planned {memory.total / (1 << 20):.1f} MiB" in line


def test_an_adapter_needs_fewer_flops_and_two_models_have_no_one_share(tmp_path: Path) -> None:
    context = _context(tmp_path)
    full, low_rank = (describe_use(context, _trained(100_000, 0.5, adapter), None) for adapter in (None, 1000))
    assert full != low_rank and "planned" not in full
    assert "MFU" not in describe_use(_context(tmp_path, "train.ppo"), _trained(100_000, 2.0), None)
    assert describe_use(context, _trained(0, 0.0), None) == "no step was trained here"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the trunk of CPUs is planned")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stage_says_what_the_plan_says(tmp_path: Path, accumulation: int) -> None:
    context = _context(tmp_path)
    context.spec.distributed = Distributed("single", 1)
    config = SftConfig(optimizer=OptimizerConfig(kind="muon"))
    batches = BatchPlan(64, 8 * accumulation, 8, 1, accumulation, 10)
    estimate = estimated_memory(config, context, batches, 128, "lm")
    share = 8 * accumulation
    training = Training(read_shape(tmp_path), "lm", 128, 1, share=share, on_cpu=True, optimizer="muon")
    assert estimate == training.memory(Setting(8, False, "full", "float32", None))
    assert estimate is not None and ("gradients" in describe_memory(estimate)) == (accumulation > 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the trunk of CPUs is planned")
@pytest.mark.parametrize("critic", ["reward_model", "policy", "shared"])
def test_a_stage_with_rollouts_plans_its_models_and_its_cache(tmp_path: Path, critic: Any) -> None:
    context = _context(tmp_path, "train.ppo")
    context.spec.distributed = Distributed("single", 1)
    context.inputs["reward"] = tmp_path
    config = PpoConfig(max_new_tokens=32, rollout_batch=16, critic=CriticConfig(kind=critic))
    shape, batches = read_shape(tmp_path), BatchPlan(64, 8, 8, 1, 1, 10)
    estimate = estimated_rollouts(config, context, batches, 40, True)
    beside = None if critic == "shared" else shape
    rollouts = Rollouts(32, 16, True, shape, beside)
    training = Training(shape, "lm", 72, 1, rollouts=rollouts, share=8, on_cpu=True)
    assert estimate == training.memory(Setting(8, False, "full", "float32", None))
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}', encoding="utf-8")
    assert estimated_rollouts(config, context, batches, 40, True) is None
