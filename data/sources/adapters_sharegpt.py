"""ShareGPT conversations: turns with ``from`` and ``value``, calls and results of tools included."""

from __future__ import annotations

from typing import Any

from posttrain.data.sources.adapters_demonstrations import conversation
from posttrain.data.sources.calls import read_call, read_calls
from posttrain.data.sources.row_values import Payload, RowError, Values, any_text, json_list, json_value, show
from posttrain.data.sources.turns import (
    REASONING,
    Turn,
    assistant,
    check_trained,
    is_absent,
    one_text,
    read_message,
    spoken,
)

SPEAKERS = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""Speakers of ShareGPT conversations and the roles they play."""
_CALLING = ("function_call", "tool_call")
_KEYS = frozenset({"from", "value", "train", "weight", *REASONING})


def sharegpt(row: Values) -> Payload:
    """``conversations``: turns ``{"from": "human"|"gpt"|"system"|…, "value": …}``, or messages with role and content.

    The value of a turn by ``function_call`` is the JSON of a call or of a list of calls.
    """
    turns = json_list(row["conversations"])
    if not isinstance(turns, list) or not turns:
        raise RowError(f"conversations {show(turns)}: must be a non-empty list of turns with from and value")
    messages = [_turn(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    return conversation(messages, "conversations")


def _turn(value: Any, where: str) -> Turn:
    if isinstance(value, dict) and "from" not in value and "role" in value:
        return read_message(value, where)
    if not isinstance(value, dict) or "from" not in value or "value" not in value:
        raise RowError(f"{where} {show(value)}: must be an object with from and value")
    speaker = value["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise RowError(f"{where}.from {show(speaker)}: must be one of {', '.join(SPEAKERS)}; rename it")
    said = {key: item for key, item in value.items() if not is_absent(item)}
    for key in sorted(said.keys() - _KEYS):
        raise RowError(f"{where}.{key} {show(said[key])}: a turn has no such key; remove it")
    role = SPEAKERS[speaker]
    check_trained(said, role, where)
    text = any_text(value["value"], f"{where}.value")
    thoughts = [any_text(said[name], f"{where}.{name}") for name in REASONING if name in said]
    turn: Turn = {"role": role, "content": text}
    if role == "assistant":
        turn = assistant(text)
        thoughts.append(turn.pop("reasoning_content", ""))
    if speaker in _CALLING:
        turn |= {"content": "", "tool_calls": _calls(turn["content"], f"{where}.value")}
    if thought := one_text(thoughts, f"{where}: reasoning"):
        turn["reasoning_content"] = thought
    return spoken(turn, where, text_key="value")


def _calls(text: str, where: str) -> list[dict[str, Any]]:
    value = json_value(text, where)
    return read_calls(value, where) if isinstance(value, list) else [read_call(value, where)]
