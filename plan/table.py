"""What the training stages of a pipeline will need, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from posttrain.plan.memory import MemoryEstimate

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One training stage in the table."""

    stage: str
    memory: MemoryEstimate
    flops_per_token: float


def describe_memory(memory: MemoryEstimate) -> str:
    """Return one line for a log: the estimate per process, and what it consists of."""
    parts = ", ".join(
        f"{name} {_size(getattr(memory, name))}"
        for name in ("weights", "gradients", "optimizer", "activations", "head")
    )
    return f"memory estimate {_size(memory.total)} per process: {parts}"


def print_plan(plans: Sequence[StagePlan], console: Console | None = None) -> None:
    """Print one row per training stage: parameters, memory of one process by part, and FLOPs per token."""
    table = Table(title="Training stages, per process")
    table.add_column("stage")
    headers = (
        "parameters",
        "trainable",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "head",
        "total",
        "FLOPs/token",
    )
    for header in headers:
        table.add_column(header, justify="right")
    for plan in plans:
        memory = plan.memory
        table.add_row(
            plan.stage,
            f"{memory.parameters:,}",
            f"{memory.trainable:,}",
            *(_size(getattr(memory, name)) for name in ("weights", "gradients", "optimizer", "activations", "head")),
            _size(memory.total),
            f"{plan.flops_per_token:.3g}",
        )
    (console or Console()).print(table)


def _size(num_bytes: int) -> str:
    """Return a size with its binary unit, such as ``1.5 GiB``."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"
