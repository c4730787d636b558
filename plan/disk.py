"""Bytes that training writes: the weights that stay, and the checkpoints that stand beside each other meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

WEIGHT_BYTES = 4
"""Of a stored weight, at most: training keeps float32."""
STATE_BYTES = 12
"""Of a trained weight in a checkpoint: itself and AdamW's two means."""


@dataclasses.dataclass(frozen=True)
class DiskEstimate:
    """Bytes of one stage."""

    artifact: int
    checkpoints: int
    """At the most; they go when the stage is committed."""


def estimate_disk(stored: int, trained: int, keep_checkpoints: int) -> DiskEstimate:
    """Return what a stage writes that stores and trains so many weights; one checkpoint is written while others stay.

    ``trained`` counts every model that is trained, and is 0 for a stage that keeps no checkpoints.
    """
    return DiskEstimate(WEIGHT_BYTES * stored, STATE_BYTES * trained * (keep_checkpoints + 1))


def most_at_once(stages: Sequence[DiskEstimate], at_once: int | None) -> int:
    """Return the most bytes that stages take: all artifacts, and the checkpoints of those that run at once.

    None: all may run at once.
    """
    checkpoints = sorted((stage.checkpoints for stage in stages), reverse=True)
    return sum(stage.artifact for stage in stages) + sum(checkpoints[:at_once])
