"""Words of any script, and hashes of runs of them."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from posttrain.data.steps.words import _ANY, grams, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It's  a TEST, (really)!", "its a test really".replace("its", "it s")),
        ("Ｆｕｌｌ ｗｉｄｔｈ１２", "full width12"),
        ("Cafe\u0301 au lait", "Caf\u00e9 au lait"),
        ("3 − 4", "3 - 4"),
        ("今日は良い天気です。", "今日は 良い天気です"),
    ],
)
def test_spelling_width_and_spacing_make_no_other_words(one: str, other: str) -> None:
    assert words(one) == words(other)


@pytest.mark.parametrize(("one", "other"), [("3 + 4", "3 - 4"), ("x^2", "x*2"), ("1.5", "1 5"), ("a < b", "a > b")])
def test_operators_and_decimals_are_words(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_scripts_without_spaces_have_a_word_for_each_character_and_others_keep_their_marks() -> None:
    assert words("东京 is big") == ["东", "京", "is", "big"]
    assert len(words("ภาษาไทย")) == 7
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]


def test_the_fast_ways_of_ascii_give_what_the_general_one_gives() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(string.printable + "    aaeiou", k=60))
        assert words(text) == _ANY.findall(text.lower()), repr(text)


def test_grams_are_those_of_each_text_alone() -> None:
    texts = [["a", "b", "c", "d"], [], ["a"], ["b", "c", "d"]]
    together = grams(texts, 3)
    assert [len(together.of(place)) for place in range(4)] == [2, 0, 1, 1]
    assert together.of(0)[1] == together.of(3)[0]
    for place, text in enumerate(texts):
        assert np.array_equal(together.of(place), grams([text], 3).hashes)
