"""Knobs of `posttrain plan model`, `posttrain plan train` and `posttrain plan pretrain`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.plan.cards import CARDS
from posttrain.plan.optimizers import OptimizerKind
from posttrain.stage.schema import schema

Engine = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_cpu_offload", "fsdp2_cpu_offload"]
WeightDtype = Literal["float32", "bfloat16", "fp8", "int8", "int4", "nf4"]


@schema
class MachineConfig:
    """What computes, and what it costs."""

    card: str = "h100"
    """Accelerator of `posttrain.plan.cards`, or ``cpu``; ``h100x8`` is eight of them."""
    cards: int = Field(default=1, ge=1)
    """How many share the work; a model is split over them (tensor parallelism), a training run spread."""
    price: float | None = Field(default=None, ge=0)
    """US dollars an hour of a card; None is the table's assumption."""

    @model_validator(mode="after")
    def _card_may_say_how_many(self) -> MachineConfig:
        name, times, count = self.card.rpartition("x")
        if times and count.isdigit() and int(count) and name in CARDS:
            self.card, self.cards = name, int(count) * self.cards
        return self


@schema
class ModelQuestion(MachineConfig):
    """What a model needs to answer."""

    model: str | list[str]
    """Name of a known model, folder of one, or its `config.json`; several, separated by commas, stand side by side."""
    dtype: WeightDtype = "bfloat16"
    """Of the weights."""
    kv_dtype: Literal["float32", "bfloat16", "fp8"] = "bfloat16"
    """Of keys and values."""
    context: int = Field(default=8192, ge=1)
    """Tokens of a sequence, prompt and response."""
    prompt: int | None = Field(default=None, ge=1)
    """Tokens of them that are given; None is half."""
    batch: int = Field(default=1, ge=1)
    """Sequences that run at once."""
    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of a card's memory for weights and cache."""
    overhead_gib: float = Field(default=0.0, ge=0)
    """GiB of each card for activations and graphs."""
    mfu: float = Field(default=0.5, gt=0, le=1)
    """Share of the peak FLOP/s that a prefill reaches."""
    mbu: float = Field(default=0.6, gt=0, le=1)
    """Share of the peak bandwidth that decoding reaches."""
    throughput: float | None = Field(default=None, gt=0)
    """Tokens a second that were seen, of all sequences together: what shares of the peaks are they?"""
    premium: dict[str, float] = Field(default_factory=dict)
    """Language → tokens for a text over those for the same text in English."""
    best_of: int = Field(default=1, ge=1)
    """Responses to each prompt, of which one is kept."""


@schema
class TrainQuestion(MachineConfig):
    """What it takes to train a model, without a recipe."""

    model: str
    """Name of a known model, folder of one, or its `config.json`."""
    engine: Engine | None = None
    """How weights and states are spread; None shows the engines side by side."""
    tensor: int = Field(default=1, ge=1)
    """Cards that share each layer (tensor parallelism); the rest of `cards` see other rows."""
    sequence_parallel: bool = True
    """Those cards also share what lies between attention and MLP (Korthikanti et al. 2022)."""
    optimizer: OptimizerKind = "adamw"
    """What moves the weights."""
    adapter: Literal["full", "lora", "qlora"] = "full"
    """What is trained: every weight, or a low-rank adapter on all linear maps, frozen weights in 4 bits perhaps."""
    rank: int = Field(default=16, ge=1)
    """Of the adapter."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward pass; float32 weights stay beside bfloat16."""
    head: Literal["lm", "score"] = "lm"
    """``score`` is a reward model's."""
    length: int = Field(default=4096, ge=1)
    """Tokens of a row."""
    rows: int = Field(default=1, ge=1)
    """Rows that a card takes at once; cards that share a layer take the same."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    tokens: float | None = Field(default=None, gt=0)
    """To train on; None gives no time and no cost."""
    mfu: float = Field(default=0.35, gt=0, le=1)
    """Share of the peak FLOP/s."""

    @model_validator(mode="after")
    def _cards_are_divided(self) -> TrainQuestion:
        if self.cards % self.tensor:
            raise ValueError(f"tensor={self.tensor} does not divide cards={self.cards}; give a divisor of it")
        if self.tensor > 1 and self.adapter != "full":
            raise ValueError(f"tensor={self.tensor} is planned for adapter=full alone; give tensor=1")
        if self.adapter == "qlora" and (self.engine or "").startswith(("zero3", "fsdp")):
            raise ValueError(f"engine={self.engine} cannot spread 4-bit weights; give ddp or zero2, or adapter=lora")
        return self


@schema
class PretrainQuestion(MachineConfig):
    """What pretraining costs, or what a budget buys."""

    model: str | None = None
    """Whose parameters; or give `parameters`."""
    parameters: float | None = Field(default=None, gt=0)
    """Of the model, active ones where it has experts."""
    tokens: float | None = Field(default=None, gt=0)
    """To train on; None is what the law calls for."""
    budget: float | None = Field(default=None, gt=0)
    """FLOPs to spend, instead of parameters and tokens."""
    context: int = Field(default=4096, ge=1)
    """Tokens of a sequence."""
    mfu: float = Field(default=0.4, gt=0, le=1)
    """Share of the peak FLOP/s."""
    law: Literal["hoffmann", "hoffmann_rounded", "epoch"] = "epoch"
    """Fit of the loss: Hoffmann et al. 2022 (digits of the TeX source, or as printed), or Besiroglu et al. 2024."""
    inference_tokens: float = Field(default=0.0, ge=0)
    """Tokens that the model will read and write in its life; a smaller model that trains longer may cost less."""
    unique_tokens: float | None = Field(default=None, gt=0)
    """Tokens that there are; what goes beyond is repeated."""

    @model_validator(mode="after")
    def _one_size(self) -> PretrainQuestion:
        given = [name for name in ("model", "parameters", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of model, parameters and budget (given: {', '.join(given) or 'none'})")
        if self.budget is not None and self.tokens is not None:
            raise ValueError("give budget or tokens: the one follows from the other")
        return self
