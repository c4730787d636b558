"""Quotes that stand in their passages, and quotes that only seem to."""

from __future__ import annotations

import pytest

from posttrain.data.checks.attribution import attribute, find_quote, quotes_of

PASSAGES = [
    "The bridge, opened in 1932, isn't the city’s longest: it has 1,149 metres.",
    "At −5 °C the “old” ﬁre engine did not start.\nNobody was hurt; the fire, they said, was small.",
    "東京は日本の首都です。",
]


@pytest.mark.parametrize(
    ("quote", "passage", "stands_as"),
    [
        ("opened in 1932", 0, "opened in 1932"),
        ("The Bridge opened in 1932", 0, "The bridge, opened in 1932"),
        ("isn’t the city's longest", 0, "isn't the city’s longest"),
        ("it has 1,149 metres.", 0, "it has 1,149 metres"),
        ("the old fire engine", 1, "the “old” ﬁre engine"),
        ("did not start. Nobody was hurt", 1, "did not start.\nNobody was hurt"),
        ("-5 °C", 1, "−5 °C"),
        ("日本の首都", 2, "日本の首都"),
    ],
)
def test_a_quote_is_found_where_it_stands(quote: str, passage: int, stands_as: str) -> None:
    (support,) = find_quote(quote, PASSAGES)
    assert support.passage == passage
    assert PASSAGES[passage][support.start : support.end] == stands_as
    assert support.exact == (quote.strip(".") == stands_as)


@pytest.mark.parametrize(
    "quote",
    [
        "opened in 1923",
        "it has 1,149 kilometres",
        "it has 149 metres",
        "it has 1.149 metres",
        "is the city's longest",
        "5 °C",
        "the engine did start",
        "old fire engine did start",
        "ridge, opened in 1932",
        "the cit",
        "hurt the bridge",
        "日本の首部",
        "opened in 1932 ... did not start",
        "1,149 metres … opened in 1932",
        "",
        "…",
        "?!",
    ],
)
def test_a_quote_that_does_not_stand_is_not_found(quote: str) -> None:
    assert find_quote(quote, PASSAGES) == []


@pytest.mark.parametrize("dots", ["...", "…", "[...]", "[…]", ". . ."])
def test_what_is_left_out_must_be_said_and_the_rest_be_in_order(dots: str) -> None:
    first, second = find_quote(f"The bridge {dots} has 1,149 metres", PASSAGES)
    assert PASSAGES[0][first.start : first.end] == "The bridge"
    assert PASSAGES[0][second.start : second.end] == "has 1,149 metres"
    assert find_quote("The bridge has 1,149 metres", PASSAGES) == []


def test_the_passage_that_has_it_letter_for_letter_goes_first() -> None:
    (support,) = find_quote("a small Fire", ["A small fire.", "It was a small Fire."])
    assert (support.passage, support.exact) == (1, True)


def test_a_number_does_not_end_within_a_longer_one() -> None:
    assert find_quote("room 4", ["room 42", "room 4A", "room 4.5"]) == []
    assert find_quote("room 4", ["room 4, upstairs"])
    assert find_quote("3", ["9-3 is 6"])


def test_quotes_of_several_kinds() -> None:
    text = 'He said “one two”, she „drei vier“, they «cinq» and "six", "six" again; it\'s 5" long.'
    assert quotes_of(text) == ["one two", "drei vier", "cinq", "six"]


def test_a_response_holds_when_all_its_quotes_do() -> None:
    passages = ["Ana has a dog. Ben has a cat."]
    good = attribute("“Ana has a dog”, so it is a dog.", passages)
    assert good.holds and not good.unsupported
    mixed = attribute("“Ana has a dog” and “Ben has a dog”.", passages)
    assert not mixed.holds
    assert mixed.unsupported == ["Ben has a dog"]
    assert list(mixed.supported) == ["Ana has a dog"]
    assert not attribute("It is a dog.", passages).holds
