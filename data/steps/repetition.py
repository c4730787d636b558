"""How much of a text is repetition: Gopher's measures (Rae et al. 2021, table A1), on words of any script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LIMITS = {2: 0.20, 3: 0.18, 4: 0.16}
"""Share of the characters of a text that its most frequent run of n words may make up."""


def repeated_lines(text: str) -> float:
    """Return the share of characters in lines that stood before, of texts with four lines or more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    total = sum(map(len, lines))
    if len(lines) < 4:
        return 0.0
    return sum(len(line) * (count - 1) for line, count in Counter(lines).items()) / total


def repeated_runs(found: Sequence[str], n: int) -> float:
    """Return the share of a text's characters that stand in runs of ``n`` words that stood before."""
    total = sum(map(len, found))
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(found)
    for place in range(len(found) - n + 1):
        run = tuple(found[place : place + n])
        if run in seen:
            repeated[place : place + n] = [True] * n
        seen.add(run)
    return sum(len(word) for word, again in zip(found, repeated, strict=True) if again) / total if total else 0.0


def most_frequent_run(found: Sequence[str], n: int) -> float:
    """Return the share of a text's characters that the most frequent run of ``n`` words makes up, if it repeats."""
    total = sum(map(len, found))
    runs = Counter(tuple(found[place : place + n]) for place in range(len(found) - n + 1))
    if not runs or not total:
        return 0.0
    run, count = runs.most_common(1)[0]
    return sum(map(len, run)) * count / total if count > 2 else 0.0
