"""Knobs that all training stages have. Batch sizes are global; micro-batches are a matter of memory and speed only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema, speed

Dtype = Literal["float32", "bfloat16"]
Sharing = Literal["auto", "always", "never"]
"""Whether responses to one prompt are computed with it once: where the model can, or fail where it cannot, or never."""


@schema
class AdapterConfig:
    """What is trained: every weight, or a low-rank adapter on a frozen (LoRA) or 4-bit (QLoRA) backbone."""

    kind: Literal["full", "lora", "qlora"] = "full"
    """``full`` trains every weight; ``lora`` an adapter; ``qlora`` one on a backbone quantised to 4 bits."""
    rank: int = Field(default=16, ge=1)
    """Rank of the adapter's matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's product is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are zeroed in training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the maps that get an adapter; ``all-linear`` is every linear map but the output layer."""
    new_tokens: bool = True
    """Train, beside an adapter, the embeddings of tokens that `train.base` added for the chat template: their rows
    alone, at the input and at the output. Other models have none."""


@schema
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Highest rate of the schedule."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """How the rate falls after the warm-up: to zero along a line or half a cosine, or not at all."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of weights (Loshchilov and Hutter 2019); biases and norms have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm over all parameters."""


@schema
class TrainingConfig:
    """What all training stages have in common."""

    global_batch_size: int = Field(default=64, ge=1)
    """Rows per optimizer step over all processes: demonstrations (packs when packing), groups, or pairs."""
    micro_batch_size: int = speed(8, ge=1)
    """Most rows per forward pass of one process; shrunk to divide the global batch."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; wins over `epochs`."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    """What is trained: every weight, or a low-rank adapter."""
    dtype: Dtype = "float32"
    """Precision of the forward pass; master weights stay in float32 with full finetuning."""
    attention: str = speed("auto")
    """Any implementation that transformers knows, such as ``flash_attention_2``; ``auto`` is what it takes for the
    model, and flex attention for packs on a GPU."""
    tf32: bool = speed(False)
    """Let a GPU round the factors of float32 products to 10 bits of mantissa, which is several times as fast."""
    large_float32: bool = speed(False)
    """Train more than a billion parameters in float32 on a GPU all the same; bfloat16 takes a fraction of the time."""
    gradient_checkpointing: bool = speed(False)
    """Recompute activations in the backward pass instead of keeping them."""
    save_steps: int = speed(100, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = speed(2, ge=2)
    """Newest checkpoints that stay on the disk."""
    eval_steps: int | None = speed(None, ge=1)
    """Optimizer steps between evaluations on the held-out split; None evaluates at the end only."""
    log_steps: int = speed(10, ge=1)
    """Optimizer steps between two lines of the log."""
