"""Choose among samples: best of N by a score, majority vote, first valid with retries.

Everything here works with whatever has `Sampler.generate`: our own sampler, a server behind the same interface, or a
cache before either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

from posttrain.sample.choose.answers import Extractor, majority
from posttrain.sample.choose.confidence import mean_logprob
from posttrain.sample.sampling import Accept, Generates, Prompts, Sample, SamplingParams, Score
from posttrain.stage.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Choice:
    """The sample that was chosen among those of a prompt."""

    index: int
    sample: Sample
    score: float
    """The score that it won by: a reward, a mean log-probability, or a share of votes."""
    tokens: int
    """What it cost: tokens of all samples."""


def best_of(samples: Sequence[Sample], scores: Sequence[float]) -> Choice:
    """Return the sample of the highest score, the first of those that tie."""
    index = max(range(len(samples)), key=lambda i: scores[i])
    return Choice(index, samples[index], scores[index], _tokens(samples))


def majority_of(samples: Sequence[Sample], extract: Extractor) -> Choice:
    """Return the first sample that gives the most frequent answer, with that answer's share of all samples."""
    index, votes = majority([extract(sample.text) if sample.answered else None for sample in samples])
    return Choice(index, samples[index], votes / len(samples), _tokens(samples))


def best_of_n(
    sampler: Generates, prompts: Prompts, params: SamplingParams, score: Score, token_budget: int | None = None
) -> list[Choice]:
    """Return the best of each prompt's ``params.num_samples`` samples, or of fewer where the budget asks for it."""
    samples = sampler.generate(prompts, within_budget(params, token_budget))
    scores = score(prompts, samples)
    return [best_of(own, own_scores) for own, own_scores in zip(samples, scores, strict=True)]


def majority_of_n(
    sampler: Generates,
    prompts: Prompts,
    params: SamplingParams,
    extract: Sequence[Extractor],
    token_budget: int | None = None,
) -> list[Choice]:
    """Return the majority's choice for each prompt; ``extract`` has the extractor of each prompt's answers."""
    samples = sampler.generate(prompts, within_budget(params, token_budget))
    return [majority_of(own, own_extract) for own, own_extract in zip(samples, extract, strict=True)]


def within_budget(params: SamplingParams, token_budget: int | None) -> SamplingParams:
    """Return the parameters with as many samples as surely fit into a budget of new tokens per prompt.

    Raises UsageError when not even one sample of ``max_tokens`` fits.
    """
    if token_budget is None:
        return params
    if token_budget < params.max_tokens:
        raise UsageError(
            f"token_budget={token_budget}: one sample may take {params.max_tokens} tokens; raise it or lower max_tokens"
        )
    return dataclasses.replace(params, num_samples=min(params.num_samples, token_budget // params.max_tokens))


def by_logprob(prompts: Prompts, samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
    """Score samples by their average log-probability under the model itself, reasoning included.

    A sample that ended within its reasoning gets −∞: a model that goes round in circles is very sure of it.
    """
    return [[answer_logprob(sample) for sample in own] for own in samples]


def answer_logprob(sample: Sample) -> float:
    """Return the average log-probability of a sample's tokens; −∞ without an answer."""
    return mean_logprob(sample.logprobs) if sample.answered else -math.inf


def by_verifier(verify: Callable[[int, Sample], float]) -> Score:
    """Return a score that asks a verifier for each sample of the prompt of that index."""

    def score(prompts: Prompts, samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
        return [[verify(index, sample) for sample in own] for index, own in enumerate(samples)]

    return score


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The search for one valid sample."""

    sample: Sample | None
    """The first that was valid; None where none was."""
    rounds: int
    samples: int
    tokens: int
    """Tokens of all samples of all rounds, cancelled ones included."""


def first_valid(
    sampler: Generates,
    prompts: Prompts,
    params: SamplingParams,
    valid: Accept,
    max_rounds: int = 3,
    token_budget: int | None = None,
) -> list[Attempt]:
    """Return the first valid sample of each prompt: it cancels the others of its prompt, and failures are tried again.

    A sample that ended within its reasoning is not valid, and ``valid`` is not asked.

    A round samples up to ``params.num_samples`` for each prompt that still has nothing, with a seed of its own. With a
    budget, a prompt's round has as many samples as are sure to fit into what is left of it; where that is none, the
    prompt is given up.
    """
    attempts = [Attempt(None, 0, 0, 0) for _ in prompts]
    open_prompts = list(range(len(prompts)))
    for number in range(max_rounds):
        rounds = [
            (index, _round_params(params, number, attempts[index].tokens, token_budget)) for index in open_prompts
        ]
        asked = [(index, own) for index, own in rounds if own is not None]
        if not asked:
            break
        found = _sample_until_valid(sampler, prompts, asked, valid)
        for (index, _), (accepted, samples) in zip(asked, found, strict=True):
            before = attempts[index]
            spent = before.tokens + _tokens(samples)
            attempts[index] = Attempt(accepted, before.rounds + 1, before.samples + len(samples), spent)
        open_prompts = [index for index, _ in asked if attempts[index].sample is None]
    return attempts


def _round_params(params: SamplingParams, number: int, spent: int, token_budget: int | None) -> SamplingParams | None:
    fitting = params.num_samples
    if token_budget is not None:
        fitting = min(fitting, (token_budget - spent) // params.max_tokens)
    if fitting < 1:
        return None
    seed = derived_seed(params.seed, f"round {number}") if number else params.seed
    return dataclasses.replace(params, num_samples=fitting, seed=seed)


def _sample_until_valid(
    sampler: Generates, prompts: Prompts, asked: Sequence[tuple[int, SamplingParams]], valid: Accept
) -> list[tuple[Sample | None, list[Sample]]]:
    accepted: dict[int, Sample] = {}

    def accept(place: int, sample: Sample) -> bool:
        if place not in accepted and sample.answered and valid(asked[place][0], sample):
            accepted[place] = sample
        return place in accepted

    samples = sampler.generate([prompts[index] for index, _ in asked], [own for _, own in asked], accept=accept)
    return [(accepted.get(place), own) for place, own in enumerate(samples)]


def derived_seed(seed: int, name: str) -> int:
    """Return a seed for what bears that name, unrelated to those of other names."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest(), "big")


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.token_ids) for sample in samples)
