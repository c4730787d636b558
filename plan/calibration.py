"""What runs made of a machine, in place of assumptions: rates that were logged, turned into shares of the peaks."""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
from collections.abc import Sequence

from posttrain.plan.cards import CARDS
from posttrain.plan.passes import Range, Utilisation

WARM = 1
"""Lines of a log that are not counted: the first steps also load and compile."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one training stage made of its machine."""

    name: str
    run: str
    machine: str
    """Card, or ``cpu``."""
    tokens_per_second: float
    """Over all processes."""
    mfu: float
    peak_memory: float | None = None
    """Bytes of one process, where the log has them."""


def card_of(device: str) -> str | None:
    """Return the card that a driver's name for a device means, such as ``NVIDIA H100 80GB HBM3``; None for another."""
    words = re.split(r"[\s_-]+", device.lower())
    names = {*words, *(first + second for first, second in itertools.pairwise(words))}
    found = [name for name in CARDS if name in names]
    smaller = [f"{name}-40" for name in found if "40gb" in words and f"{name}-40" in CARDS]
    return next(iter([*smaller, *found]), None)


def usual_rate(rates: Sequence[float]) -> float | None:
    """Return the median of the rates of a log, the first left out where there are more."""
    counted = [rate for rate in (rates[WARM:] or rates) if rate > 0]
    return statistics.median(counted) if counted else None


def fitted(seen: Sequence[Seen], machine: str, usual: Utilisation) -> Utilisation:
    """Return the shares of the peaks on a machine: the least, the median and the most that stages reached.

    Without stages on it, and for bandwidth, which no log tells, they stay as assumed.
    """
    shares = sorted(stage.mfu for stage in seen if stage.machine == machine)
    if not shares:
        return usual
    measured = Range(shares[0], statistics.median(shares), shares[-1])
    return dataclasses.replace(usual, mfu=measured, source=f"MFU measured in {len(shares)} stages, MBU assumed")
