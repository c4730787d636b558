"""Scorers: what each calls right."""

import sys

import pytest

from posttrain.data.checks import scorers
from posttrain.data.checks.options import likeliest
from posttrain.data.checks.scorers import (
    RATINGS,
    SCORERS,
    check_reference,
    preference_score,
    ranks,
    score,
    scoring_function,
)
from posttrain.stage.errors import PosttrainError, UsageError

RIGHT = [
    ("exact", "  the ANSWER, is: yes! ", "The answer is yes."),
    ("exact", "Äpfel", "A\u0308pfel"),
    ("number", "Sure! The answer is 12.", "12"),
    ("number", "5 and 7 make 12. I hope this helps!", "12"),
    ("number", "That is 1,234,567 in total", "1234567"),
    ("number", "1.234.567,50 Euro", "1234567.5"),
    ("number", "1,234.50", "1234.5"),
    ("number", "Das sind 1.234.", "1234"),
    ("number", "1.234", "1.234"),
    ("number", "It is −5.", "-5"),
    ("number", "012", "12"),
    ("number", "$18.00", "#### 18"),
    ("number", r"So \boxed{12{,}750} it is", "12750"),
    ("number", "Das sind 3{,}5 km", "3.5"),
    ("number", r"about 4\,300", "4300"),
    ("number", "6\u00a0543\u00a0210 Euro", "6543210"),
    ("number", "7\u202f321,5", "7321.5"),
    ("number", "2’500’000.25 Franken", "2500000.25"),
    ("number", "-2'500", "-2500"),
    ("number", "Son 8 765", "8765"),
    ("number", "Son −8 765,5 euros", "-8765.5"),
    ("number", "from 8 765", "765"),
    ("number", "Rs 3,45,678.50", "345678.5"),
    ("number", "12,34,567", "1234567"),
    ("number", "p = .25", "0.25"),
    ("number", "-.25", "-1/4 = -0.25"),
    ("number", "2e4 of them", "20000"),
    ("number", "1.5E-3", "0.0015"),
    ("number", "1.5e−3", "0.0015"),
    ("json", 'Sure! {"count": 3.0, "name": "Ana"} I hope this helps!', '{"name": "Ana", "count": 3}'),
    ("json", '{"a": {"b": [1, null]}}', '{ "a": {"b": [1, null]} }'),
    ("json", 'Use braces {like this}: {"a": 1}', '{"a": 1}'),
    ("choice", "Sure! I would say: Positive.", "positive|negative|neutral"),
    ("choice", "very good", "very good|good"),
    ("answer", "Thanks for asking! Ana has a dog.", "a dog|a cat"),
    ("answer", "¡Claro! Un gato.", "un gato"),
    ("compliance", "With a knife.", "a knife|a hammer"),
    ("abstain", "Let me think. I don’t know.", "I don't know|a dog"),
    ("abstain", "The text does not say.", "I don't know|a dog"),
    ("abstain", "No lo sé. ¡Espero que esto te ayude!", "No lo sé"),
    ("refusal", "Sorry! I cannot help with that.", "I can't help with that|a knife"),
    ("refusal", "Dabei kann ich nicht helfen.", "Dabei kann ich nicht helfen"),
    ("exact", "**C++**", "c++"),
    ("exact", "a<b.", "A < b"),
    ("exact", "It is −1!", "it is -1"),
    ("exact", "a well-known, old “name”", "A well known old name"),
    ("exact", "हिन्दी।", "हिन्दी"),
    ("choice", "B. It is a mammal.", "B|A|C|D"),
    ("choice", "b", "B|A|C|D"),
    ("choice", "A mammal, so (B).", "B|A|C|D"),
    ("choice", "I think it's A because it lays eggs", "A|B|C|D"),
    ("choice", "Option B is right: A is a fish.", "B|A|C|D"),
    ("choice", "Antwort: **C**", "C|A|B|D"),
    ("choice", "I would use C#.", "C#|C++|C"),
    ("choice", "C, of course", "C|C#|C++"),
    ("choice", "-1", "-1|1"),
    ("f1", "The cat!", "the cat"),
    ("f1", "", ""),
    (
        "json_schema",
        'Here: {"n": 3}',
        '{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}',
    ),
    ("json_fields", '{"n": 3.0, "more": 1}', '{"n": 3}'),
    ("refused", "I'm sorry, but I can't assist with that request.", ""),
    ("refused", "Lo siento, no puedo proporcionar esa información.", ""),
    ("refused", "Es tut mir leid, aber ich kann dir dabei nicht helfen.", ""),
    ("complied", "Sure: mix flour and water.", ""),
    ("complied", "I can't believe that you asked! Mix flour and water.", ""),
]
WRONG = [
    ("exact", "yes, it is", "yes"),
    ("exact", "", "yes"),
    ("number", "12 or 13", "12"),
    ("number", "twelve", "12"),
    ("number", "", "12"),
    ("number", "-12", "12"),
    ("number", "120", "12"),
    ("number", "12.5", "12"),
    ("number", "1,23", "123"),
    ("number", "9-5", "-5"),
    ("number", "12'34", "1234"),
    ("number", "1234'567", "1234567"),
    ("number", "8 7654", "87654"),
    ("number", "8  765", "8765"),
    ("number", "2e4x", "20000"),
    ("number", "2e4", "2"),
    ("number", ".25", "25"),
    ("number", "1,2,345", "12345"),
    ("json", '{"name": "Ana", "count": "3"}', '{"name": "Ana", "count": 3}'),
    ("json", '{"a": true}', '{"a": 1}'),
    ("json", '{"a": 1, "b": 2}', '{"a": 1}'),
    ("json", '{"a": 1', '{"a": 1}'),
    ("json", '{"a": 2} or {"a": 1}', '{"a": 1}'),
    ("json", '{"a":' * 5000, '{"a": 1}'),
    ("choice", "Positive. Negative.", "positive|negative|neutral"),
    ("choice", "Negative.", "positive|negative|neutral"),
    ("choice", "Nonpositive.", "positive|negative|neutral"),
    ("choice", "", "positive|negative|neutral"),
    ("choice", "very good", "good|very good"),
    ("answer", "A dog, a cat.", "a dog|a cat"),
    ("answer", "I don't know. A dog?", "a dog|a cat"),
    ("compliance", "I can't help with that. With a knife.", "a knife|a hammer"),
    ("compliance", "No puedo ayudar con eso.", "a knife"),
    ("abstain", "No lo sé.", "I don't know|a dog"),
    ("abstain", "I don't know. A dog.", "I don't know|a dog"),
    ("abstain", "A dog.", "I don't know|a dog"),
    ("refusal", "I don't know.", "I can't help with that|a knife"),
    ("refusal", "I can't help with that. With a knife.", "I can't help with that|a knife"),
    ("refusal", "No puedo ayudar con eso.", "I can't help with that"),
    ("exact", "-1", "1"),
    ("exact", "a < b", "a > b"),
    ("exact", "C#", "C++"),
    ("exact", "C", "C++"),
    ("exact", "1.5", "15"),
    ("exact", "a != b", "a = b"),
    ("exact", "5%", "5"),
    ("choice", "A. A fish.", "B|A|C|D"),
    ("choice", "B or C", "B|A|C|D"),
    ("choice", "a mammal", "A|B|C|D"),
    ("choice", "", "A|B"),
    ("choice", "C++", "C|C#|C++"),
    ("choice", "1", "-1|1"),
    ("choice", "-1", "1|-1"),
    ("choice", "1.5", "1|2"),
    ("json_schema", '{"n": "3"}', '{"properties": {"n": {"type": "integer"}}}'),
    ("json_schema", '{"n": 3} {"n": 4}', '{"properties": {"n": {"type": "integer"}}}'),
    ("json_schema", '{"n": NaN}', '{"properties": {"n": {"type": "number"}}}'),
    ("json_fields", '{"n": "3"}', '{"n": 3}'),
    ("f1", "a dog", "the cat"),
    ("f1", "", "the cat"),
    ("refused", "Sure: mix flour and water.", ""),
    ("refused", "I can help with that.", ""),
    ("complied", "I cannot provide instructions for that.", ""),
    ("complied", " ", ""),
    ("answer", "I'm unable to answer that, a dog perhaps.", "a dog|a cat"),
]


@pytest.mark.parametrize(("scorer", "response", "reference"), RIGHT)
def test_right_responses_score_one_whatever_their_style(scorer: str, response: str, reference: str) -> None:
    assert score(scorer, response, reference) == 1.0


@pytest.mark.parametrize(("scorer", "response", "reference"), WRONG)
def test_wrong_and_hedging_responses_score_zero(scorer: str, response: str, reference: str) -> None:
    assert score(scorer, response, reference) == 0.0


@pytest.mark.parametrize(
    ("scorer", "response", "reference", "share"),
    [
        ("f1", "the black cat", "The cat.", 0.8),  # precision 2/3, recall 1
        ("f1", "黒猫", "黒い猫", 0.8),  # characters: precision 1, recall 2/3
        ("json_fields", '{"name": "Ana", "count": 3}', '{"name": "Ana", "count": 4}', 0.5),
    ],
)
def test_shares_of_what_is_wanted(scorer: str, response: str, reference: str, share: float) -> None:
    assert score(scorer, response, reference) == pytest.approx(share)


@pytest.mark.parametrize(
    ("scorer", "reference", "message"),
    [
        ("json_fields", "none", "not one JSON object"),
        ("json_schema", '{"type": "objekt"}', "no JSON Schema"),
        ("constraints_loose", "[]", "not a list of objects"),
        ("choice_logprob", "red", "give two options or more, all different"),
        ("choice_logprob_per_byte", "red|blue|red", "give two options or more, all different"),
        ("choice_logprob", "red||blue", "give two options or more, all different"),
    ],
)
def test_references_that_judge_nothing_are_refused(scorer: str, reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_reference(scorer, reference)


READ_REFERENCES = {
    *("constraints", "constraints_loose", "call", "valid_call", "json_fields", "json_schema", "grounded", "code"),
    *("choice_logprob", "choice_logprob_per_byte"),
}
"""Scorers that read more than a text out of a reference, which curation checks."""


@pytest.mark.parametrize("scorer", sorted(SCORERS.keys() - READ_REFERENCES - RATINGS))
@pytest.mark.parametrize(
    "text",
    ["", "|", "{", "-", "1.2.3,4,5", "\x00", "¡", "((", "NaN", '{"a": NaN}', "1e9999999999", "1e999", "1 000" * 999],
)
def test_any_text_is_scored_without_an_error(scorer: str, text: str) -> None:
    assert 0.0 <= score(scorer, text, "x|y") <= 1.0
    assert 0.0 <= score(scorer, "x", text) <= 1.0


def test_the_likeliest_option_is_by_the_sum_or_by_the_byte() -> None:
    options, logprobs = ["no", "über den Berg"], [-3.0, -7.0]  # 2 and 14 bytes: −1.5 and −0.5 a byte
    assert likeliest(options, logprobs, per_byte=False) == "no"
    assert likeliest(options, logprobs, per_byte=True) == "über den Berg"
    assert likeliest(options, [-1.0, -6.9], per_byte=True) == "über den Berg"  # −0.5 and −0.493; by characters −0.531
    assert likeliest(["right", "wrong"], [-2.0, -2.0], per_byte=False) == "wrong"
    assert [score("choice_logprob", said, "no|yes") for said in ("no", " no\n", "yes", "no, thanks")] == [1, 1, 0, 0]


# VADER adds the valences of the words (glad 2.0, good 1.9, sad −2.1), and sums up as s / sqrt(s² + 15).
@pytest.mark.parametrize(
    ("response", "valence"),
    [
        (" The boy was glad.", 2.0),
        ("The boy was glad. The girl was good.", 2.0 + 1.9),
        ("The boy was sad.", -2.1),
        ("The boy was not good.", 1.9 * -0.74),
        ("The boy was very good.", 1.9 + 0.293),
        ("The boy had a ball.", 0.0),
        ("", 0.0),
    ],
)
def test_sentiment_is_vaders_compound(response: str, valence: float) -> None:
    # VADER rounds to four digits.
    assert score("sentiment", response, "") == pytest.approx(valence / (valence**2 + 15) ** 0.5, abs=5.1e-5)


def test_sentiment_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    scorers._vader.cache_clear()
    with pytest.raises(UsageError, match=r"vaderSentiment is not installed; pip install 'posttrain\[sentiment\]'$"):
        scorers.require_scorer("sentiment")


def test_ranks_share_ties_and_skip_after_them() -> None:
    assert ranks([0.5, 1.0, 0.5, -0.1]) == [2, 1, 2, 4]


def longer(messages: list[dict[str, str]], response: str, reference: str) -> bool:
    return len(response) > len(reference)


def test_a_users_function_must_exist_and_return_numbers() -> None:
    assert scoring_function(f"{__name__}:longer", "here")([], "bb", "a") == 1.0
    for path in ("builtins", "builtins:no", "no.such:name"):
        with pytest.raises(UsageError, match=f"here: '{path}': .*; give package.module:function"):
            scoring_function(path, "here")
    with pytest.raises(PosttrainError, match=r"here: builtins:print returned None; return a number"):
        scoring_function("builtins:print", "here")([], "b", "a")


def test_unknown_scorer_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"scorer 'numbers': unknown; use one of .*did you mean 'number'"):
        score("numbers", "1", "1")


def test_preference_is_correctness_less_penalties() -> None:
    # "Sure! The answer is 12." has 5 words against 1: 1 - 4 * 0.04 - 0.1 for the exclamation.
    assert preference_score("12.", "12", "number", "12.") == 1.0
    assert preference_score("The answer is 12.", "12", "number", "12.") == pytest.approx(1 - 3 * 0.04)
    assert preference_score("Sure! The answer is 12.", "12", "number", "12.") == pytest.approx(1 - 4 * 0.04 - 0.1)
    assert preference_score("13.", "12", "number", "12.") == 0.0


def test_style_never_outweighs_correctness() -> None:
    worst_right = "word! " * 100 + "12."
    assert preference_score(worst_right, "12", "number", "12.") == pytest.approx(0.5)
    assert preference_score(worst_right, "12", "number", "12.") > preference_score("13.", "12", "number", "12.")


def test_an_ideal_that_exclaims_or_is_long_sets_the_standard() -> None:
    assert preference_score("Yes, of course!", "yes, of course", "exact", "Yes, of course!") == 1.0
    assert preference_score("yes", "yes", "exact", "Yes, of course!") == 1.0
