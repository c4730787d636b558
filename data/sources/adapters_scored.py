"""Responses with scores, of which the ranks are made: the higher score is the better rank, equal scores tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from posttrain.data.sources.row_values import Payload, RowError, Values, given, json_list, show
from posttrain.data.sources.turns import Messages, prompt_messages, response

SCORES = ("score", "overall_score", "rating")
"""Names of a response's score, that which counts first in front; without one, the mean of its annotations counts."""
ASKED = ("prompt", "instruction")
TEXTS = ("response", "completion", "text", "content")
ANNOTATIONS = "annotations"
READ = frozenset({*SCORES, *TEXTS, ANNOTATIONS})


def scored_lists(row: Values) -> Payload:
    """``prompt, responses, scores``: K texts or messages, and a number for each."""
    items, scores = json_list(row["responses"]), json_list(row["scores"])
    responses = _several(items, "responses")
    if not isinstance(scores, list) or len(scores) != len(responses):
        raise RowError(f"scores {show(scores)}: must be a list of {len(responses)} numbers, one per response")
    numbers = [as_number(score) for score in scores]
    for index, number in enumerate(numbers):
        if number is None:
            raise RowError(f"scores[{index}] {show(scores[index])}: must be a number; mend it or remove the response")
    prompt = prompt_messages(row["prompt"], "prompt")
    return {"prompt": prompt, "responses": responses, "ranks": _ranks([number or 0.0 for number in numbers])}


def scored_objects(row: Values) -> Payload:
    """``completions`` and ``instruction`` or ``prompt``: objects with a text and a score, as UltraFeedback has them.

    All responses of a row are told apart by the same score: the first of `SCORES` that all have, or else the mean of
    the ratings in ``annotations``.
    """
    asked = [name for name in ASKED if given(row, name) is not None]
    if len(asked) != 1:
        raise RowError(f"columns {', '.join(asked) or 'neither prompt nor instruction'}: give exactly one of the two")
    items = json_list(row["completions"])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RowError(f"completions {show(items)}: must be a list of objects with a response and a score")
    responses = _several([_text(item, f"completions[{index}]") for index, item in enumerate(items)], "completions")
    prompt = prompt_messages(row[asked[0]], asked[0])
    return {"prompt": prompt, "responses": responses, "ranks": _ranks(_scores(items))}


def has_objects(row: Values) -> bool:
    """Return whether a row's ``completions`` are objects, which answer a column."""
    items = json_list(row["completions"])
    return isinstance(items, list) and any(isinstance(item, dict) for item in items) and any(map(row.get, ASKED))


def unread_keys(row: Values) -> dict[str, Any]:
    """Return what the objects of ``completions`` hold unread, as ``completions[].name`` with all values."""
    items = json_list(row.get("completions"))
    found: dict[str, Any] = {}
    for item in items if isinstance(items, list) else []:
        for key, value in item.items() if isinstance(item, dict) else ():
            if key not in READ:
                found.setdefault(f"completions[].{key}", []).append(value)
    return found


def _several(items: Any, where: str) -> Messages:
    if not isinstance(items, list) or len(items) < 2:
        raise RowError(f"{where} {show(items)}: must be a list of at least two responses")
    return [response(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _text(item: Values, where: str) -> Any:
    name = next((name for name in TEXTS if name in item), None)
    if name is None:
        raise RowError(f"{where} {show(item)}: must hold its text as one of {', '.join(TEXTS)}")
    return "" if item[name] is None else item[name]


def _scores(items: Sequence[Values]) -> list[float]:
    for name in SCORES:
        numbers = [as_number(item.get(name)) for item in items]
        if None not in numbers:
            return [number for number in numbers if number is not None]
    means = [_mean_rating(item.get(ANNOTATIONS)) for item in items]
    for index, mean in enumerate(means):
        if mean is None:
            raise RowError(
                f"completions[{index}] {show(items[index])}: no score that all completions of the row have; "
                f"give each a number as one of {', '.join(SCORES)}, or ratings in {ANNOTATIONS}"
            )
    return [mean for mean in means if mean is not None]


def _mean_rating(annotations: Any) -> float | None:
    """Return the mean of ``{"honesty": {"Rating": "4", …}, …}``, those left out that are no numbers, such as N/A."""
    if not isinstance(annotations, dict):
        return None
    ratings = [item.get("Rating") if isinstance(item, dict) else item for item in annotations.values()]
    numbers = [number for rating in ratings if (number := as_number(rating)) is not None]
    return sum(numbers) / len(numbers) if numbers else None


def as_number(value: Any) -> float | None:
    """Return a number, also one written as text, or None for whatever is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _ranks(scores: Sequence[float]) -> list[int]:
    return [1 + sum(other > score for other in set(scores)) for score in scores]
