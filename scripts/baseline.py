"""What a benchmark found before, and what of it got worse: files `scripts/baselines/NAME.json`.

A figure is a ratio of two sides that ran in turns, so that it may be compared between machines of a kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "baselines"
ALLOWED = 0.1
"""Share by which a ratio may be worse before it is shown."""


def worse(found: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Return a line for each figure that got worse by more than a tenth; of memory, less is better."""
    lines = []
    for name in sorted(found.keys() & before.keys()):
        change = found[name] / before[name] - 1
        if (change if name.endswith("_memory") else -change) > ALLOWED:
            lines.append(f"WORSE {name} {before[name]:.2f} -> {found[name]:.2f} ({change:+.0%})")
    return lines


def show(name: str, found: Mapping[str, float], keep: bool) -> None:
    """Print the figures and what got worse since the baseline ``name``; ``keep`` makes them the new one."""
    path = FOLDER / f"{name}.json"
    before: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    print("\n".join(worse(found, before)) or f"nothing is worse than {path.name}" if before else f"no {path.name} yet")
    for figure, value in found.items():
        print(f"RESULT {figure} {value:.2f} {'of 1' if figure.endswith('bound') else 'x'}", flush=True)
    if keep:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**before, **found}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
