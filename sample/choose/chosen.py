"""Which samples of a prompt become demonstrations, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from posttrain.sample.choose.answers import Extractor
from posttrain.sample.choose.select import answer_logprob, best_of, majority_of
from posttrain.sample.sampling import Sample

Fault = Callable[[Sample], str | None]
"""Why a sample is no demonstration; None where nothing is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The samples of one prompt that were chosen."""

    numbers: list[int]
    """Which ones they are."""
    scores: list[float | None]
    """What each won by; None where nothing was compared."""
    dropped: Counter[str]
    """Samples that were not chosen, by reason."""


def fault_of(sample: Sample) -> str | None:
    """Return why a sample can be no demonstration of anything, or None.

    What was cut would teach a model to end where nothing ends, and no record holds a NUL.
    """
    if sample.finish_reason == "aborted":
        return "aborted"
    if not sample.answered:
        return "no_answer"
    if not sample.ended:
        return "cut"
    if not sample.text.strip():
        return "empty"
    return "nul" if "\0" in sample.response else None


def choose_all(samples: Sequence[Sample], fault: Fault, scores: Sequence[float] | None = None) -> Chosen:
    """Return every sample without a fault, the first of those that say the same."""
    sound, dropped = _sound(samples, fault)
    first: dict[str, int] = {}
    for number in sound:
        first.setdefault(samples[number].response.strip(), number)
    if repeated := len(sound) - len(first):
        dropped["repeated"] += repeated
    numbers = list(first.values())
    return Chosen(numbers, [None if scores is None else scores[number] for number in numbers], dropped)


def choose_first(samples: Sequence[Sample], fault: Fault) -> Chosen:
    """Return the first sample without a fault."""
    sound, dropped = _sound(samples, fault)
    return _one(sound, sound[0] if sound else None, None, dropped)


def choose_best(samples: Sequence[Sample], fault: Fault, scores: Sequence[float] | None = None) -> Chosen:
    """Return the sample without a fault of the highest score, by default its average log-probability."""
    sound, dropped = _sound(samples, fault)
    if not sound:
        return Chosen([], [], dropped)
    own = [answer_logprob(samples[number]) if scores is None else scores[number] for number in sound]
    best = best_of([samples[number] for number in sound], own)
    return _one(sound, sound[best.index], best.score, dropped)


def choose_majority(samples: Sequence[Sample], fault: Fault, extract: Extractor) -> Chosen:
    """Return the first sample without a fault that gives the most frequent answer; none where no sample has one."""
    sound, dropped = _sound(samples, fault)
    if not sound:
        return Chosen([], [], dropped)
    choice = majority_of([samples[number] for number in sound], extract)
    if choice.score == 0:
        dropped["no_vote"] += len(sound)
        return Chosen([], [], dropped)
    return _one(sound, sound[choice.index], choice.score, dropped)


def _sound(samples: Sequence[Sample], fault: Fault) -> tuple[list[int], Counter[str]]:
    faults = [fault(sample) for sample in samples]
    return [number for number, found in enumerate(faults) if found is None], Counter(filter(None, faults))


def _one(sound: list[int], number: int | None, score: float | None, dropped: Counter[str]) -> Chosen:
    if number is None:
        return Chosen([], [], dropped)
    if len(sound) > 1:
        dropped["not_chosen"] += len(sound) - 1
    return Chosen([number], [score], dropped)
