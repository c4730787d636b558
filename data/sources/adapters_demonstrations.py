"""Adapters whose rows hold one answer: demonstrations, evaluation items and bare prompts.

Every function takes a row's columns, returns the fields of a record, and raises RowError for a wrong shape.
"""

from __future__ import annotations

from posttrain.data.sources.row_values import (
    Messages,
    Payload,
    RowError,
    Values,
    assistant,
    checked_messages,
    checked_text,
    given,
    prompt_messages,
    show,
    user,
)

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
}
"""Speakers of ShareGPT conversations and the roles they play."""
ANSWER_MARK = "####"
"""What GSM8K writes before the bare result of a worked answer."""


def conversation(messages: Messages, where: str) -> Payload:
    """Split a conversation before its last message, which must be the assistant's and answer something."""
    last = messages[-1]
    if last["role"] != "assistant":
        raise RowError(f"{where}: ends with the {last['role']!r} turn {show(last['content'])}; end it with an answer")
    if not any(message["role"] == "user" for message in messages):
        raise RowError(f"{where}: no user turn before {show(last['content'])}; give one, or the text as column text")
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def messages_row(row: Values) -> Payload:
    """``messages``: a whole conversation; its last turn is the completion."""
    return conversation(checked_messages(row["messages"], "messages"), "messages")


def sharegpt(row: Values) -> Payload:
    """``conversations``: turns ``{"from": "human"|"gpt"|"system", "value": …}``."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"conversations {show(turns)}: must be a non-empty list of turns with from and value")
    messages = []
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise RowError(f"{where} {show(turn)}: must be an object with from and value")
        if not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT_ROLES:
            raise RowError(f"{where}.from {show(turn['from'])}: must be one of {', '.join(SHAREGPT_ROLES)}; rename it")
        content = checked_text(turn["value"], f"{where}.value")
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": content})
    return conversation(messages, "conversations")


def alpaca(row: Values) -> Payload:
    """``instruction, output`` and maybe ``input``, which follows the instruction after an empty line."""
    instruction = checked_text(row["instruction"], "instruction")
    context = given(row, "input")
    if context is not None:
        instruction = f"{instruction}\n\n{checked_text(context, 'input')}"
    return {"prompt": [user(instruction)], "completion": [assistant(checked_text(row["output"], "output"))]}


def prompt_completion(row: Values) -> Payload:
    """``prompt, completion``: texts, or lists of messages."""
    completion = row["completion"]
    if isinstance(completion, list):
        turns = checked_messages(completion, "completion")
        if turns[-1]["role"] != "assistant":
            raise RowError(f"completion: ends with a {turns[-1]['role']!r} turn; end it with the assistant's")
    else:
        turns = [assistant(checked_text(completion, "completion"))]
    return {"prompt": prompt_messages(row["prompt"], "prompt"), "completion": turns}


def plain_text(row: Values) -> Payload:
    """``text``: a text without a prompt."""
    return {"prompt": [], "completion": [assistant(checked_text(row["text"], "text"))]}


def question_answer(row: Values) -> Payload:
    """``question, answer``: one turn each."""
    return {
        "prompt": [user(checked_text(row["question"], "question"))],
        "completion": [assistant(checked_text(row["answer"], "answer"))],
    }


def question_item(row: Values) -> Payload:
    """``question, answer``: the reference is what follows ``####``, judged as a number, else the whole answer."""
    answer = checked_text(row["answer"], "answer")
    _, mark, result = answer.rpartition(ANSWER_MARK)
    item: Payload = {"prompt": [user(checked_text(row["question"], "question"))], "reference": answer}
    if mark:
        item |= {"reference": checked_text(result.strip(), f"answer after {mark}"), "scorer": "number", "ideal": answer}
    return item


def evaluation(row: Values) -> Payload:
    """``prompt, reference`` and maybe ``scorer`` and ``ideal``."""
    item: Payload = {
        "prompt": prompt_messages(row["prompt"], "prompt"),
        "reference": checked_text(row["reference"], "reference"),
    }
    for name in ("scorer", "ideal"):
        if given(row, name) is not None:
            item[name] = checked_text(row[name], name)
    return item


def bare_prompt(row: Values) -> Payload:
    """``prompt`` and maybe ``reference``: something to answer."""
    payload: Payload = {"prompt": prompt_messages(row["prompt"], "prompt")}
    if given(row, "reference") is not None:
        payload["reference"] = checked_text(row["reference"], "reference")
    return payload
