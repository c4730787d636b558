"""Adapters whose rows hold one answer and a label: desirable or not. Comparisons become two such rows each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from posttrain.data.sources.adapters_demonstrations import messages_row, prompt_completion
from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values, given, show
from posttrain.data.sources.turns import is_absent, messages_in

LABEL = "label"
"""Column that says whether an answer is desirable."""
EMPTY = "empty_response"
"""Why a row drops whose answer says nothing."""
_WORDS = {"true": True, "false": False, "1": True, "0": False}
"""Labels as CSV writes them."""


def unpaired(row: Values) -> Payload | Drop:
    """``prompt, completion, label``: texts, or lists of messages; ``ended`` says whether the completion was cut."""
    return Drop(EMPTY) if _says_nothing(row["completion"]) else _labelled(prompt_completion(row), row)


def unpaired_messages(row: Values) -> Payload | Drop:
    """``messages, label``: the last turn, the assistant's, is what the label judges."""
    return Drop(EMPTY) if _says_nothing(row["messages"]) else _labelled(messages_row(row), row)


def both_sides(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield each comparison twice, labelled for the side that is to be made of it; ids say which."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        own = given(row.values, "id")
        if isinstance(own, float) and own.is_integer():
            own = int(own)
        for desirable, side in ((True, "desirable"), (False, "undesirable")):
            named = {} if own is None else {"id": f"{own}/{side}" if isinstance(own, int | str) else own}
            yield dataclasses.replace(row, values={**row.values, **named, LABEL: desirable})


def one_side(group: Payload, row: Values) -> Payload:
    """Return the best response of a cleaned comparison as desirable, or the worst as undesirable, by the row's label.

    Of several the first best and the last worst, as DPO's ``best_worst`` takes them.
    """
    ranks = group["ranks"]
    if row[LABEL]:
        place = ranks.index(min(ranks))
    else:
        place = len(ranks) - 1 - ranks[::-1].index(max(ranks))
    kept = {name: value for name, value in group.items() if name not in ("responses", "ranks", "ended")}
    ended = {"ended": group["ended"][place]} if "ended" in group else {}
    return {**kept, **ended, "completion": [group["responses"][place]], LABEL: bool(row[LABEL])}


def _says_nothing(value: Any) -> bool:
    """Return whether a text, or the last message of a list, is blank: a model may have said nothing."""
    messages = messages_in(value)
    if messages is None:
        return isinstance(value, str) and not value.strip()
    last = messages[-1] if messages else None
    return isinstance(last, dict) and all(map(is_absent, map(last.get, ("content", "tool_calls", "function_call"))))


def _labelled(payload: Payload, row: Values) -> Payload:
    label = _as_label(row[LABEL])
    if label is None:
        raise RowError(f"{LABEL} {show(row[LABEL])}: must be true (desirable) or false; mend it")
    *before, answer = payload["completion"]
    prompt = [*payload["prompt"], *before]
    if not prompt:
        raise RowError("prompt: nothing before the assistant's turn; give the prompt")
    made: Payload = {**payload, "prompt": prompt, "completion": [answer], LABEL: label}
    if row.get("ended") is not None:
        if not isinstance(row["ended"], bool):
            raise RowError(f"ended {show(row['ended'])}: must be true or false")
        made["ended"] = row["ended"]
    return made


def _as_label(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _WORDS.get(value.strip().casefold())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
