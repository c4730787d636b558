"""What two responses must share to give one vote."""

from __future__ import annotations

import pytest

from posttrain.data.checks.scorers import score
from posttrain.sample.choose.answers import (
    ABSTAINED,
    choice_answer,
    extractor,
    json_answer,
    majority,
    number_answer,
    text_answer,
)
from posttrain.sample.choose.confidence import certainty, entropy, likelihood, mean_logprob, self_consistency

LABELS = ["positive", "negative", "neutral"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("3 + 4 = 7. I hope this helps!", "7"),
        ("That is 1,234 in total", "1234"),
        ("1.50", "1.5"),
        ("100", "100"),
        ("−0.0", "0"),
        ("007", "7"),
        ("minus −12", "-12"),
        ("none", None),
    ],
)
def test_numbers(text: str, key: str | None) -> None:
    assert number_answer(text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Sure! I would say: Positive.", "positive"),
        ("positive or negative", None),
        ("It is nonpositive.", None),
        ("", None),
    ],
)
def test_choices(text: str, key: str | None) -> None:
    assert choice_answer(text, LABELS) == key


def test_json_objects_are_one_answer_whatever_their_order_and_numbers() -> None:
    assert json_answer('Here: {"b": 3.0, "a": [1, true]} Bye!') == json_answer('{"a": [1.0, true], "b": 3}')
    assert json_answer('{"a": true}') != json_answer('{"a": 1}')
    assert json_answer('{"a": 1} {"a": 2}') is None
    assert json_answer('{"a": 1') is None


def test_json_fields() -> None:
    assert json_answer('{"name": "Ana", "why": "seen"}', ["name"]) == json_answer('{"name": "Ana"}')
    assert json_answer('{"why": "seen"}', ["name"]) is None


def test_abstentions_are_one_answer_in_any_language() -> None:
    assert text_answer("I don't know.") == text_answer("¡Hola! No lo sé.") == ABSTAINED
    assert text_answer("A dog.") == text_answer("  a DOG") != ABSTAINED
    assert text_answer("...") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is Paris.", "Paris"),
        ("It's Paris!", "paris"),
        ("Sure! The answer is: Paris.", "That is Paris"),
        ("Answer: 12 apples", "I think it is 12 apples."),
        ("Die Antwort lautet Wien.", "Es ist Wien"),
        ("Es París.", "La respuesta es París"),
        ("C'est Paris.", "La réponse est Paris"),
    ],
)
def test_what_leads_to_an_answer_is_no_part_of_it(one: str, other: str) -> None:
    assert text_answer(one) == text_answer(other) is not None
    assert majority(["Rome", text_answer(one), text_answer(other)]) == (1, 2)


def test_other_answers_stay_apart() -> None:
    texts = ["It is Paris.", "It is not Paris.", "It is", "Is it Paris?", "Paris is it", "Sure"]
    assert len({text_answer(text) for text in texts}) == len(texts)
    assert extractor("exact")("It is Paris.") == "it is paris" != extractor("exact")("Paris")


@pytest.mark.parametrize(
    ("scorer", "reference", "responses"),
    [
        ("number", "7", ["It is 7.", "7", "3 + 4 = 7", "8", "no idea"]),
        ("choice", "positive|negative|neutral", ["Positive.", "It is positive!", "negative", "positive, neutral"]),
        ("json", '{"a": 1}', ['{"a": 1}', 'Sure {"a":1.0}', '{"a": 2}', "{"]),
        ("answer", "a dog|a cat", ["A dog.", "a dog", "A cat.", "I don't know."]),
        ("abstain", "I don't know|a dog", ["I don't know.", "I do not know!", "A dog."]),
    ],
)
def test_responses_with_one_key_are_scored_alike(scorer: str, reference: str, responses: list[str]) -> None:
    extract = extractor(scorer, sorted(reference.split("|")))
    scores: dict[str, set[float]] = {}
    for response in responses:
        key = extract(response)
        if key is not None:
            scores.setdefault(key, set()).add(score(scorer, response, reference))
    assert len(scores) >= 2
    assert all(len(values) == 1 for values in scores.values())


def test_confidence_by_hand() -> None:
    # Tokens of probability ½ and ⅛: geometric mean ¼.
    logprobs = [-0.6931471805599453, -2.0794415416798357]
    assert mean_logprob(logprobs) == pytest.approx(-1.3862943611198906)
    assert likelihood(logprobs) == pytest.approx(0.25)
    assert entropy([logprobs, [-1.0]]) == pytest.approx((2.772588722239781 + 1) / 2)
    with pytest.raises(ValueError, match="without log-probabilities"):
        likelihood([])


def test_samples_without_an_answer_do_not_vote() -> None:
    assert majority([None, None, "a"]) == (2, 1)
    assert majority(["b", None, "a", "a"]) == (2, 2)
    assert majority(["b", "a", "a", "b"]) == (0, 2)
    assert majority([None, None]) == (0, 0)


def test_consistency_by_hand() -> None:
    answers = ["7", "7", "8", None]
    assert self_consistency(answers) == 0.5
    # Entropy of ½, ¼, ¼ is 1.5 bits, of four different answers 2 bits.
    assert certainty(answers) == pytest.approx(1 - 1.5 / 2)
    assert certainty(["7"] * 4) == 1
    assert certainty([None] * 4) == pytest.approx(0)
    assert self_consistency([None, None]) == 0
