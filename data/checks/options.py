"""Multiple choice by log-probability: the answer is the option that a model finds the most likely.

`evaluate.policy` asks the model for the log-probability of each option behind the prompt. ``choice_logprob`` takes the
highest sum; ``choice_logprob_per_byte`` divides it by the option's bytes first, so that long options are not at a
disadvantage.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.stage.errors import UsageError

LIKELIEST = {"choice_logprob": False, "choice_logprob_per_byte": True}
"""Scorers whose items are answered so, and whether they divide by the length."""


def options_of(reference: str) -> list[str]:
    """Return the options of a reference, the right one first; raise UsageError where they leave no choice."""
    options = reference.split("|")
    if len(options) < 2 or "" in options or len({*options}) < len(options):
        raise UsageError(f"{reference!r}: give two options or more, all different, as right|other|other")
    return options


def option_named(response: str, reference: str) -> float:
    """Return 1 when the response is the first of the reference's options, word for word."""
    return float(response.strip() == reference.split("|")[0].strip())


def likeliest(options: Sequence[str], logprobs: Sequence[float], per_byte: bool) -> str:
    """Return the option of the highest log-probability; of equal ones the last, so that a tie is not called right."""
    lengths = [len(option.encode()) if per_byte else 1 for option in options]
    best = max(range(len(options)), key=lambda place: (logprobs[place] / lengths[place], place))
    return options[best]
