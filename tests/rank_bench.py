"""Inputs of the stages that run on several ranks, and what they are compared by."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from build_artifacts import ENVIRONMENT, build_comparisons, build_demonstrations, build_model, build_unpaired
from forked_ranks import distributed, train
from safetensors.torch import load_file

KNOBS: dict[str, Any] = {
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "log_steps": 1,
    "max_steps": 6,
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5},
}


@dataclasses.dataclass
class Bench:
    """A model and tokens for all stages; artifacts are made in its folder."""

    root: Path
    model: Path
    demonstrations: Path
    comparisons: Path
    unpaired: Path

    def inputs(self, stage: str, model: Path | None = None) -> dict[str, Path]:
        """Return the inputs of a stage, for DPO and KTO with reference log-probabilities of the model."""
        model = model or self.model
        if stage == "sft":
            return {"model": model, "data": self.demonstrations}
        inputs = {"model": model, "data": self.unpaired if stage == "kto" else self.comparisons}
        if stage in ("dpo", "kto"):
            reference = self.root / "artifacts" / f"{stage}_reference_of_{model.name}"
            if not reference.exists():
                train("reference", reference, inputs, distributed("single", 1))
            inputs["reference"] = reference
        return inputs

    def train(
        self, stage: str, kind: str, processes: int = 2, model: Path | None = None, tag: str = "", **knobs: Any
    ) -> Path:
        """Run a stage once; the same question again returns the artifact that stands. ``tag`` tells knobs apart."""
        output = self.artifact(f"{stage}_{kind}_{processes}_{tag}_of_{(model or self.model).name}")
        if output.exists():
            return output
        how = distributed(kind, processes)
        return train(stage, output, self.inputs(stage, model), how, **{**KNOBS, **knobs})

    def artifact(self, name: str) -> Path:
        """Return where the artifact of that name is made."""
        return self.root / "artifacts" / name


def make_bench(root: Path, attention_dropout: float) -> Bench:
    """Import what the ranks need, so that they can be forked from here, and build their inputs."""
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    for module in ("sft", "reward", "dpo", "kto", "reference"):
        importlib.import_module(f"posttrain.train.{module}")
    with warnings.catch_warnings(action="ignore"):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # or each rank of a ZeRO engine does
    model = build_model(root, attention_dropout=attention_dropout, new_tokens=True)
    made = (build(root, model) for build in (build_demonstrations, build_comparisons, build_unpaired))
    return Bench(root, model, *made)


def losses(artifact: Path, name: str = "loss") -> list[float]:
    """Return a metric of all steps, in order."""
    lines = [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(artifact: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of an artifact, from one file or several."""
    tensors: dict[str, torch.Tensor] = {}
    for path in artifact.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors
