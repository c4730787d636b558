"""What annotators say of pairs of responses to one prompt, and how far they agree.

Every two responses of a comparison are one judgement. Judgements of the same two responses to the same prompt belong
together, whichever of the two a row lists first.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from posttrain.data.messages import Message
from posttrain.data.records import Comparison


@dataclass(frozen=True)
class Judgement:
    """What one annotator says of two responses; all that has a sign is seen from the first of the pair."""

    prompt: bytes
    pair: tuple[bytes, bytes]
    """Digests of the two responses, the smaller first."""
    annotator: str
    value: int
    """1 where the first is better, -1 where the second is, 0 for a tie."""
    log_length: float
    """Logarithm of how many times as many characters the first has, each response with one more than it has."""
    listed: int
    """1 where the row lists the first before the second, else -1."""


def judgements_of(record: Comparison) -> Iterator[Judgement]:
    """Yield a judgement for every two responses that differ."""
    prompt = _digest(record.prompt)
    made = [
        (_digest([turn]), rank, len(turn.content) + 1)
        for turn, rank in zip(record.responses, record.ranks, strict=True)
    ]
    for place, one in enumerate(made):
        for other in made[place + 1 :]:
            if one[0] == other[0]:
                continue
            first, second, listed = (one, other, 1) if one[0] < other[0] else (other, one, -1)
            value = (second[1] > first[1]) - (second[1] < first[1])
            ratio = math.log(first[2] / second[2])
            yield Judgement(prompt, (first[0], second[0]), record.annotator, value, ratio, listed)


def _digest(turns: Sequence[Message]) -> bytes:
    said = "\n".join(turn.model_dump_json(exclude_none=True) for turn in turns)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def by_unit(judgements: Iterable[Judgement]) -> dict[tuple[bytes, tuple[bytes, bytes]], list[Judgement]]:
    """Return judgements by what they judge."""
    units: dict[tuple[bytes, tuple[bytes, bytes]], list[Judgement]] = {}
    for one in judgements:
        units.setdefault((one.prompt, one.pair), []).append(one)
    return units


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Return Krippendorff's alpha with the interval metric, (a − b)²; None where all values are the same.

    Each unit is the values that it was given, by as many annotators; those that only one judged do not count. 1 is
    perfect agreement, 0 what chance alone would give.
    """
    judged = [values for values in units if len(values) > 1]
    counts = Counter(value for values in judged for value in values)
    total = counts.total()
    observed = sum(2 * _squares(Counter(values)) / (len(values) - 1) for values in judged)
    expected = 2 * _squares(counts) / (total - 1) if total > 1 else 0
    return 1 - observed / expected if expected else None


def _squares(counts: Counter[float]) -> float:
    """Return the sum of (a − b)² over every two of the values."""
    total, mean = counts.total(), sum(value * count for value, count in counts.items()) / max(counts.total(), 1)
    return total * sum(count * (value - mean) ** 2 for value, count in counts.items())


def agreement(values: Sequence[int]) -> float:
    """Return how far the judgements of one pair agree: 1 for the same, ½ for a tie and a preference, 0 for opposites.

    It is the mean over every two of them; of fewer than two it is 1.
    """
    pairs = [(one, other) for place, one in enumerate(values) for other in values[place + 1 :]]
    return 1 - sum(abs(one - other) for one, other in pairs) / (2 * len(pairs)) if pairs else 1.0


def consensus(values: Sequence[int]) -> int:
    """Return what most of some judgements say: the sign of their sum."""
    total = sum(values)
    return (total > 0) - (total < 0)
