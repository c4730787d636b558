"""Accelerators by name: what a data sheet says of dense arithmetic, memory and power.

Vendors print twice these FLOP/s "with sparsity". Prices are assumptions of the order of what clouds asked in 2025; give
your own.
"""

from __future__ import annotations

import dataclasses
import os

from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.machine import usable_cores

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Card:
    """One accelerator."""

    name: str
    flops: float
    """Dense FLOP/s of bfloat16 products."""
    bandwidth: float
    """Bytes a second of its memory."""
    memory: float
    """Bytes of its memory."""
    watts: float
    """Under load."""
    price: float
    """US dollars an hour; an assumption."""


_ROWS = {  # TFLOP/s, TB/s, GB, W, $/h
    "a100-40": (312, 1.555, 40e9, 400, 1.3),
    "a100": (312, 2.039, 80 * GIB, 400, 1.8),
    "h100": (989.4, 3.35, 80 * GIB, 700, 2.9),
    "h800": (989.4, 3.35, 80 * GIB, 700, 2.0),
    "h200": (989.4, 4.8, 141e9, 700, 3.7),
    "b200": (2250, 7.7, 180e9, 1000, 6.0),
    "l40s": (362, 0.864, 48e9, 350, 1.0),
    "a10": (125, 0.6, 24e9, 150, 0.8),
    "l4": (121, 0.3, 24e9, 72, 0.6),
    "rtx4090": (165, 1.008, 24e9, 450, 0.5),
    "mi300x": (1307, 5.3, 192e9, 750, 3.4),
    "tpu-v4": (275, 1.228, 32 * GIB, 192, 3.2),
}
CARDS = {
    name: Card(name, teraflops * 1e12, terabytes * 1e12, memory, watts, price)
    for name, (teraflops, terabytes, memory, watts, price) in _ROWS.items()
}
CPU_CORE_FLOPS, CPU_BANDWIDTH = 100e9, 20e9
"""Of one core in float32 and of a machine's memory: an assumption, which `--calibrate` replaces."""


def card_named(name: str, where: str) -> Card:
    """Return an accelerator, or this machine's processor for ``cpu``; ``where`` names the knob.

    Raises UsageError for a name that we do not know.
    """
    if name == "cpu":
        cores = usable_cores()
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return Card("cpu", cores * CPU_CORE_FLOPS, CPU_BANDWIDTH, memory, 15.0 * cores, 0.04 * cores)
    if name not in CARDS:
        raise UsageError(f"{where}: {name!r}: no such card{did_you_mean(name, CARDS)}; known: {', '.join(CARDS)}, cpu")
    return CARDS[name]
