"""Knobs of the evaluation by a judge."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.sample.config.judge import JudgeModelConfig
from posttrain.stage.schema import schema


@schema
class JudgeConfig:
    """Asks a model which of two policies answers better, or how good answers are, and how far people agree with it."""

    judge: JudgeModelConfig
    """The model that judges."""
    mode: Literal["pairwise", "rubric"] = "pairwise"
    """Which of two responses is better, asked in both orders; or a grade for each response."""
    max_items: int | None = Field(default=None, ge=1)
    """Judge at most this many items, and this many pairs of people, taken evenly over tasks and languages."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the intervals."""
