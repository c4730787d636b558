"""Selection among samples, with a sampler whose samples are written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from posttrain.sample.choose.answers import number_answer
from posttrain.sample.choose.select import (
    best_of,
    best_of_n,
    by_logprob,
    by_verifier,
    derived_seed,
    first_valid,
    majority_of,
    majority_of_n,
    within_budget,
)
from posttrain.sample.sampling import Accept, Prompts, Sample, SamplingParams
from posttrain.stage.errors import UsageError


def sample(text: str, *logprobs: float) -> Sample:
    own = list(logprobs or [-1.0])
    return Sample(list(range(len(own))), own, own, "stop", text, 0.0)


class Script:
    """Gives the samples of a script: prompt [p] with a seed has ``texts[p][seed]``; each sample is three tokens long.

    Samples end in order; those after an accepted one are cancelled after one token.
    """

    def __init__(self, texts: Sequence[dict[int, list[str]]]) -> None:
        self.texts = texts
        self.calls: list[list[tuple[int, int, int]]] = []

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        self.calls.append([(p[0], own.seed, own.num_samples) for p, own in zip(prompts, each, strict=True)])
        results = []
        for place, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            made: list[Sample] = []
            accepted = False
            for text in self.texts[prompt[0]][own.seed][: own.num_samples]:
                if accepted:
                    made.append(dataclasses.replace(sample("", -1.0), finish_reason="aborted"))
                else:
                    made.append(sample(text, -1.0, -1.0, -1.0))
                    accepted = accept is not None and accept(place, made[-1])
            results.append(made)
        return results


SECOND, THIRD = derived_seed(0, "round 1"), derived_seed(0, "round 2")


def test_best_of_takes_the_highest_score_and_the_first_of_a_tie() -> None:
    samples = [sample("a", -1.0), sample("b", -0.2, -0.4), sample("c", -0.1, -0.5)]
    assert by_logprob([[0]], [samples]) == [[-1.0, pytest.approx(-0.3), pytest.approx(-0.3)]]
    choice = best_of(samples, [0.0, 2.0, 2.0])
    assert (choice.index, choice.sample.text, choice.score, choice.tokens) == (1, "b", 2.0, 5)


def test_majority_votes_on_answers_not_on_wordings() -> None:
    samples = [sample("It is 8."), sample("Well: 7"), sample("7"), sample("no idea"), sample("9")]
    choice = majority_of(samples, number_answer)
    assert (choice.index, choice.score) == (1, 2 / 5)
    tie = majority_of([sample("3"), sample("4"), sample("4.0"), sample("3.")], number_answer)
    assert (tie.index, tie.score) == (0, 1 / 2)
    silent = majority_of([sample("none"), sample("nor here")], number_answer)
    assert (silent.index, silent.score) == (0, 0.0)


def test_best_of_n_over_prompts() -> None:
    sampler = Script([{0: ["7", "8", "7"]}, {0: ["1", "2", "2"]}])
    params = SamplingParams(max_tokens=10, num_samples=3)
    verified = best_of_n(sampler, [[0], [1]], params, by_verifier(lambda prompt, s: float(s.text == "82"[prompt])))
    assert [choice.index for choice in verified] == [1, 1]
    voted = majority_of_n(sampler, [[0], [1]], params, [number_answer] * 2, token_budget=25)
    assert [choice.sample.text for choice in voted] == ["7", "1"]  # two samples each fit into 25 tokens: a tie
    assert sampler.calls[-1] == [(0, 0, 2), (1, 0, 2)]


def test_a_budget_caps_the_number_of_samples() -> None:
    params = SamplingParams(max_tokens=10, num_samples=8)
    assert within_budget(params, None) is params
    assert [within_budget(params, budget).num_samples for budget in (10, 39, 80, 1000)] == [1, 3, 8, 8]
    with pytest.raises(UsageError, match="token_budget=9: one sample may take 10 tokens"):
        within_budget(params, 9)


def test_the_first_valid_sample_cancels_the_rest_and_failures_are_tried_again_with_new_seeds() -> None:
    sampler = Script(
        [
            {0: ["bad", "good", "bad"]},
            {0: ["bad"] * 3, SECOND: ["bad"] * 3, THIRD: ["good", "bad", "bad"]},
            {0: ["bad"] * 3, SECOND: ["bad"] * 3, THIRD: ["bad"] * 3},
        ]
    )
    params = SamplingParams(max_tokens=4, num_samples=3)
    found = first_valid(sampler, [[0], [1], [2]], params, lambda prompt, s: s.text == "good", max_rounds=3)
    assert sampler.calls == [
        [(0, 0, 3), (1, 0, 3), (2, 0, 3)],
        [(1, SECOND, 3), (2, SECOND, 3)],
        [(1, THIRD, 3), (2, THIRD, 3)],
    ]
    assert [attempt.sample.text if attempt.sample else None for attempt in found] == ["good", "good", None]
    # Three tokens a sample, one of a cancelled one.
    assert [(a.rounds, a.samples, a.tokens) for a in found] == [(1, 3, 7), (3, 9, 23), (3, 9, 27)]


def test_a_budget_ends_the_search_of_a_prompt() -> None:
    sampler = Script([{0: ["bad"] * 3, SECOND: ["bad"] * 3, THIRD: ["good"]}])
    params = SamplingParams(max_tokens=4, num_samples=3)
    (attempt,) = first_valid(sampler, [[0]], params, lambda prompt, s: s.text == "good", 9, token_budget=17)
    # 9 of 17 tokens are spent by the first round; two samples of at most 4 fit into 8, none into the last 2.
    assert sampler.calls == [[(0, 0, 3)], [(0, SECOND, 2)]]
    assert (attempt.sample, attempt.rounds, attempt.samples, attempt.tokens) == (None, 2, 5, 15)


def test_validity_is_asked_by_the_prompts_own_index_in_later_rounds() -> None:
    sampler = Script([{0: ["x"]}, {0: ["y"], SECOND: ["1"]}])
    found = first_valid(sampler, [[0], [1]], SamplingParams(), lambda prompt, s: s.text == "x1"[prompt])
    assert [attempt.sample.text if attempt.sample else None for attempt in found] == ["x", "1"]


def test_derived_seeds_differ_and_stay() -> None:
    assert derived_seed(0, "round 1") == derived_seed(0, "round 1")
    assert len({derived_seed(seed, f"round {n}") for seed in range(50) for n in range(50)}) == 2500
