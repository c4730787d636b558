"""Ranks that `accelerate launch` starts by hand train what one process trains, also with its own DeepSpeed options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import ENVIRONMENT, build_comparisons, build_demonstrations, build_model, stage_command
from safetensors.torch import load_file

STEPS = 6


def launch(
    module: str, output: Path, inputs: dict[str, Path], processes: int, mode: tuple[str, ...] = ("--multi_gpu",)
) -> dict[str, torch.Tensor]:
    """Run a training stage by hand on that many ranks, and return the weights that it made."""
    knobs: dict[str, Any] = {"global_batch_size": 8, "micro_batch_size": 4, "log_steps": 1, "max_steps": STEPS}
    if processes > 1 and module == "train.reward":
        knobs["micro_batch_tokens"] = 110  # two and a few rows, so that ranks have unequally many
    command = stage_command(module, output, inputs, seed=3, optimizer__learning_rate=1e-3, **knobs)
    environment = {**os.environ, **ENVIRONMENT}
    if processes > 1:
        # `--cpu --num_processes 2` starts one process without a word; this form starts two gloo ranks
        accelerate = ["accelerate.commands.launch", *mode, f"--num_processes={processes}", "--num_machines=1"]
        accelerate += ["--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"]
        command = [sys.executable, "-m", *accelerate, *command[1:]]
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(output / "model.safetensors")


def losses(artifact: Path) -> list[float]:
    lines = [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "reward"])
def test_two_ranks_equal_one(tmp_path: Path, stage: str) -> None:
    model = build_model(tmp_path, attention_dropout=0.0)
    data = build_demonstrations(tmp_path, model) if stage == "sft" else build_comparisons(tmp_path, model)
    inputs = {"model": model, "data": data}
    one, two = (tmp_path / "artifacts" / name for name in ("one", "two"))
    alone = launch(f"train.{stage}", one, inputs, processes=1)
    together = launch(f"train.{stage}", two, inputs, processes=2)
    assert losses(two) == pytest.approx(losses(one), abs=2e-4)
    for name, tensor in alone.items():  # Adam turns a rounding difference of a tiny gradient into up to one step
        torch.testing.assert_close(together[name], tensor, atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_by_hand(tmp_path: Path, stage: int) -> None:
    model = build_model(tmp_path, attention_dropout=0.0)
    inputs = {"model": model, "data": build_demonstrations(tmp_path, model)}
    settings = tmp_path / "deepspeed.json"
    auto = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"), "auto")
    settings.write_text(
        json.dumps({**auto, "gradient_accumulation_steps": "auto", "zero_optimization": {"stage": stage}})
    )
    one, two = (tmp_path / "artifacts" / name for name in ("one", "two"))
    alone = launch("train.sft", one, inputs, processes=1)
    together = launch("train.sft", two, inputs, 2, ("--use_deepspeed", f"--deepspeed_config_file={settings}"))
    assert losses(two) == pytest.approx(losses(one), abs=2e-4)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=2e-4, rtol=0)
