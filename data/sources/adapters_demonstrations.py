"""Adapters whose rows hold one answer: demonstrations, evaluation items and bare prompts.

Every function takes a row's columns, returns the fields of a record, and raises RowError for a wrong shape.
"""

from __future__ import annotations

from posttrain.data.sources.reasoning import split_reasoning
from posttrain.data.sources.row_values import Payload, RowError, Values, checked_text, given, show
from posttrain.data.sources.turns import Messages, assistant, messages_in, prompt_messages, read_messages, user

ANSWER_MARK = "####"
"""What GSM8K writes before the bare result of a worked answer."""


def conversation(messages: Messages, where: str) -> Payload:
    """Split a conversation behind the last turn that asks; it must end with the assistant, who answers something.

    The completion is that round: calls of tools and their results with the answer.
    """
    last = messages[-1]
    if last["role"] != "assistant":
        raise RowError(f"{where}: ends with the {last['role']!r} turn {show(last['content'])}; end it with an answer")
    if not any(message["role"] == "user" for message in messages):
        raise RowError(f"{where}: no user turn before {show(last['content'])}; give one, or the text as column text")
    asked = max(place for place, message in enumerate(messages) if message["role"] not in ("assistant", "tool"))
    return {"prompt": messages[: asked + 1], "completion": messages[asked + 1 :]}


def messages_row(row: Values) -> Payload:
    """``messages``: a whole conversation; its last round is the completion."""
    return conversation(read_messages(row["messages"], "messages"), "messages")


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
    messages = messages_in(completion)
    if messages is not None:
        turns = read_messages(messages, "completion")
        if turns[-1]["role"] != "assistant":
            raise RowError(f"completion: ends with a {turns[-1]['role']!r} turn; end it with the assistant's")
    else:
        turns = [assistant(checked_text(completion, "completion"))]
    return {"prompt": prompt_messages(row["prompt"], "prompt"), "completion": turns}


def plain_text(row: Values) -> Payload:
    """``text``: a text without a prompt."""
    text = checked_text(row["text"], "text")
    return {"prompt": [], "completion": [{"role": "assistant", "content": text}]}


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
    said = checked_text(split_reasoning(answer)[1], "answer after its reasoning")
    item: Payload = {"prompt": [user(checked_text(row["question"], "question"))], "reference": said}
    if mark:
        item |= {"reference": checked_text(result.strip(), f"answer after {mark}"), "scorer": "number", "ideal": answer}
    return item


def evaluation(row: Values) -> Payload:
    """``prompt, reference`` and maybe ``scorer``, ``ideal`` and ``group``."""
    item: Payload = {
        "prompt": prompt_messages(row["prompt"], "prompt"),
        "reference": checked_text(row["reference"], "reference"),
    }
    for name in ("scorer", "ideal", "group"):
        if given(row, name) is not None:
            item[name] = checked_text(row[name], name)
    return item


def bare_prompt(row: Values) -> Payload:
    """``prompt`` and maybe ``reference``: something to answer."""
    payload: Payload = {"prompt": prompt_messages(row["prompt"], "prompt")}
    if given(row, "reference") is not None:
        payload["reference"] = checked_text(row["reference"], "reference")
    return payload
