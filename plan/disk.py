"""Bytes that training writes: the weights that stay, and the checkpoints that stand beside each other meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from posttrain.plan.figure import Figure, figure


@dataclasses.dataclass(frozen=True)
class Writes:
    """What one stage writes."""

    stored: int
    """Weights in its artifact."""
    stored_bytes: int = 4
    """Of each of them; training keeps float32 unless it is told otherwise."""
    trained: int = 0
    """Weights in a checkpoint, of all models that learn; 0 for a stage that keeps none."""
    trained_bytes: int = 4
    states: int = 0
    """Bytes of the optimizer's states in a checkpoint."""
    kept: int = 0
    """Checkpoints that stay while another one is written."""

    @property
    def artifact(self) -> int:
        """Bytes that stay."""
        return self.stored_bytes * self.stored

    @property
    def checkpoints(self) -> int:
        """Bytes that stand beside each other, at the most; they go when the stage is committed."""
        return (self.kept + 1) * (self.trained_bytes * self.trained + self.states)


def disk_figure(writes: Writes) -> Figure:
    """Return the most bytes that a stage has on the disk at once."""
    numbers = {name: getattr(writes, name) for name in Writes.__dataclass_fields__}
    return figure(
        "disk",
        "B",
        "stored · stored_bytes + (kept + 1) · (trained · trained_bytes + states)",
        "the artifact, and checkpoints with the optimizer's states, one more than is kept while it is written",
        **numbers,
    )


def most_at_once(stages: Sequence[tuple[int, int]], at_once: int | None) -> int:
    """Return the most bytes that stages take: all artifacts, and the checkpoints of those that run at once.

    ``stages`` are bytes of artifact and checkpoints; None: all may run at once.
    """
    checkpoints = sorted((checkpoints for _, checkpoints in stages), reverse=True)
    return sum(artifact for artifact, _ in stages) + sum(checkpoints[:at_once])
