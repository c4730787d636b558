"""Parameters and arithmetic of a decoder-only transformer, from the shape that its `config.json` states.

Covers the Llama block and what Mistral, Qwen2 and Qwen3 change in it: grouped-query attention, biases, normalised
queries and keys, tied embeddings, a head size of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain.stage.errors import UsageError, did_you_mean

Head = Literal["lm", "score"]
"""What sits on the last hidden state: logits over the vocabulary, or one score (reward model)."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes that parameters, memory and FLOPs follow from."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    """The LM head is the transposed embedding."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias of the attention's output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of the queries and keys."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together."""
        return self.num_kv_heads * self.head_dim

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Return ``{module name: (inputs, outputs)}`` of the linear maps of one block."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (hidden, self.query_size),
            "self_attn.k_proj": (hidden, self.kv_size),
            "self_attn.v_proj": (hidden, self.kv_size),
            "self_attn.o_proj": (self.query_size, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }


def shape_from_config(config: Mapping[str, Any], where: str) -> ModelShape:
    """Return the shape that a Hugging Face configuration states; ``where`` names it in messages.

    Raises UsageError when the family is not one that we know.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UsageError(f"{where}: model_type {family!r} cannot be planned{did_you_mean(family, FAMILIES)} ({known})")
    heads = config["num_attention_heads"]
    attention_bias = bool(config.get("attention_bias", False))
    return ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
    )


def read_shape(directory: Path) -> ModelShape:
    """Return the shape of the model in a local Hugging Face folder.

    Raises UsageError when the folder has no `config.json`, or one of a family that we do not know.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; give a local Hugging Face model folder") from None
    return shape_from_config(config, str(path))


def count_linear(shape: ModelShape) -> int:
    """Return the weights of all linear maps inside the blocks: what QLoRA quantises."""
    return shape.num_layers * sum(inputs * outputs for inputs, outputs in shape.linear_layers().values())


def count_head(shape: ModelShape, head: Head) -> int:
    """Return the parameters that the head has for itself."""
    if head == "score":
        return shape.hidden_size
    return 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size


def count_parameters(shape: ModelShape, head: Head = "lm") -> int:
    """Return all parameters of the model; a tied embedding counts once."""
    hidden = shape.hidden_size
    biases = 0
    if shape.qkv_bias:
        biases += shape.query_size + 2 * shape.kv_size
    if shape.output_bias:
        biases += hidden
    if shape.mlp_bias:
        biases += 2 * shape.intermediate_size + hidden
    norms = 2 * hidden + (2 * shape.head_dim if shape.qk_norm else 0)
    blocks = count_linear(shape) + shape.num_layers * (norms + biases)
    return shape.vocab_size * hidden + blocks + hidden + count_head(shape, head)


def count_largest_layer(shape: ModelShape) -> int:
    """Return the parameters of the embedding or of one block, whichever has more."""
    return max(shape.vocab_size * shape.hidden_size, count_linear(shape) // shape.num_layers)


def count_adapter(shape: ModelShape, rank: int, target_modules: str | Sequence[str] = "all-linear") -> int:
    """Return the parameters of a LoRA adapter: ``rank · (inputs + outputs)`` over the linear maps that it targets.

    ``target_modules`` means what it means to peft: ``all-linear``, a regular expression over full module names, or a
    list of name endings.
    """
    return sum(
        rank * (inputs + outputs)
        for layer in range(shape.num_layers)
        for name, (inputs, outputs) in shape.linear_layers().items()
        if _is_target(f"model.layers.{layer}.{name}", target_modules)
    )


def _is_target(module: str, target_modules: str | Sequence[str]) -> bool:
    if target_modules == "all-linear":
        return True
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target_modules)


def kv_bytes_per_token(shape: ModelShape, bytes_per_value: int = 2) -> int:
    """Return the bytes that one token keeps in the key-value cache."""
    return 2 * shape.num_layers * shape.kv_size * bytes_per_value


def training_flops_per_token(
    shape: ModelShape, sequence_length: int, *, head: Head = "lm", adapter_parameters: int | None = None
) -> float:
    """Return the model FLOPs of one trained token, forward and backward.

    Six per parameter that takes part in a matrix product (the embedding look-up does not), and ``6 · layers ·
    query_size · sequence_length`` for causal attention, of which half the square is computed. With an adapter the
    frozen weights need no gradient of their own: four per frozen parameter and six per adapter parameter. What gradient
    checkpointing computes again is not counted.
    """
    look_up = 0 if shape.tied_embeddings and head == "lm" else shape.vocab_size * shape.hidden_size
    multiplied = count_parameters(shape, head) - look_up
    attention = 6 * shape.num_layers * shape.query_size * sequence_length
    if adapter_parameters is None:
        return 6.0 * multiplied + attention
    return 4.0 * multiplied + 6.0 * adapter_parameters + attention
