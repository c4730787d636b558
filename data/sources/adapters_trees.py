"""OASST message trees: one message per row, which `units` turns into one row per answer or per ranked group.

The accounting counts these units, not the messages, since a question is not a row of its own but the prompt of its
answers. For demonstrations (and prompts) a unit is an assistant's message; for comparisons it is a message with at
least two answers that nobody deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values, any_text, checked_text, given, show
from posttrain.data.sources.turns import Messages, assistant

ROLES = {"prompter": "user", "assistant": "assistant"}


def answers(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield one row ``path`` per assistant's message: the messages from the root to it."""
    good, bad, parents = _by_id(rows)
    yield from bad
    for row in good:
        if row.values["role"] == "assistant":
            yield Row(row.position, {**_facts(row.values), "path": _path(row.values, parents)})


def ranked_groups(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield one row ``path, replies`` per message with at least two undeleted answers."""
    good, bad, parents = _by_id(rows)
    yield from bad
    replies: dict[str, list[Values]] = defaultdict(list)
    for row in good:
        if row.values["role"] == "assistant" and row.values["parent_id"] and not row.values.get("deleted"):
            replies[row.values["parent_id"]].append(row.values)
    for row in good:
        group = replies[row.values["message_id"]]
        if len(group) > 1:
            yield Row(row.position, {**_facts(row.values), "path": _path(row.values, parents), "replies": group})


def demonstration(row: Values) -> Payload | Drop:
    """Return the demonstration of an `answers` row."""
    path = row["path"]
    if path[0].get("parent_id") is not None:
        return Drop("no_root")
    if any(message.get("deleted") for message in path):
        return Drop("deleted")
    if path[-1].get("review_result") is False:
        return Drop("failed_review")
    messages = _messages(path)
    if len(messages) < 2:
        return Drop("no_question")
    return {"prompt": messages[:-1], "completion": messages[-1:], **_language(row)}


def comparison(row: Values) -> Payload | Drop:
    """Return the comparison of a `ranked_groups` row: its ranked answers, the ranks counted from 1."""
    path = row["path"]
    if path[0].get("parent_id") is not None:
        return Drop("no_root")
    if any(message.get("deleted") for message in path):
        return Drop("deleted")
    group = [reply for reply in row["replies"] if reply.get("rank") is not None]
    if len(group) < 2:
        return Drop("fewer_than_two_ranked")
    return {
        "prompt": _messages(path),
        "responses": [assistant(any_text(reply["text"], "text")) for reply in group],
        "ranks": [_rank(reply["rank"]) for reply in group],
        **_language(row),
    }


def _by_id(rows: Iterable[Row | BadRow]) -> tuple[list[Row], list[BadRow], dict[str, Values]]:
    good: list[Row] = []
    bad: list[BadRow] = []
    parents: dict[str, Values] = {}
    for row in rows:
        fault = row.reason if isinstance(row, BadRow) else _fault(row.values, parents)
        if isinstance(row, BadRow):
            bad.append(row)
        elif fault:
            bad.append(BadRow(row.position, fault, dict(row.values)))
        else:
            good.append(row)
            parents[row.values["message_id"]] = row.values
    return good, bad, parents


def _fault(values: Values, seen: dict[str, Values]) -> str:
    for name in ("message_id", "parent_id", "role", "text"):
        if name not in values:
            return f"no column {name!r}; a message needs message_id, parent_id, role and text"
    for name in ("message_id", "parent_id"):
        if not isinstance(values[name], str) and not (name == "parent_id" and values[name] is None):
            return f"{name} {show(values[name])}: must be a text, not {type(values[name]).__name__}; convert it"
    if not isinstance(values["role"], str) or values["role"] not in ROLES:
        return f"role {show(values['role'])}: must be one of {', '.join(ROLES)}; rename it"
    if values["message_id"] in seen:
        return f"message_id {show(values['message_id'])}: already used by an earlier message; ids must differ"
    return ""


def _path(values: Values, parents: dict[str, Values]) -> list[Values]:
    """Return the messages from the root to this one; where the way up breaks off or circles, the first has a parent."""
    path = [values]
    while path[0]["parent_id"] in parents and len(path) < len(parents):
        path.insert(0, parents[path[0]["parent_id"]])
    return path


def _messages(path: list[Values]) -> Messages:
    return [{"role": ROLES[m["role"]], "content": checked_text(m["text"], "text")} for m in path]


def _facts(values: Values) -> dict[str, Any]:
    return {"id": values["message_id"], "lang": values.get("lang")}


def _language(row: Values) -> Payload:
    return {"language": checked_text(row["lang"], "lang")} if given(row, "lang") is not None else {}


def _rank(value: Any) -> int:
    if type(value) is not int:
        raise RowError(f"rank {show(value)}: must be a whole number from 0; mend it")
    return value + 1
