"""What SFT, DPO and PPO of a model take on one of several GPUs, part by part.

    python scripts/memory_table.py --model 8b --gpus 8
    python scripts/memory_table.py --model 70b --gpus 16

The model is built without storage, and every parameter is taken apart as the engine does it: FSDP2 cuts the first
dimension into equal parts, ZeRO-3 the flat weights. Activations are `posttrain plan`'s, with gradient checkpointing, in
bfloat16. Nothing is run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.plan.families import shape_from_config
from posttrain.plan.memory import activation_bytes_per_token, head_bytes
from posttrain.plan.model import count_adapter, count_parameters

RANK = 16
_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SIZES = {"8b": (128256, 4096, 14336, 32, 32), "70b": (128256, 8192, 28672, 80, 64)}
MODELS = {
    name: {**dict(zip(_NAMES, sizes, strict=True)), "num_key_value_heads": 8, "head_dim": 128}
    for name, sizes in _SIZES.items()
}
"""Shapes of Llama 3."""
GATHERED = 2
"""Layers whose weights are whole at once: the one that computes and the next."""


def part_of(parameter: nn.Parameter, engine: str, gpus: int) -> int:
    """Return how many numbers of a parameter a GPU keeps."""
    if engine == "fsdp2":
        return math.ceil(parameter.shape[0] / gpus) * (parameter.numel() // parameter.shape[0])
    return math.ceil(parameter.numel() / gpus)


def shares(model: nn.Module, engine: str, gpus: int) -> tuple[int, int, int]:
    """Return the numbers of a model in all, on one GPU, and those of its largest layer."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    parts = sum(part_of(parameter, engine, gpus) for parameter in model.parameters())
    return sum(p.numel() for p in model.parameters()), parts, max(layers)


def table(model: nn.Module, sizes: dict[str, int], gpus: int, tokens: int) -> Iterator[list[str | float]]:
    """Yield a row for each stage, adapter, critic and engine: gigabytes of one GPU by part."""
    shape = shape_from_config({"model_type": "llama", **sizes}, "the model")
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())
    adapter = count_adapter(shape, RANK, "all-linear")
    for engine in ("fsdp2", "zero3"):
        whole, part, layer = shares(model, engine, gpus)
        states = 16 * part  # float32 weights, gradients and two moments, or bfloat16 ones with a float32 copy
        gathered = 2 * GATHERED * layer
        for stage, kind, critic in (
            ("SFT", "full", ""),
            ("DPO", "full", ""),
            ("DPO", "lora", ""),
            ("PPO", "full", "reward_model"),
            ("PPO", "full", "shared"),
            ("PPO", "lora", "shared"),
        ):
            full, own = kind == "full", critic == "reward_model"
            trained = states * (2 if own else 1) if full else 2 * part + 16 * adapter / gpus
            copy = 2 * whole * (2 if own else 1) if stage == "PPO" else 0
            # Two of three are frozen: reference and reward model, or backbone and reward model. They are in parts, and
            # whole in their turn, when the copy is so no more.
            frozen = 2 * 2 * part if stage == "PPO" else 0
            kept = activation_bytes_per_token(
                shape,
                adapter=kind,
                rank=RANK,
                dtype="bfloat16",
                gradient_checkpointing=True,
                deepspeed=engine == "zero3",
            )
            work = tokens * kept * (2 if own else 1) + head_bytes(shape, tokens, "bfloat16", trained=full)
            parts = [size / 1e9 for size in (trained, gathered, copy, frozen, work)]
            yield [stage, kind, critic or "–", engine, *parts, sum(parts)]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="8b")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    asked = parser.parse_args()
    sizes = MODELS[asked.model]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=torch.bfloat16)
    print("| stage | adapter | critic | engine | trained | gathered | copy that samples | frozen | work | GB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in table(model, sizes, asked.gpus, asked.tokens):
        print("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.1f}" for cell in row) + " |")


if __name__ == "__main__":
    main()
