"""Knobs of the training stages. Batch sizes are global; micro-batches are a matter of memory and speed only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import external, schema, speed

Dtype = Literal["float32", "bfloat16"]


@schema
class ArchitectureConfig:
    """Shape of a Llama trained from scratch."""

    hidden_size: int = Field(default=128, ge=8)
    num_layers: int = Field(default=6, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_kv_heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=352, ge=8)
    max_position_embeddings: int = Field(default=512, ge=16)
    vocab_size: int = Field(default=768, ge=300)
    rope_theta: float = Field(default=10000.0, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ArchitectureConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
        return self


@schema
class BaseConfig:
    """The base model: imported from a folder or hub name, or made from scratch with a tokenizer of its own."""

    path: str | None = external()
    """Local Hugging Face folder."""
    hub_name: str | None = None
    """Model on the Hugging Face Hub, such as ``HuggingFaceTB/SmolLM2-135M``."""
    revision: str | None = None
    architecture: ArchitectureConfig | None = None
    """Give this instead of a path to start from random weights."""
    chat_template: Literal["chatml", "verbatim"] | None = None
    """One of ours; None keeps the model's own, or takes chatml where it has none.

    ``verbatim`` puts contents one behind the other, for models that continue running text; EOS ends a response.
    """
    chat_template_file: str | None = external()
    """A .jinja file with a template of your own."""
    pad_token: str | None = None
    """Token to add as padding where the tokenizer has none, or pads with EOS."""
    eos_token: str | None = None
    """End of turn; None keeps the tokenizer's, or the template's where we supply it."""
    trust_remote_code: bool = False
    """Run, and copy into the artifact, Python code that comes with the model."""
    dtype: Dtype | None = None
    """Precision of the stored weights; None keeps the checkpoint's, float32 from scratch."""

    @model_validator(mode="after")
    def _one_origin(self) -> BaseConfig:
        given = [name for name in ("path", "hub_name", "architecture") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of path, hub_name and architecture (given: {', '.join(given) or 'none'})"
            )
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ValueError("give chat_template or chat_template_file, not both")
        return self


@schema
class AdapterConfig:
    """What is trained: every weight, or a low-rank adapter on a frozen (LoRA) or 4-bit (QLoRA) backbone."""

    kind: Literal["full", "lora", "qlora"] = "full"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


@schema
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)


@schema
class TrainingConfig:
    """What SFT, reward model and DPO have in common."""

    global_batch_size: int = Field(default=64, ge=1)
    """Rows per optimizer step over all processes: demonstrations (packs when packing), groups, or pairs."""
    micro_batch_size: int = speed(8, ge=1)
    """Most rows per forward pass of one process; shrunk to divide the global batch."""
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; wins over `epochs`."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    dtype: Dtype = "float32"
    """Precision of the forward pass; master weights stay in float32 with full finetuning."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = speed("sdpa")
    gradient_checkpointing: bool = speed(False)
    save_steps: int = speed(100, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = speed(2, ge=2)
    eval_steps: int | None = speed(None, ge=1)
    """Optimizer steps between evaluations on the held-out split; None evaluates at the end only."""
    log_steps: int = speed(10, ge=1)


@schema
class SftConfig(TrainingConfig):
    """Supervised finetuning."""

    packing: bool = False
    """Pack rows into sequences of `pack_length` tokens without letting them see each other."""
    pack_length: int = Field(default=1024, ge=16)
    loss: Literal["nll", "dft"] = "nll"


@schema
class RewardConfig(TrainingConfig):
    """Pairwise reward model on K-ranked groups: all pairs of a group, each weighted 1 / C(K, 2)."""

    margin_per_rank: float = Field(default=0.0, ge=0)
    """Margin demanded per step of rank difference."""
    centering_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the squared mean reward of a pair, which keeps rewards near zero."""


@schema
class ReferenceConfig:
    """Log-probabilities of every response under the frozen reference model, computed once."""

    batch_tokens: int = speed(16384, ge=64)
    """Tokens per forward pass, padding included."""
    dtype: Dtype = "float32"
    four_bit: bool = False
    """Quantise the backbone as QLoRA does, so that the policy and its reference start out equal."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = speed("sdpa")


@schema
class DpoConfig(TrainingConfig):
    """Direct preference optimisation against precomputed reference log-probabilities."""

    beta: float = Field(default=0.1, gt=0)
    loss: list[str] = Field(default_factory=lambda: ["sigmoid"], min_length=1)
    """TRL loss types; several are summed with `loss_weights`."""
    loss_weights: list[float] | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Pairs made of a K-ranked group."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Further TRL `DPOConfig` fields of a loss: ``f_divergence_type``, ``discopop_tau``, ``use_weighting`` …"""

    @model_validator(mode="after")
    def _weights_match(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            raise ValueError(f"{len(self.loss)} losses but {len(self.loss_weights)} loss_weights; give one weight each")
        return self
