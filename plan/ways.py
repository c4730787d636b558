"""Settings that fit into a card's memory: the largest micro-batch, the cheapest setting, and ranked ways out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

from posttrain.plan.footprint import Setting, Training
from posttrain.plan.memory import AdapterKind, Dtype

HEADROOM = 0.92
"""Share of a card's memory that a plan may fill; the rest is the context, kernels and the allocator's slack."""
RECOMPUTED = 4 / 3
"""Arithmetic with gradient checkpointing over that without."""
GATHERED = 1.15
"""Time with weights in parts over that with whole ones: an assumption."""
OFFLOADED = 3.0
"""Time with states in the memory of the CPU over that without: an assumption."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A setting that fits."""

    setting: Setting
    total: int
    """Bytes on one process."""
    slowdown: float
    """Its time over that of the same work with nothing recomputed, in parts or elsewhere."""
    changes: tuple[str, ...]
    """Knobs to set; empty where it is as configured."""
    same_results: bool
    """Whether it only moves memory and time; adapters and precision make another model."""


def largest_micro_batch(training: Training, setting: Setting, limit: float, most: int) -> int:
    """Return the largest micro-batch that fits and divides a process's share ``most``; 0 where none does."""
    for size in sorted(_divisors(most), reverse=True):
        if training.memory(dataclasses.replace(setting, micro_batch=size)).total <= limit:
            return size
    return 0


def ways(training: Training, setting: Setting, limit: float, most: int, name: str) -> list[Way]:
    """Return the settings that fit, best first: those that make the same model, then by time, then by memory.

    ``most`` is a process's share of the global batch, ``name`` the stage type, for the knobs to set.
    """
    found = []
    for adapter, dtype, checkpointing, (zero, offload) in itertools.product(
        _adapters(setting), _dtypes(setting), (False, True), _spreads(setting, training.processes)
    ):
        if adapter == "qlora" and zero == 3:
            continue  # 4-bit weights cannot be spread
        tried = Setting(1, checkpointing, adapter, dtype, zero, offload)
        micro = largest_micro_batch(training, tried, limit, min(most, max(setting.micro_batch, 1)))
        if micro:
            fits = dataclasses.replace(tried, micro_batch=micro)
            found.append(_way(training, setting, fits, name))
    return sorted(found, key=lambda way: (not way.same_results, way.slowdown, len(way.changes), way.total))


def slowdown(setting: Setting) -> float:
    """Return the time of a setting over that of the same work with nothing recomputed, in parts or elsewhere."""
    factor = RECOMPUTED if setting.checkpointing else 1.0
    factor *= GATHERED if setting.zero == 3 else 1.0
    factor *= OFFLOADED if setting.offload else 1.0
    return factor * (4 / 6 if setting.adapter != "full" else 1.0)


def _way(training: Training, asked: Setting, fits: Setting, name: str) -> Way:
    changes = []
    if fits.adapter != asked.adapter:
        changes.append(f"adapter={fits.adapter}")
    if fits.dtype != asked.dtype:
        changes.append(f"{name}.dtype={fits.dtype}")
    if fits.checkpointing != asked.checkpointing:
        changes.append(f"{name}.gradient_checkpointing={str(fits.checkpointing).lower()}")
    if (fits.zero, fits.offload) != (asked.zero, asked.offload):
        engine = {None: "ddp" if training.processes > 1 else "single", 2: "zero2", 3: "zero3"}
        changes.append(f"distributed={engine.get(fits.zero, f'zero{fits.zero}')}{'_cpu_offload' * fits.offload}")
    if fits.micro_batch != asked.micro_batch:
        changes.append(f"{name}.micro_batch_size={fits.micro_batch}")
    same = (fits.adapter, fits.dtype) == (asked.adapter, asked.dtype)
    return Way(fits, training.memory(fits).total, slowdown(fits), tuple(changes), same)


def _divisors(number: int) -> Iterable[int]:
    return (size for size in range(1, number + 1) if number % size == 0)


def _adapters(setting: Setting) -> list[AdapterKind]:
    return ["full", "lora", "qlora"] if setting.adapter == "full" else [setting.adapter, "qlora"]


def _dtypes(setting: Setting) -> list[Dtype]:
    return ["float32", "bfloat16"] if setting.dtype == "float32" else ["bfloat16"]


def _spreads(setting: Setting, processes: int) -> list[tuple[int | None, bool]]:
    spread: list[tuple[int | None, bool]] = [(setting.zero, setting.offload)]
    others: list[tuple[int | None, bool]] = (
        [(3, True)] if processes == 1 else [(None, False), (2, False), (3, False), (3, True)]
    )
    return spread + [other for other in others if other not in spread]
