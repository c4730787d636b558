"""Figures and differences as people say them."""

from __future__ import annotations

import json
from typing import Any


def duration(seconds: float) -> str:
    """Return a wall time as people say it: ``3.2 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """Return a number of bytes as people say it: ``512 B``, ``3.2 MB``, ``140 GB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"


def differences(recorded: Any, wanted: Any, where: str = "") -> list[str]:
    """Return one phrase per place where two nested values differ: ``seed: 0 there, 4 here``."""
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        keys = [*recorded, *(key for key in wanted if key not in recorded)]
        below = ((recorded.get(key), wanted.get(key), f"{where}.{key}".lstrip(".")) for key in keys)
        return [line for old, new, path in below for line in differences(old, new, path)]
    return [] if recorded == wanted else [f"{where}: {_short(recorded)} there, {_short(wanted)} here"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
