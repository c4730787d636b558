"""What responses do with their sources: answer and cite, make up, or say that they do not know."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.data.chat.passages import passages_of, with_passages
from posttrain.data.checks.scorers import check_reference, require_whole_reference, score
from posttrain.data.checks.sourced import parse_sources, weigh
from posttrain.stage.errors import UsageError

GOLD = "Ana Ruiz has a dog."
PASSAGES = [GOLD, "Tom Ruiz has a cat.", "Eva Ruiz has 12 fish."]


def reference(**fields: Any) -> str:
    known: dict[str, Any] = {"passages": PASSAGES, "gold": [GOLD], "answer": "a dog|a cat|a boat"}
    return json.dumps({name: value for name, value in (known | fields).items() if value is not None})


UNKNOWN = {"gold": [], "answer": "I don't know|a dog|a cat"}
MISSED = {"passages": PASSAGES[1:]}


@pytest.mark.parametrize(
    ("response", "fields", "right"),
    [
        ('A dog. "Ana Ruiz has a dog."', {}, 1.0),
        ("A dog [1].", {}, 1.0),
        ("A dog [2].", {}, 0.0),  # cites another passage
        ("A dog [4].", {}, 0.0),  # cites none that there is
        ("A dog.", {}, 0.0),  # cites nothing
        ('A boat. "Ana Ruiz has a boat."', {}, 0.0),
        ('A cat. "Tom Ruiz has a cat."', {}, 0.0),  # grounded, and no answer
        ('A dog. "Ana Ruiz has a dog." He is 7.', {}, 0.0),  # one claim more than the passages bear out
        ("I don't know.", {}, 0.0),
        ("I don't know.", UNKNOWN, 1.0),
        ("No lo sé.", UNKNOWN, 1.0),
        ('I don\'t know. "Tom Ruiz has a cat."', UNKNOWN, 0.0),
        ("I don't know, a dog?", UNKNOWN, 0.0),
        ('A cat. "Tom Ruiz has a cat."', UNKNOWN, 0.0),
        ('A dog. "Ana Ruiz has a dog."', MISSED, 0.0),  # known by heart, from no passage
        ("I don't know.", MISSED, 1.0),
        ('"Eva Ruiz has 12 fish."', {"gold": None, "answer": None}, 1.0),
        ("I don't know.", {"gold": None, "answer": None}, 1.0),
        ("She has fish.", {"gold": None, "answer": None}, 0.0),
        ('Ana has "a dog".', {"answer": None}, 1.0),
    ],
)
def test_a_response_keeps_to_its_sources(response: str, fields: dict[str, Any], right: float) -> None:
    assert score("grounded", response, reference(**fields)) == right


@pytest.mark.parametrize("text", ["", "|", '"', "“”", "\x00", "[0]", "[99999999999999999999]", '""""', "«[1]»" * 999])
def test_any_text_is_weighed_without_an_error(text: str) -> None:
    for fields in ({}, UNKNOWN, MISSED, {"gold": None, "answer": None}, {"passages": []}):
        assert 0.0 <= score("grounded", text, reference(**fields)) <= 1.0


def test_citations_are_weighed() -> None:
    both = reference(gold=[GOLD, PASSAGES[2]])
    weighed = weigh('"Ana Ruiz has a dog." and "Tom Ruiz has a cat", "Leo has a car" [9]', parse_sources(both))
    assert (weighed.citations, weighed.supported, weighed.right) == (4, 2, 1)
    assert (weighed.precision, weighed.recall) == (1 / 4, 1 / 2)
    silent = weigh("I don't know.", parse_sources(reference(gold=[])))
    assert (silent.precision, silent.recall, silent.abstained, silent.answerable) == (None, None, True, False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a dog", "give a JSON object with gold and answer"),
        ('{"gold": "a dog"}', "gold 'a dog'; give a list of texts"),
        ('{"golden": []}', "passages, gold and answer alone"),
        ('{"answer": "|a"}', "answer '|a'; give a text"),
    ],
)
def test_a_reference_of_another_form_is_an_error(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_reference("grounded", text)
    assert fault in str(raised.value)


def test_items_without_passages_are_curated_and_not_judged() -> None:
    bare = reference(passages=None)
    check_reference("grounded", bare)
    with pytest.raises(UsageError, match=r"no passages, .* let data\.retrieve put them in"):
        require_whole_reference("grounded", bare)


@pytest.mark.parametrize("instruction", ["", "Answer from these.\n\n[7] is no passage."])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief.\n\n[1] thing at a time."}]])
def test_passages_are_read_back(instruction: str, system: list[dict[str, str]]) -> None:
    passages = ["One.\n\nStill one.", "[2] with a number", "三\n[3] three"]
    asked = with_passages([*system, {"role": "user", "content": "Which?"}], passages, instruction)
    assert passages_of(asked) == ["One.\nStill one.", "[2] with a number", "三\n[3] three"]
    assert [message["role"] for message in asked] == ["system", "user"]


def test_a_conversation_without_passages_has_none() -> None:
    user = {"role": "user", "content": "[1] Which?"}
    assert passages_of(with_passages([user], [], "")) == [] == passages_of([user])
    assert with_passages([user], [], "") == [user]
