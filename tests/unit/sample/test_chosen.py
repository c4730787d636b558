"""Which samples become demonstrations, and what is counted of the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from posttrain.sample.choose.answers import number_answer
from posttrain.sample.choose.chosen import choose_all, choose_best, choose_first, choose_majority, fault_of
from posttrain.sample.config.generate import GenerateConfig
from posttrain.sample.generate import account, demonstration
from posttrain.sample.judges import reply_of
from posttrain.sample.sampling import Sample
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.schema import build


def said(text: str, logprob: float = -1.0, finish: Any = "stop", answered: bool = True) -> Sample:
    return Sample([0], [logprob], [0.0], finish, text, 0.0, answered=answered)


CUT, OPEN, EMPTY, NUL = said("cut", finish="length"), said("", answered=False), said(" \n"), said("a\0b")
ABORTED = said("", finish="aborted")
BAD = [CUT, OPEN, EMPTY, NUL, ABORTED]
FAULTS = {"cut": 1, "no_answer": 1, "empty": 1, "nul": 1, "aborted": 1}


def test_what_teaches_nothing_is_dropped_by_reason() -> None:
    chosen = choose_all([*BAD, said("4"), said("5"), said("4 ")], fault_of)
    assert (chosen.numbers, chosen.scores) == ([5, 6], [None, None])
    assert chosen.dropped == FAULTS | {"repeated": 1}
    assert choose_all(BAD, fault_of).numbers == []
    assert choose_all([CUT, said("4")], fault_of, [9.0, 0.5]).scores == [0.5]


def test_the_best_is_chosen_among_those_without_a_fault() -> None:
    samples = [said("cut", -0.1, "length"), said("5", -2.0), said("4", -1.0), said("6", -3.0)]
    best = choose_best(samples, fault_of)
    assert (best.numbers, best.scores, best.dropped) == ([2], [-1.0], {"cut": 1, "not_chosen": 2})
    by_score = choose_best(samples, fault_of, [9.0, 1.0, 2.0, 3.0])
    assert (by_score.numbers, by_score.scores) == ([3], [3.0])
    assert choose_best(BAD, fault_of).numbers == [] and choose_best(BAD, fault_of).dropped == FAULTS


def test_the_majority_is_of_those_without_a_fault() -> None:
    samples = [said("it is 7", finish="length"), said("7"), said("it is 4"), said("4"), said("none")]
    chosen = choose_majority(samples, fault_of, number_answer)
    assert (chosen.numbers, chosen.scores, chosen.dropped) == ([2], [0.5], {"cut": 1, "not_chosen": 3})
    assert choose_majority([said("none"), CUT], fault_of, number_answer).dropped == {"cut": 1, "no_vote": 1}


def test_the_first_valid_one_is_chosen() -> None:
    def odd(sample: Sample) -> str | None:
        return fault_of(sample) or (None if int(sample.text) % 2 else "low_score")

    chosen = choose_first([CUT, said("4"), said("5"), said("7")], odd)
    assert (chosen.numbers, chosen.dropped) == ([2], {"cut": 1, "low_score": 1, "not_chosen": 1})


def test_prompts_and_samples_add_up_and_nothing_left_says_why() -> None:
    made = [
        {"rows": [{}, {}], "dropped": {"cut": 1}, "tokens": 3},
        {"rows": [], "dropped": {"cut": 2, "empty": 1}, "tokens": 3},
    ]
    found = account(5, made)
    assert found["prompts"] == {"in": 5, "too_long": 3, "no_response": 1, "kept": 1}
    assert found["samples"] == {"in": 6, "kept": 2, "dropped": {"cut": 3, "empty": 1}}
    with pytest.raises(
        PosttrainError, match=r"no response is left of 2 prompts, 1 of them too long; dropped: 2 cut, 1 em"
    ):
        account(2, made[1:])


@pytest.mark.parametrize(("reasoning", "expected"), [("keep", "2 + 2"), ("strip", None)])
def test_reasoning_is_kept_or_stripped_and_the_licence_may_be_the_models(reasoning: Any, expected: str | None) -> None:
    class Record:
        prompt, tools, template_arguments = (), None, None
        license, language, task = "MIT", "en", "sums"

    class Means:
        config, generator = GenerateConfig(reasoning=reasoning, license="teacher-1.0"), "train.sft@0"

    sample = dataclasses.replace(said("4"), reasoning="2 + 2", whole="<think>2 + 2</think>4")
    means, tokenizer = Means(), None
    row = demonstration(means, Record(), reply_of(tokenizer, [1], sample), sample)  # type: ignore[arg-type]
    (turn,) = row["completion"]
    assert (turn["content"], turn.get("reasoning_content")) == ("4", expected)
    assert (row["license"], row["generator"], row["logprob"]) == ("teacher-1.0", "train.sft@0", -1.0)


MANY = {"num_samples": 4}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"choose": "vote"}, "choose=vote: one sample leaves no choice; raise sampling.num_samples"),
        ({"scorer": "number"}, "number: nothing is judged; give choose=verifier, or min_score"),
        ({"scorer": "number", "function": "a:b", "min_score": 1}, "scorer=number and function=a:b: give one of them"),
        ({"sampling": {**MANY, "temperature": 0}}, "num_samples=4: at temperature=0 all are alike"),
        ({"structure": {"regex": "a", "choices": ["b"]}}, "regex and choices: a response has one structure"),
        ({"structure": {"choices": ["a,b"]}}, "choices: a comma ends a choice"),
        (
            {"sampling": {"num_beams": 2, "temperature": 0}, "structure": {"regex": "a"}},
            "num_beams: beam search takes neither a structure nor first_valid",
        ),
    ],
)
def test_what_does_not_go_together_is_told_by_its_knob(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(GenerateConfig, knobs, "sample.generate")
