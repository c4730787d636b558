"""What the stages of a pipeline will need, as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from posttrain.plan.calibration import Seen
from posttrain.plan.memory import MemoryEstimate
from posttrain.plan.page import amount, count, duration, size, wide_console
from posttrain.plan.work import StagePlan

PARTS = ("weights", "gradients", "optimizer", "frozen", "activations", "head", "cache")
"""Fields of a memory estimate; a cache is there before activations are, not beside them."""


def describe_memory(memory: MemoryEstimate) -> str:
    """Return one line for a log: the estimate per process, and what it consists of."""
    there = memory.at_peak()
    parts = ", ".join(f"{name} {size(there[name])}" for name in PARTS if there.get(name))
    return f"memory estimate {size(memory.total)} per process: {parts}"


def print_memory(plans: Sequence[StagePlan], console: Console | None = None) -> None:
    """Print one row per training stage: memory of one process by part, rows at once, and how many of them would fit."""
    table = Table(title="memory of one process at its peak")
    table.add_column("stage", no_wrap=True)
    for header in (*PARTS, "total", "of", "rows", "fit"):
        table.add_column(header, justify="right", no_wrap=True)
    for plan in plans:
        memory, setting = plan.memory, plan.work.setting
        if memory is None or setting is None:
            continue
        table.add_row(
            plan.work.name,
            *(size(getattr(memory, name)) if getattr(memory, name) else "" for name in PARTS),
            size(memory.total),
            size(plan.limit),
            str(setting.micro_batch),
            str(plan.largest) if plan.largest else "none",
        )
    (console or wide_console()).print(table)


def print_costs(plans: Sequence[StagePlan], console: Console | None = None) -> None:
    """Print one row per stage that moves a model: work, time with its interval, money."""
    table = Table(title="work, time and money")
    table.add_column("stage", no_wrap=True)
    for header in (
        "parameters",
        "trained",
        "on",
        "steps",
        "tokens",
        "FLOPs",
        "time",
        "between",
        "cost",
        "energy",
        "disk",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for plan in plans:
        seconds = plan.seconds
        between = f"{duration(seconds.low)} – {duration(seconds.high)}" if seconds is not None else "rows unknown"
        table.add_row(
            plan.work.name,
            _cell(plan, "parameters"),
            _cell(plan, "trainable parameters"),
            f"{plan.work.distributed.num_processes}",
            f"{plan.work.steps:,}" if plan.work.steps is not None else "",
            *(_cell(plan, name).removesuffix(" FLOP") for name in ("tokens", "FLOPs", "time")),
            between,
            *(_cell(plan, name) for name in ("cost", "energy", "disk")),
        )
    (console or wide_console()).print(table)


def print_seen(seen: Sequence[Seen], console: Console | None = None) -> None:
    """Print what stages made of their machines."""
    table = Table(title="measured")
    for header in ("stage", "on", "tokens/s", "MFU", "peak memory"):
        table.add_column(header, justify="left" if header == "stage" else "right", no_wrap=True)
    for stage in seen:
        memory = size(stage.peak_memory) if stage.peak_memory else ""
        table.add_row(stage.name, stage.machine, count(stage.tokens_per_second), f"{100 * stage.mfu:.1f} %", memory)
    (console or wide_console()).print(table)


def describe_ways(plan: StagePlan, shown: int = 4) -> list[str]:
    """Return what to set where a stage does not fit, best first; or the cheapest setting where another is cheaper."""
    name = plan.work.name
    if plan.memory is None:
        return []
    if not plan.fits:
        opening = f"{name}: {size(plan.memory.total)} of {size(plan.limit)}, does not fit"
        if not plan.ways:
            return [f"{opening}, nor does any setting: take more processes, a smaller model, or a larger card"]
        lines = [
            f"  {' '.join(way.changes)}: {size(way.total)}, time × {way.slowdown:.2f}"
            f"{'' if way.same_results else ', trains another model'}"
            for way in plan.ways[:shown]
        ]
        return [f"{opening}; ways out, the best first:", *lines]
    best = plan.ways[0] if plan.ways else None
    if best is None or not best.changes or not best.same_results or best.slowdown >= _own(plan):
        return []
    return [f"{name}: fits, and faster with {' '.join(best.changes)} ({size(best.total)})"]


def _own(plan: StagePlan) -> float:
    same = [way.slowdown for way in plan.ways if not way.changes]
    return same[0] if same else float("inf")


def _cell(plan: StagePlan, name: str) -> str:
    found = plan.figure(name)
    return amount(found) if found is not None else ""
