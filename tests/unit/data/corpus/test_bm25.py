"""BM25 against its formula written out, and passages that lose nothing of their documents."""

from __future__ import annotations

import math

import pytest

from posttrain.data.corpus.bm25 import Bm25
from posttrain.data.corpus.cutting import passages_in

PASSAGES = ["Ana has a dog, a big dog.", "Tom has a cat.", "Nobody knows Tom.", "猫が好き"]
LENGTHS = [7, 4, 3, 4]


def weight(tf: int, length: int, with_word: int, k1: float, b: float) -> float:
    idf = math.log(1 + (4 - with_word + 0.5) / (with_word + 0.5))
    return idf * tf / (tf + k1 * (1 - b + b * length / (sum(LENGTHS) / 4)))


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (2.0, 0.0)])
def test_scores_are_those_of_the_formula(k1: float, b: float) -> None:
    dog, has = weight(2, 7, 1, k1, b), [weight(1, 7, 2, k1, b), weight(1, 4, 2, k1, b)]
    found = Bm25(PASSAGES, k1, b).search("Who HAS a dog? dog!", 4)
    a = [weight(2, 7, 2, k1, b), weight(1, 4, 2, k1, b)]
    assert [one.passage for one in found] == [0, 1]
    assert [one.score for one in found] == pytest.approx([2 * dog + has[0] + a[0], has[1] + a[1]])


def test_the_earlier_of_passages_that_score_alike_comes_first() -> None:
    alike = Bm25(["x y", "same words", "same words", "same words"], 1.2, 0.75)
    assert [one.passage for one in alike.search("words", 2)] == [1, 2]


def test_what_shares_no_word_is_not_found() -> None:
    assert Bm25(PASSAGES, 1.2, 0.75).search("zebra", 3) == []
    assert [one.passage for one in Bm25(PASSAGES, 1.2, 0.75).search("猫", 3)] == [3]


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("one two three\n\nfour five\n\nsix seven eight nine", ["one two three four five", "six seven eight nine"]),
        ("One two. Three four! Five six seven?", ["One two. Three four!", "Five six seven?"]),
        ("a b c d e f g", ["a b c d e", "f g"]),
        ("\n\n  \n", []),
    ],
)
def test_a_document_is_cut_at_paragraphs_then_sentences_then_words(text: str, passages: list[str]) -> None:
    assert list(passages_in(text, 5)) == passages


def test_nothing_of_a_document_is_lost() -> None:
    text = (
        "It costs 3.50 here… “Yes!” he said.\n\nAnd so on, and so forth, without an end to it; 東京は日本の首都です。"
    )
    for words in (1, 2, 3, 5, 8, 100):
        assert "".join("".join(passages_in(text, words)).split()) == "".join(text.split())
