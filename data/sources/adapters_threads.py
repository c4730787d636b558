"""Threads of questions and answers with scores, as forums have them.

The best answer is the accepted one or else that of the highest score. Answers are compared by their scores alone, since
whom an asker accepts is one voice; it only decides between equal scores.
"""

from __future__ import annotations

from typing import Any

from posttrain.data.sources.adapters_scored import as_number
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values, checked_text, json_list, show
from posttrain.data.sources.turns import assistant, prompt_messages

SCORES = ("score", "pm_score", "votes")
"""Names of an answer's score."""
TEXTS = ("text", "body", "answer")
ACCEPTED = ("accepted", "selected", "is_accepted")


def demonstration(row: Values) -> Payload | Drop:
    """Return the question with its best answer; where none was accepted or voted for, there is nothing to learn."""
    answers = _answers(row)
    if not answers:
        return Drop("no_answer")
    accepted, score, text = max(answers, key=lambda answer: (answer[0], answer[1]))
    if not accepted and score <= 0:
        return Drop("no_good_answer")
    return {"prompt": prompt_messages(row["question"], "question"), "completion": [assistant(text)]}


def comparison(row: Values) -> Payload | Drop:
    """Return the answers by their scores."""
    answers = _answers(row)
    if len(answers) < 2:
        return Drop("fewer_than_two_answers")
    order = [(score, accepted) for accepted, score, _ in answers]
    ranks = [1 + sum(other > own for other in set(order)) for own in order]
    responses = [assistant(text) for _, _, text in answers]
    return {"prompt": prompt_messages(row["question"], "question"), "responses": responses, "ranks": ranks}


def has_answers(row: Values) -> bool:
    """Return whether ``answers`` holds objects."""
    items = json_list(row["answers"])
    return isinstance(items, list) and all(isinstance(item, dict) for item in items)


def _answers(row: Values) -> list[tuple[bool, float, str]]:
    """Return of every answer whether it was accepted, its score and its text."""
    items = json_list(row["answers"])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RowError(f"answers {show(items)}: must be a list of objects with a text and a score")
    return [_answer(item, f"answers[{place}]") for place, item in enumerate(items)]


def _answer(item: dict[str, Any], where: str) -> tuple[bool, float, str]:
    text = next((item[name] for name in TEXTS if name in item), None)
    score = next((number for name in SCORES if (number := as_number(item.get(name))) is not None), None)
    if score is None:
        raise RowError(f"{where} {show(item)}: no number as one of {', '.join(SCORES)}; give each answer its score")
    accepted = any(item.get(name) is True for name in ACCEPTED)
    return accepted, score, checked_text(text, f"{where}.{TEXTS[0]}")
