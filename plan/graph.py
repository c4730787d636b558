"""How long a graph of stages takes: its longest way, and its stages one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def critical_path(seconds: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> tuple[list[str], float]:
    """Return the stages of the longest way through a graph, first to last, and how long it takes.

    ``needs`` names the stages whose artifacts a stage waits for, in an order that lets each find its own before it.
    """
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for name, parents in needs.items():
        last = max(parents, key=lambda parent: ends[parent], default=None)
        before[name] = last
        ends[name] = seconds.get(name, 0.0) + (ends[last] if last is not None else 0.0)
    step = max(ends, key=lambda each: ends[each], default=None)
    total = ends[step] if step is not None else 0.0
    path: list[str] = []
    while step is not None:
        path.append(step)
        step = before[step]
    return [each for each in reversed(path) if each in seconds], total
