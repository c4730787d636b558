"""Knobs of the evaluation of a reward model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.stage.schema import schema, speed


@schema
class RewardEvaluationConfig:
    """Scores one reward model on held-out comparisons."""

    batch_size: int = speed(64, ge=1)
    """Responses that run at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""
    ensemble: EnsembleConfig = Field(default_factory=EnsembleConfig)
    """How several reward models, ``inputs.model`` and ``inputs.model_NAME``, judge together."""
    probed_groups: int = Field(default=100, ge=0)
    """Held-out groups, at most, whose responses are also judged with more words, twice, flattering and in bold: what a
    reward model falls for. 0 leaves it out."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
