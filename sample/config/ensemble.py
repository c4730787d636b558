"""Knobs of several reward models that judge together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema

Combine = Literal["mean", "worst", "uncertainty"]


@schema
class EnsembleConfig:
    """How the scores of several reward models become one; with one alone it does not matter."""

    combine: Combine = "mean"
    """Their mean, the lowest of them, or their mean less `penalty` times their variance (Coste et al. 2023)."""
    penalty: float = Field(default=0.5, ge=0)
    """uncertainty: what a unit of variance costs; scores count in standard deviations of their model."""
