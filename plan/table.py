"""What the training stages of a pipeline will need, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from posttrain.plan.memory import MemoryEstimate

GIB = 1 << 30
PARTS = ("weights", "gradients", "optimizer", "activations", "head")
"""Fields of a memory estimate that add up to its total."""
TABLE_WIDTH = 140
"""Columns of the table in a file or pipe, which has no width of its own."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One training stage in the table."""

    stage: str
    memory: MemoryEstimate
    flops_per_token: float


def describe_memory(memory: MemoryEstimate) -> str:
    """Return one line for a log: the estimate per process, and what it consists of."""
    parts = ", ".join(f"{name} {_size(getattr(memory, name))}" for name in PARTS)
    return f"memory estimate {_size(memory.total)} per process: {parts}"


def print_plan(plans: Sequence[StagePlan], num_processes: int, console: Console | None = None) -> None:
    """Print one row per training stage: parameters, memory of one process by part, and FLOPs per token."""
    table = Table(title=f"training on {num_processes} processes, memory of each" if num_processes > 1 else None)
    table.add_column("stage", no_wrap=True)
    for header in ("parameters", "trainable", *PARTS, "total", "FLOPs/token"):
        table.add_column(header, justify="right", no_wrap=True)
    for plan in plans:
        memory = plan.memory
        table.add_row(
            plan.stage,
            _count(memory.parameters),
            _count(memory.trainable),
            *(_size(getattr(memory, name)) for name in PARTS),
            _size(memory.total),
            _count(plan.flops_per_token),
        )
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def _count(number: float) -> str:
    """Return a number with three digits and its unit: ``135 M``, ``8.03 G``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:#.3g} {unit}".replace(". ", " ")
    return str(round(number))


def _size(num_bytes: int) -> str:
    """Return a size with its binary unit, such as ``1.5 GiB``."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"
