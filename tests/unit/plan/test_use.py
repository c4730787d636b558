"""A training stage says what it made of its machine, beside what was planned for it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.plan.families import read_shape
from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import training_flops_per_token
from posttrain.train.engine.use import describe_use

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _context(model: Path, run: str = "train.sft", kind: str = "full") -> Any:
    (model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    adapter = {"kind": kind, "rank": 4, "target_modules": "all-linear"}
    spec = {"run": run, "config": {"adapter": adapter, "dtype": "float32", "tf32": False}}
    return SimpleNamespace(
        spec=SimpleNamespace(**spec, distributed=SimpleNamespace(num_processes=2)), inputs={"model": model}
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is that of a GPU here")
def test_rate_utilisation_and_memory_stand_in_one_line(tmp_path: Path) -> None:
    context = _context(tmp_path)
    shape = read_shape(tmp_path)
    memory = estimate_memory(shape, tokens=1000)
    share = 50_000 * training_flops_per_token(shape, 100) / (2 * torch.get_num_threads() * 100e9)
    line = describe_use(context, 100_000, 2.0, 100, memory)
    assert line.startswith(f"used: 50.0 k tokens/s; MFU {100 * share:.1f} % of 2 × ")
    assert f"planned {memory.total / (1 << 20):.1f} MiB" in line


def test_an_adapter_needs_fewer_flops_and_two_models_have_no_one_share(tmp_path: Path) -> None:
    full, low_rank = (describe_use(_context(tmp_path, kind=kind), 100_000, 0.5, 100, None) for kind in ("full", "lora"))
    assert full != low_rank and "planned" not in full
    assert "MFU" not in describe_use(_context(tmp_path, "train.ppo"), 100_000, 2.0, 100, None)
    assert describe_use(_context(tmp_path), 0, 0.0, 100, None) == "no step was trained here"
