"""Adapters whose rows hold several answers to one prompt. Each maps columns to the fields of a comparison.

An empty response passes: a model may have said nothing. Curation takes it out of its group and counts it.
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.sources.row_values import (
    Drop,
    Payload,
    RowError,
    Values,
    any_text,
    checked_text,
    given,
    json_list,
    show,
)
from posttrain.data.sources.turns import (
    LEADING,
    Messages,
    assistant,
    messages_in,
    prompt_messages,
    read_messages,
    response,
    says,
    user,
)

_TURN = re.compile(r"\n\n(Human|Assistant):")


def preference(row: Values) -> Payload | Drop:
    """``chosen, rejected`` and maybe ``prompt``: texts, answers as message lists, or whole conversations.

    Whole conversations that hold the prompt stay as they are, and those that go on from it get it in front.
    """
    prompt = prompt_messages(row["prompt"], "prompt") if given(row, "prompt") is not None else []
    chosen, rejected = (_with_prompt(row[name], name, prompt) for name in ("chosen", "rejected"))
    return pair(chosen, rejected)


def _with_prompt(value: Any, where: str, prompt: Messages) -> Messages:
    found = [value] if isinstance(value, dict) else messages_in(value)
    if found is None:
        if not prompt:
            raise RowError(f"{where} {show(value)}: a text without a column prompt; give the prompt")
        return [*prompt, assistant(any_text(value, where))]
    messages = read_messages(found, where, may_end_silent=True)
    # What does not end with an answer is refused later, by the name of its true fault.
    return _joined(prompt, messages, where) if messages[-1]["role"] == "assistant" else messages


def _joined(prompt: Messages, messages: Messages, where: str) -> Messages:
    """Return a conversation with all turns of the prompt before its last turn, each once.

    Raises RowError where it neither holds the prompt nor goes on from it: one of the two must be wrong.
    """
    asked, said = ([says(turn) for turn in turns] for turns in (prompt, messages))
    count, answered = len(asked), len(said) - 1
    if any(said[at : at + count] == asked for at in range(answered - count + 1)):
        return messages
    shared = next((size for size in range(min(count, answered), 0, -1) if asked[-size:] == said[:size]), 0)
    if shared:
        return [*prompt[:-shared], *messages]
    opening = next((turn for turn in asked if turn[0] not in LEADING), asked[0])
    role = said[0][0]
    if role in LEADING or said[0] == opening or role == asked[-1][0] == "user":
        raise RowError(
            f"{where} {show(messages[0]['content'])}: neither holds the prompt nor goes on from its last turn "
            f"{show(prompt[-1]['content'])}; mend one of them, or remove the column prompt"
        )
    return [*prompt, *messages]


def pair(chosen: Messages, rejected: Messages) -> Payload | Drop:
    """Return the comparison of two conversations that differ in their last turn, the assistant's."""
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RowError(f"{name} {show(messages[-1]['content'])}: must be an assistant's turn after a prompt")
    if chosen[:-1] != rejected[:-1]:
        return Drop("prompts_differ")
    return {"prompt": chosen[:-1], "responses": [chosen[-1], rejected[-1]], "ranks": [1, 2]}


def rejected_scored_higher(row: Values) -> bool:
    """Return whether a row's own scores, where it has both as numbers, say the contrary of chosen and rejected."""
    try:
        return float(row["score_chosen"]) < float(row["score_rejected"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def hh(row: Values) -> Payload | Drop:
    r"""``chosen, rejected``: transcripts ``\n\nHuman: … \n\nAssistant: …`` that share all but the last turn.

    Transcripts whose turns do not alternate, or whose prompts differ, are dropped and counted: the format has no way
    to quote its own markers, so real files hold some.
    """
    chosen, rejected = (_transcript(any_text(row[name], name), name) for name in ("chosen", "rejected"))
    for messages in (chosen, rejected):
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            return Drop("turns_do_not_alternate")
        if any(not message["content"] for message in messages[:-1]):
            return Drop("empty_turn")
    return pair(chosen, rejected)


def _transcript(text: str, where: str) -> Messages:
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise RowError(f"{where} {show(text)}: must begin with '\\n\\nHuman:'; choose another adapter")
    speakers = {"Human": user, "Assistant": assistant}
    return [speakers[name](content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]


def best_of(row: Values) -> Payload:
    """``prompt, chosen, rejected``: lists of right and of wrong texts, as RewardBench 2 has them; the former tie."""
    prompt = prompt_messages(row["prompt"], "prompt")
    sides = {name: json_list(row[name]) for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if not isinstance(side, list) or not side:
            raise RowError(f"{name} {show(side)}: must be a list of at least one text")
    right, wrong = ([response(item, f"{name}[{n}]") for n, item in enumerate(side)] for name, side in sides.items())
    return {"prompt": prompt, "responses": [*right, *wrong], "ranks": [1] * len(right) + [2] * len(wrong)}


def has_several(row: Values) -> bool:
    """Return whether both sides are lists of texts, rather than conversations."""
    sides = [json_list(row[name]) for name in ("chosen", "rejected")]
    return all(isinstance(side, list) and side and all(isinstance(one, str) for one in side) for side in sides)


def ranked(row: Values) -> Payload:
    """``prompt, responses, ranks``: K texts or messages and their ranks; 1 is best, equal ranks are ties.

    A column ``ended`` says of each response whether it came to its end; one that was cut is not trained to end there.
    """
    payload: Payload = {
        "prompt": prompt_messages(row["prompt"], "prompt"),
        "responses": _responses(row["responses"], "responses"),
        "ranks": _ranks(row["ranks"], "ranks"),
    }
    if given(row, "ended") is not None:
        payload["ended"] = _verdicts(row["ended"], "ended")
    return payload


def oasst_ranked(row: Values) -> Payload:
    """``messages, ranked``: K answers, best first; a column ``ranks`` counts from 0, ``lang`` is the language."""
    responses = _responses(row["ranked"], "ranked")
    ranks = _ranks(row["ranks"], "ranks") if given(row, "ranks") is not None else list(range(len(responses)))
    if ranks != sorted(ranks):
        raise RowError(f"ranks {show(ranks)}: must not fall, since ranked is best first; sort the row")
    payload: Payload = {
        "prompt": read_messages(row["messages"], "messages"),
        "responses": responses,
        "ranks": [rank + 1 for rank in ranks],
    }
    if given(row, "lang") is not None:
        payload["language"] = checked_text(row["lang"], "lang")
    return payload


def verdicts(row: Values) -> Payload:
    """``prompt, outputs``: each output has a ``response`` and ``follow_list``, one verdict per instruction.

    Outputs that follow equally many instructions tie; those that follow the most get rank 1.
    """
    outputs = json_list(row["outputs"])
    if not isinstance(outputs, list):
        raise RowError(f"outputs {show(outputs)}: must be a list of objects with response and follow_list")
    responses, followed = [], []
    for index, output in enumerate(outputs):
        where = f"outputs[{index}]"
        if not isinstance(output, dict) or not {"response", "follow_list"} <= output.keys():
            raise RowError(f"{where} {show(output)}: must be an object with response and follow_list")
        said = output["response"]
        responses.append(response("" if said is None else said, f"{where}.response"))
        followed.append(sum(_verdicts(output["follow_list"], f"{where}.follow_list")))
    payload: Payload = {
        "prompt": prompt_messages(row["prompt"], "prompt"),
        "responses": responses,
        "ranks": [1 + sum(other > count for other in set(followed)) for count in followed],
    }
    if given(row, "lang") is not None:
        payload["language"] = checked_text(row["lang"], "lang")
    return payload


def _responses(value: Any, where: str) -> Messages:
    items = json_list(value)
    if not isinstance(items, list) or len(items) < 2:
        raise RowError(f"{where} {show(value)}: must be a list of at least two texts")
    return [response(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _ranks(value: Any, where: str) -> list[int]:
    items = json_list(value)
    if not isinstance(items, list) or not all(type(item) is int for item in items):
        raise RowError(f"{where} {show(value)}: must be a list of whole numbers, one per response")
    return items


def _verdicts(value: Any, where: str) -> list[bool]:
    items = json_list(value)
    if not isinstance(items, list) or not all(type(item) is bool for item in items):
        raise RowError(f"{where} {show(value)}: must be a list of true and false")
    return items
