"""Knobs of the gate behind a stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema

Part = Literal["task", "language", "task_and_language"]


@schema
class GateConfig:
    """Compares a model with the one that it was made from, and says whether it may be built upon."""

    mode: Literal["block", "report"] = "block"
    """What depends on the model waits for the verdict and stops where it fails; or the verdict is reported alone."""
    strict: bool = False
    """Also stop where there are too few items to tell."""
    target: Literal["exact_match", "preference", "none"] = "exact_match"
    """What must have risen, over all items. Without evaluation items it is the held-out loss that must have fallen."""
    target_rise: float = Field(default=0.05, gt=0, le=1)
    """A rise that should not go unseen: the power is that at this rise."""
    margin: float = Field(default=0.05, gt=0, le=1)
    """How much exact match of a task or language may fall."""
    margins: dict[str, float] = Field(default_factory=dict)
    """Other margins, by name of a task or language."""
    floors: dict[str, float] = Field(default_factory=dict)
    """What exact match of a task or language must reach, by its name, whatever it was before."""
    guard: list[Part] = Field(default_factory=lambda: list[Part](("task", "language")))
    """What exact match must not fall in: each task, each language, or each task in each language."""
    ended_margin: float | None = Field(default=0.05, gt=0, le=1)
    """How much the share of responses that the model ends itself may fall; null does not look."""
    grounded_margin: float | None = Field(default=0.05, gt=0, le=1)
    """How much may fall what responses claim that stands in their passages, of items whose scorer is ``grounded``;
    null does not look."""
    max_loss_rise: float | None = Field(default=None, ge=0)
    """Nats per token that the held-out loss may rise; null does not look."""
    max_kl: float | None = Field(default=None, gt=0)
    """Nats per response that the policy may lie from its reference; needs the input ``drift``. Null does not look."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of a fall among all that is guarded, and of the rise of the target: one-sided, Holm."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Under this, the gate says that it is underpowered."""
    discordant: float = Field(default=0.1, gt=0, le=1)
    """Share of items that are expected to change either way, from which the power is told before the comparison."""
    worst_items: int = Field(default=20, ge=1)
    """Items that got worse, of each metric that fell, which the verdict names."""
