"""Turns of conversations out of the forms that files have them in, as the fields of `posttrain.data.messages.Message`.

A turn has ``role`` and ``content``, and where they say something ``reasoning_content``, ``tool_calls``,
``tool_call_id`` and ``name``. Nothing that a file says of a turn is left out in silence: what has no place is refused.
"""

from __future__ import annotations

import json
import math
from typing import Any, get_args

from posttrain.data.messages import Role
from posttrain.data.rows.identity import nfc
from posttrain.data.sources.calls import read_call, read_calls
from posttrain.data.sources.reasoning import split_reasoning
from posttrain.data.sources.row_values import RowError, any_text, checked_text, json_list, show

Turn = dict[str, Any]
Messages = list[Turn]

ROLES = get_args(Role)
LEADING = ("system", "developer")
"""Roles of turns that stand before a conversation and set what it is to be."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names by which files call what an assistant thought before it answered."""
_KEYS = frozenset({"name", "tool_call_id", "tool_calls", "function_call", "train", "weight", *REASONING})
_SPEAKING = ("content", "tool_calls", "function_call")


def user(content: str) -> Turn:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Turn:
    """Return an assistant's turn; reasoning at the beginning of its text stands apart."""
    thought, answer = split_reasoning(content)
    return {"role": "assistant", "content": answer, **({"reasoning_content": thought} if thought else {})}


def read_messages(value: Any, where: str, may_end_silent: bool = False) -> Messages:
    """Return the turns of a list of messages, or of its JSON text.

    ``may_end_silent`` allows a last turn of the assistant that says nothing. Raises RowError for every other shape.
    """
    messages = json_list(value)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{where} {show(value)}: must be a non-empty list of messages with role and content")
    last = len(messages) - 1
    return [
        read_message(message, f"{where}[{index}]", may_end_silent and index == last)
        for index, message in enumerate(messages)
    ]


def read_message(value: Any, where: str, may_be_silent: bool = False) -> Turn:
    """Return one turn of a message in the form of the OpenAI interface, old forms of it included."""
    if not isinstance(value, dict) or "role" not in value or not any(key in value for key in _SPEAKING):
        raise RowError(f"{where} {show(value)}: must be an object with role and content")
    said = {key: item for key, item in value.items() if key not in ("role", "content") and not is_absent(item)}
    role = "tool" if value["role"] == "function" else value["role"]
    if role not in ROLES:
        raise RowError(f"{where}.role {show(role)}: must be one of {', '.join(ROLES)}; rename it")
    for key in sorted(said.keys() - _KEYS):
        raise RowError(f"{where}.{key} {show(said[key])}: a message has no such key; remove it")
    check_trained(said, role, where)
    text, thoughts = _content(value.get("content"), f"{where}.content")
    turn: Turn = {"role": role, "content": text}
    if role == "assistant":
        turn = assistant(text)
        thoughts.append(turn.pop("reasoning_content", ""))
        turn |= _calls(said, where)
    elif "tool_calls" in said or "function_call" in said:
        raise RowError(f"{where}: a call in a turn by {role!r}; only 'assistant' turns call tools")
    thoughts += [any_text(said[name], f"{where}.{name}") for name in REASONING if name in said]
    if thought := one_text(thoughts, f"{where}: reasoning"):
        turn["reasoning_content"] = thought
    turn |= _of_result(said, role, where)
    return spoken(turn, where, may_be_silent)


def spoken(turn: Turn, where: str, may_be_silent: bool = False, text_key: str = "content") -> Turn:
    """Return a turn that says something, or need not. Raises RowError for a user or an assistant who says nothing.

    ``text_key`` is what the file calls the text.
    """
    if turn["role"] == "user" or (turn["role"] == "assistant" and not turn.get("tool_calls") and not may_be_silent):
        checked_text(turn["content"], f"{where}.{text_key}")
    elif not turn["content"].strip():
        turn["content"] = ""
    return turn


def check_trained(said: Turn, role: str, where: str) -> None:
    """Raise RowError where ``train`` or ``weight`` asks for what training does not do with a turn of this role."""
    for name in ("train", "weight"):
        if name not in said:
            continue
        value = said[name]
        if not isinstance(value, (bool, int, float)):
            raise RowError(f"{where}.{name} {show(value)}: must be true or false, 1 or 0; mend it")
        if role == "assistant" and value != 1:
            raise RowError(
                f"{where}.{name} {show(value)}: turns have no weights of their own; remove the key "
                "(loss_on=completion trains the last turn alone), or end the conversation with the turn to train"
            )
        if role != "assistant" and value:
            raise RowError(f"{where}.{name} {show(value)}: a turn by {role!r} is not trained; remove the key")


def one_text(texts: list[str], what: str) -> str:
    """Return the one text that is said, maybe several times; an empty one where none is. Raises RowError for two."""
    kinds = {text.strip(): text for text in texts if text.strip()}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise RowError(f"{what} stands twice and differs, {show(one)} and {show(other)}; keep one")
    return next(iter(kinds.values()), "")


def is_absent(value: Any) -> bool:
    """Return whether a value says nothing: null, NaN, a blank text, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {} or (isinstance(value, float) and math.isnan(value))


def _content(value: Any, where: str) -> tuple[str, list[str]]:
    """Return the text of a content and what of it is marked as reasoning.

    Parts of text stand on lines of their own, as servers join them for templates that take one text.
    """
    if not isinstance(value, list):
        return ("" if is_absent(value) and not isinstance(value, str) else any_text(value, where)), []
    texts, thoughts = [], []
    for index, part in enumerate(value):
        place = f"{where}[{index}]"
        if isinstance(part, str):
            texts.append(any_text(part, place))
            continue
        if not isinstance(part, dict):
            raise RowError(f"{place} {show(part)}: must be a text, or an object with type and text")
        kind = part.get("type") or "text"
        filled = sorted(key for key, item in part.items() if key not in ("type", "index") and not is_absent(item))
        if kind in ("thinking", "reasoning") and filled in ([kind], ["text"]):
            inner, _ = _content(part[filled[0]], f"{place}.{filled[0]}")
            thoughts.append(inner)
        elif kind in ("text", "input_text", "output_text") and filled in (["text"], []):
            texts.append(any_text(part.get("text", ""), f"{place}.text"))
        else:
            raise RowError(f"{place} of type {show(kind)}: only text can be trained on; remove the part or the row")
    return "\n".join(texts), ["\n".join(thoughts)]


def _calls(said: Turn, where: str) -> Turn:
    if "tool_calls" in said and "function_call" in said:
        raise RowError(f"{where}: holds tool_calls and function_call; keep one")
    if "tool_calls" in said:
        return {"tool_calls": read_calls(said["tool_calls"], f"{where}.tool_calls")}
    if "function_call" in said:
        return {"tool_calls": [read_call(said["function_call"], f"{where}.function_call")]}
    return {}


def _of_result(said: Turn, role: str, where: str) -> Turn:
    """Return what a tool's result says of its call."""
    found: Turn = {name: any_text(said[name], f"{where}.{name}") for name in ("tool_call_id", "name") if name in said}
    for name, value in found.items():
        if role != "tool":
            raise RowError(f"{where}.{name} {show(value)}: only 'tool' turns have it; remove it")
    return found


def prompt_messages(value: Any, where: str) -> Messages:
    """Return a prompt: a text becomes one user turn, a list of messages stays, also as JSON text."""
    messages = messages_in(value)
    return read_messages(messages, where) if messages is not None else [user(checked_text(value, where))]


def messages_in(value: Any) -> list[Any] | None:
    """Return the list of messages that a value is, maybe as JSON text, or None where it is another text."""
    if isinstance(value, list):
        return value
    found = json_list(value)
    is_messages = isinstance(found, list) and found and all(_looks_like_message(item) for item in found)
    return found if is_messages else None


def _looks_like_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and any(key in value for key in _SPEAKING)


def response(value: Any, where: str) -> Turn:
    """Return one response of several: a text, a message, or a list of one message; it may say nothing."""
    if isinstance(value, list) and len(value) == 1:
        value, where = value[0], f"{where}[0]"
    if not isinstance(value, dict):
        return assistant(any_text(value, where))
    turn = read_message(value, where, may_be_silent=True)
    if turn["role"] != "assistant":
        raise RowError(f"{where} is a turn by {turn['role']!r}; a response must be the assistant's")
    return turn


def says(turn: Turn) -> tuple[str, str, str]:
    """Return what a turn says, such that equal turns are one: NFC, without surrounding space and the ids of calls."""
    further = {name: value for name, value in turn.items() if name not in ("role", "content") and value}
    if "tool_calls" in further:
        further["tool_calls"] = [[call["name"], call["arguments"]] for call in further["tool_calls"]]
    rest = json.dumps(further, ensure_ascii=False, sort_keys=True) if further else ""
    return turn["role"], nfc(turn["content"]).strip(), nfc(rest)


def is_silent(turn: Turn) -> bool:
    """Return whether a turn neither answers nor calls a tool."""
    return not turn["content"].strip() and not turn.get("tool_calls")
