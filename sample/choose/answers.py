"""The answer within a response, as a key: responses that say the same in other words get the same key, and so one vote.

An extractor returns None where a response holds no answer, or more than one; such a response does not vote.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.data.checks.documents import json_objects
from posttrain.data.checks.numbers import last_number, written
from posttrain.data.checks.refusals import abstains, refuses
from posttrain.data.checks.wording import named_labels, normalise

Extractor = Callable[[str], str | None]

ABSTAINED, REFUSED = "<abstained>", "<refused>"
"""Keys of responses that give no answer and say so, in whatever language and wording."""

_LEAD = re.compile(
    r"^(?:(?:sure|certainly|of course|well|okay|ok) )*"
    r"(?:(?:i think|i believe|i would say|i'd say) (?:that )?)?"
    r"(?:(?:it|that|this) is |(?:it|that)'s "
    r"|(?:(?:the|my) )?(?:(?:correct|right|final) )?answer (?:is )?"
    r"|(?:es|das|dies) ist |(?:die |meine )?(?:richtige )?antwort (?:ist |lautet )?"
    r"|(?:la |mi )?respuesta (?:correcta )?(?:es )?|es (?!ist )"
    r"|c'est |(?:la |ma )?réponse (?:est )?|(?:la |mia )?risposta (?:è )?|è |(?:a |minha )?resposta (?:é )?|é )?"
    r"(?=.)"
)
"""Words that lead to an answer, normalised, in English, German, Spanish, French, Italian and Portuguese."""


def number_answer(text: str) -> str | None:
    """Return the last number of a text.

    ``1,234`` may be 1234 or a fraction, ``1 234`` one number or two; taken by itself it counts as the largest of them.
    """
    readings = last_number(text)
    if not readings:
        return None
    return written(max(readings, key=abs))


def choice_answer(text: str, choices: Sequence[str]) -> str | None:
    """Return the one choice that a text names as whole words, normalised."""
    named = named_labels(text, choices)
    return named.pop() if len(named) == 1 else None


def json_answer(text: str, fields: Sequence[str] | None = None) -> str | None:
    """Return the one JSON object of a text with its keys in order, or only the given fields of it.

    None also where a field is missing.
    """
    found = json_objects(text)
    if len(found) != 1 or not isinstance(found[0], dict):
        return None
    value = found[0]
    if fields is not None:
        if not value.keys() >= set(fields):
            return None
        value = {field: value[field] for field in fields}
    return json.dumps(_with_whole_numbers(value), sort_keys=True, ensure_ascii=False)


def _with_whole_numbers(value: Any) -> Any:
    """Return a JSON value with 3.0 written as 3: JSON has one kind of number."""
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def text_answer(text: str) -> str | None:
    """Return a text without case, punctuation, spacing and what merely leads to an answer: "It is Paris." is "Paris".

    All abstentions are one answer, and so are all refusals.
    """
    return _key(text, _LEAD.sub("", normalise(text)))


def worded_answer(text: str) -> str | None:
    """Return a text without case, punctuation and spacing, as `exact` compares it; abstentions as above."""
    return _key(text, normalise(text))


def _key(text: str, words: str) -> str | None:
    if abstains(text):
        return ABSTAINED
    return REFUSED if refuses(text) else words or None


def majority(answers: Sequence[str | None]) -> tuple[int, int]:
    """Return the index of the first sample that gives the most frequent answer, and that answer's votes.

    Of answers that tie, the one that came first wins; without any answer it is the first sample, with no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0, 0
    (winner, count), *_ = votes.most_common(1)
    return answers.index(winner), count


def extractor(scorer: str, choices: Sequence[str] = ()) -> Extractor:
    """Return the extractor of the answers that a scorer of `posttrain.data.checks.scorers` judges.

    ``choices`` are the labels that a ``choice`` prompt offers.
    """
    if scorer == "choice":
        return lambda text: choice_answer(text, choices)
    readers: dict[str, Extractor] = {"number": number_answer, "json": json_answer, "exact": worded_answer}
    return readers.get(scorer, text_answer)
