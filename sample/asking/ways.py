"""Ways of answering prompts: every sample, the best of several, the vote of several, the first that is valid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.checks.scorers import RATINGS, require_scorer, require_whole_reference, score, scoring_function
from posttrain.data.messages import Json
from posttrain.sample.asking.rows import Row
from posttrain.sample.choose.answers import Extractor, extractor
from posttrain.sample.choose.confidence import mean_logprob
from posttrain.sample.choose.select import Attempt, Choice, best_of_n, by_verifier, first_valid, majority_of_n
from posttrain.sample.sampling import Generates, Prompts, Sample, SamplingParams, Score
from posttrain.stage.errors import PosttrainError, UsageError


@dataclasses.dataclass(frozen=True)
class Given:
    """What a prompt gets: samples, and what is told of how they were come by."""

    samples: list[Sample]
    told: Json = dataclasses.field(default_factory=dict)


Way = Callable[[Sequence[Row], Prompts], list[Given]]
"""Answers rows, whose prompts come as token ids."""
Judge = Callable[[Row, Sample], float]
"""Scores a sample of a row's prompt."""


def every_sample(source: Generates, params: SamplingParams) -> Way:
    """Return the way that gives all samples back."""
    return lambda rows, prompts: [Given(own) for own in source.generate(prompts, params)]


def best_sample(source: Generates, params: SamplingParams, by: str, scored: Callable[[Sequence[Row]], Score]) -> Way:
    """Return the way that gives the sample of the highest score back; ``scored`` makes the score of some rows."""

    def answer(rows: Sequence[Row], prompts: Prompts) -> list[Given]:
        chosen = best_of_n(source, prompts, params, _with_numbers(scored(rows), by))
        return [_chosen(choice, by, params.num_samples) for choice in chosen]

    return answer


def voted_sample(source: Generates, params: SamplingParams, scorer: str | None) -> Way:
    """Return the way that gives the first sample of the most frequent answer back, as that scorer reads answers."""

    def answer(rows: Sequence[Row], prompts: Prompts) -> list[Given]:
        chosen = majority_of_n(source, prompts, params, [_extractor(scorer, row) for row in rows])
        return [_chosen(choice, "vote", params.num_samples) for choice in chosen]

    return answer


def first_valid_sample(
    source: Generates, params: SamplingParams, valid: Callable[[Row, Sample], bool], most: int
) -> Way:
    """Return the way that draws, ``params.num_samples`` at once and ``most`` at most, until a sample is valid."""
    rounds = most // params.num_samples

    def answer(rows: Sequence[Row], prompts: Prompts) -> list[Given]:
        attempts = first_valid(source, prompts, params, lambda place, sample: valid(rows[place], sample), rounds)
        return [Given([] if one.sample is None else [one.sample], {"attempt": _attempt(one)}) for one in attempts]

    return answer


def judge_of(name: str, rows: Sequence[Row]) -> Judge:
    """Return what scores a sample: a scorer by name, or ``module:function``; −∞ where a sample has no answer.

    Raises UsageError where there is none, or a row lacks the reference that it judges by.
    """
    if ":" in name:
        function = scoring_function(name, "--scorer")
        return _of_answers(lambda row, s: function(row.conversation, s.text, row.reference, s.reasoning))
    require_scorer(name)
    for row in rows:
        require_reference(row, name)
    return _of_answers(lambda row, sample: score(name, sample.text, row.reference or ""))


def require_reference(row: Row, scorer: str) -> None:
    """Raise UsageError where a row has no reference that a scorer can judge by."""
    if row.reference is None and scorer not in RATINGS:
        fix = "give --reference" if row.place == "--prompt" else 'give it a "reference"'
        raise UsageError(f"{row.place}: no reference, which {scorer} judges by; {fix}")
    try:
        require_whole_reference(scorer, row.reference or "")
    except UsageError as error:
        raise UsageError(f"{row.place}: {error}") from None


def verified(judge: Judge) -> Callable[[Sequence[Row]], Score]:
    """Return what makes the score of rows by a judge."""
    return lambda rows: by_verifier(lambda place, sample: judge(rows[place], sample))


def plain(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Json:
    """Return a sample as JSON."""
    reasoning = {"reasoning": sample.reasoning} if sample.reasoning else {}
    return {
        "text": sample.text,
        **reasoning,
        "ended": sample.ended,
        "finish_reason": sample.finish_reason,
        "tokens": len(sample.token_ids),
        "mean_logprob": mean_logprob(sample.logprobs),
        **({"top_logprobs": most_likely_tokens(sample, tokenizer)} if sample.top_tokens else {}),
    }


def most_likely_tokens(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Json]:
    """Return each token of a sample with the most likely ones of its place; a token is id, text and log-probability."""

    def token(number: int, logprob: float) -> Json:
        return {"id": number, "token": tokenizer.decode([number]), "logprob": logprob}

    places = zip(sample.token_ids, sample.logprobs, sample.top_tokens, sample.top_logprobs, strict=True)
    return [
        token(own, logprob) | {"top": [token(*pair) for pair in zip(ids, logprobs, strict=True)]}
        for own, logprob, ids, logprobs in places
    ]


def _of_answers(judge: Judge) -> Judge:
    return lambda row, sample: judge(row, sample) if sample.answered else -math.inf


def _extractor(scorer: str | None, row: Row) -> Extractor:
    """Return what reads answers; the labels of a choice are those of the reference, as the scorer has them."""
    return extractor(scorer or "text", sorted((row.reference or "").split("|")))


def _with_numbers(score_of: Score, by: str) -> Score:
    """Return a score that raises PosttrainError where it is NaN, which compares with nothing."""

    def checked(prompts: Prompts, samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
        scores = score_of(prompts, samples)
        if bad := sum(math.isnan(value) for own in scores for value in own):
            raise PosttrainError(f"--by {by}: {bad} of {sum(map(len, scores))} scores are NaN; look at what scores")
        return scores

    return checked


def _chosen(choice: Choice, by: str, samples: int) -> Given:
    finite = choice.score if math.isfinite(choice.score) else None  # JSON has no infinity
    told = {"by": by, "index": choice.index, "score": finite, "samples": samples, "tokens": choice.tokens}
    return Given([choice.sample], {"choice": told})


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "valid": attempt.sample is not None,
        "rounds": attempt.rounds,
        "samples": attempt.samples,
        "tokens": attempt.tokens,
    }
