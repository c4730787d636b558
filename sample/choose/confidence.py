"""How sure a policy is of a response: figures that cost nothing beyond sampling, for ranking and abstaining.

None of them is a probability of being right until it was compared with how often the policy is right
(`posttrain.evaluate.measure.calibration`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def mean_logprob(logprobs: Sequence[float]) -> float:
    """Return the average log-probability of a response's tokens in nats, at most 0.

    Raises ValueError for a response without any, as a server gives that does not return log-probabilities.
    """
    if not logprobs:
        raise ValueError("a response without log-probabilities; sample with a backend that returns them")
    return math.fsum(logprobs) / len(logprobs)


def likelihood(logprobs: Sequence[float]) -> float:
    """Return the geometric mean of the tokens' probabilities, in [0, 1]: the inverse of the perplexity."""
    return math.exp(mean_logprob(logprobs))


def entropy(logprobs: Sequence[Sequence[float]]) -> float:
    """Return the entropy of the responses to one prompt in nats, estimated from samples of it.

    ``H = E[−log p(response)]``, so the mean of ``−Σ logprobs`` over samples drawn at temperature 1 is unbiased. Longer
    responses have more of it: compare the prompts of one task only.
    """
    return -math.fsum(math.fsum(response) for response in logprobs) / len(logprobs)


def self_consistency(answers: Sequence[str | None]) -> float:
    """Return the share of samples that give the most frequent answer (Wang et al. 2022); 0 where none has an answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes.values(), default=0) / len(answers)


def certainty(answers: Sequence[str | None]) -> float:
    """Return 1 minus the entropy of the samples' answers over its maximum, in [0, 1].

    The entropy over answers instead of wordings is the discrete semantic entropy of Farquhar et al. 2024, with the
    extracted answer as the meaning. Samples without an answer count as one answer each, and one sample alone says
    nothing, which is 0.
    """
    n = len(answers)
    votes = Counter(answer for answer in answers if answer is not None)
    counts = [*votes.values(), *[1] * (n - votes.total())]
    if n < 2:
        return 0.0
    return 1.0 - math.fsum(c / n * math.log(n / c) for c in counts) / math.log(n)
