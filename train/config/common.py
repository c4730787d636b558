"""Knobs that all training stages have. Batch sizes are global; micro-batches are a matter of memory and speed only."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

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
    rslora: bool = False
    """Scale by alpha / √rank instead (Kalajdzievski 2023), so that a higher rank does not learn less."""
    dora: bool = False
    """Train the length of every column of a weight apart from its direction (Liu et al. 2024): somewhat slower."""
    new_tokens: bool = True
    """Train, beside an adapter, the embeddings of tokens that `train.base` added for the chat template: their rows
    alone, at the input and at the output. Other models have none."""


@schema
class OptimizerConfig:
    """What moves the weights, and its schedule."""

    kind: Literal["adamw", "adafactor", "muon", "adamw_8bit"] = "adamw"
    """``adafactor`` (Shazeer and Stern 2018) keeps sums over rows and columns for second moments. ``muon`` (Jordan et
    al. 2024) makes updates of matrices orthogonal, as long as AdamW's, which vectors and the vocabulary's weights keep.
    ``adamw_8bit`` is that of bitsandbytes."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Highest rate of the schedule."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    """How the rate falls after the warm-up: to zero along a line or half a cosine, not at all, or to zero along a line
    in the last steps alone (Hu et al. 2024)."""
    decay_fraction: float = Field(default=0.1, gt=0, le=1)
    """warmup_stable_decay: share of the steps, at the end, over which the rate falls."""
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

    @model_validator(mode="after")
    def _phases_fit(self) -> OptimizerConfig:
        if self.schedule == "warmup_stable_decay" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} are more than all "
                "steps together; lower one"
            )
        return self


@schema
class BestConfig:
    """Which weights a stage keeps: those of the last step, or those that held-out rows like best."""

    metric: str | None = None
    """Held-out metric that chooses, such as ``loss``, which should be low; others should be high. None keeps the last
    weights."""
    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row that found nothing better; None goes on to the last step."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> BestConfig:
        if self.metric is not None and self.every is None:
            raise ValueError(f"best.metric={self.metric} needs evaluations to choose from; set best.every")
        if self.metric is None and (self.every is not None or self.patience is not None):
            raise ValueError("best.every and best.patience are for best.metric; set that, such as loss")
        return self


@schema
class TrainingConfig:
    """What all training stages have in common."""

    held_out: ClassVar[tuple[str, ...]] = ()
    """Metrics of held-out rows that can choose the best weights."""

    global_batch_size: int = Field(default=64, ge=1)
    """Rows per optimizer step over all processes: demonstrations (packs when packing), groups, or pairs."""
    micro_batch_size: int = speed(8, ge=1)
    """Most rows per forward pass of one process; shrunk to divide the global batch."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; wins over `epochs`."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """What moves the weights, and its schedule."""
    best: BestConfig = Field(default_factory=BestConfig)
    """Keep the weights that held-out rows like best, and stop early."""
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    """What is trained: every weight, or a low-rank adapter."""
    dtype: Dtype = "float32"
    """Precision of the forward pass; master weights stay in float32 with full finetuning."""
    save_dtype: Dtype = "float32"
    """Precision of the weights in the artifact; ``bfloat16`` halves it, and rounds what the next stage starts from. An
    adapter keeps its own."""
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
    """Optimizer steps between evaluations on the held-out split; None evaluates at the end only. `best.every` comes
    before it."""
    log_steps: int = speed(10, ge=1)
    """Optimizer steps between two lines of the log."""
    profile_steps: int | None = speed(None, ge=1)
    """Record what the processor and the GPU do in so many steps after the first, as a Chrome trace in the logs."""
    experimental: bool = speed(False)
    """Take knobs that were never run in the way that they are set, such as ``optimizer.kind=adamw_8bit``."""

    @model_validator(mode="after")
    def _adapters_keep_their_precision(self) -> TrainingConfig:
        if self.save_dtype != "float32" and self.adapter.kind != "full":
            raise ValueError(
                f"save_dtype={self.save_dtype}: adapter.kind={self.adapter.kind} saves the adapter alone, as it was "
                "trained; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _best_can_be_told(self) -> TrainingConfig:
        metric = self.best.metric
        if metric is not None and metric not in self.held_out:
            said = f"one of {', '.join(self.held_out)}" if self.held_out else "no metric: nothing is held out here"
            raise ValueError(f"best.metric={metric}: this stage takes {said}")
        if metric is not None and self.eval_steps not in (None, self.best.every):
            raise ValueError(f"eval_steps={self.eval_steps}: best.every={self.best.every} says when; leave it out")
        return self


@schema
class RowsConfig(TrainingConfig):
    """What the stages that train on stored rows have in common."""

    micro_batch_tokens: int | None = speed(None, ge=1)
    """Most tokens per forward pass of one process, padding included, in place of `micro_batch_size`: of any number of
    rows, balanced over processes. Every step has as many passes as the one that needs most; a longer row has one to
    itself."""
