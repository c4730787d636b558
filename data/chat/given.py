"""Whether all that a conversation says stands in its rendering: templates leave out what they have no place for.

Two looks make one answer. The rendering itself is searched for every text in order, which finds what a template cuts
by its content, such as everything before ``</think>``. A skeleton of the conversation, in which every text is a word of
its own, is rendered too, since a short text may stand in a rendering by chance.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from posttrain.data.chat.forms import forms_of
from posttrain.data.chat.templates import ChatTemplate
from posttrain.data.messages import Conversation, Json

Part = tuple[str, str]
"""What a text is within its message, and the text."""
REASONING = "reasoning"
_ANYWHERE = ("system", "developer")
"""Roles whose text templates may move to the front."""


def lost_text(template: ChatTemplate, conversation: Conversation, text: str, add_generation_prompt: bool) -> str | None:
    """Return what of a conversation does not stand in its rendering ``text``, as a phrase; None when all of it does."""
    lost = _missing(conversation, text)
    if lost is None:
        skeleton = json.dumps(_skeleton(conversation), sort_keys=True)
        lost = _lost_of_skeleton(template, skeleton, add_generation_prompt)
    if lost is None:
        return None
    place, what = lost
    if place < 0:
        return f"the definition of tool {-place}: its {what}"
    message = conversation.messages[place]
    return f"message {place + 1}, by {message['role']!r}: its {what}"


@functools.lru_cache(maxsize=8192)
def _lost_of_skeleton(template: ChatTemplate, skeleton: str, add_generation_prompt: bool) -> tuple[int, str] | None:
    conversation = Conversation.from_json(skeleton)
    return _missing(conversation, template.fill(forms_of(template).write(conversation), add_generation_prompt)[0])


def _missing(conversation: Conversation, text: str) -> tuple[int, str] | None:
    """Return the place of a message, or the negative number of a tool, and what of it is lost."""
    for number, tool in enumerate(conversation.tools, start=1):
        for what, given in _tool_parts(tool):
            if _find(text, given, 0) is None:
                return -number, what
    reached = 0
    for place, message in enumerate(conversation.messages):
        moves = message["role"] in _ANYWHERE
        start = 0 if moves else reached
        ends = [start]
        for what, given in message_parts(message):
            end = _find(text, given, start)
            if end is None:
                behind = _find(text, given, reached) is not None
                return place, f"{REASONING}, which it writes behind the rest" if behind else what
            ends.append(end)
            if what == REASONING:
                start = end  # what is said comes after what was thought, or the model would learn to think too late
        reached = reached if moves else max(ends)
    return None


def _find(text: str, given: str, start: int) -> int | None:
    """Return the end of a text, as it is or as JSON writes it, from ``start`` on."""
    wanted = given.strip()
    escaped = (json.dumps(wanted, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    for form in dict.fromkeys((wanted, *escaped)):
        place = text.find(form, start)
        if place >= 0:
            return place + len(form)
    return None


def message_parts(message: Json) -> Iterator[Part]:
    """Yield every text of a message: reasoning, content, and the names and arguments of calls."""
    if message.get("reasoning_content"):
        yield REASONING, message["reasoning_content"]
    if message["content"]:
        yield "content", message["content"]
    for call in message.get("tool_calls", ()):
        yield "tool call", call["function"]["name"]
        yield from (("arguments of a tool call", leaf) for leaf in _leaves(call["function"]["arguments"]))


def _tool_parts(tool: Json) -> Iterator[Part]:
    function = tool.get("function", tool)
    for what in ("name", "description"):
        if isinstance(function.get(what), str):
            yield what, function[what]
    properties = (function.get("parameters") or {}).get("properties") or {}
    yield from (("parameters", name) for name in properties)


def _leaves(value: Any) -> Iterator[str]:
    """Yield the keys and values of a JSON value as JSON writes them, texts without their quotes."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    else:
        yield json.dumps(value)


def _skeleton(conversation: Conversation) -> Json:
    """Return a conversation of the same form whose texts are words that stand nowhere else."""
    messages = [_skeleton_message(message, place) for place, message in enumerate(conversation.messages)]
    tools = [_skeleton_tool(number) for number, _ in enumerate(conversation.tools)]
    return {"messages": messages, "tools": tools, "template_arguments": conversation.template_arguments}


def _skeleton_message(message: Json, place: int) -> Json:
    made: Json = {"role": message["role"], "content": f"zqcontent{place}q" if message["content"] else ""}
    if message.get("reasoning_content"):
        made["reasoning_content"] = f"zqreasoning{place}q"
    if message.get("tool_calls"):
        made["tool_calls"] = [
            {
                "id": f"zqid{place:02}{number:03}",
                "type": "function",
                "function": {"name": f"zqname{place}q{number}q", "arguments": {"zqkey": f"zqvalue{place}q{number}q"}},
            }
            for number, _ in enumerate(message["tool_calls"])
        ]
    if message["role"] == "tool":
        made |= {"tool_call_id": "zqid00000", "name": "zqtool"}
    return made


def _skeleton_tool(number: int) -> Json:
    parameter = {"type": "string", "description": "zqtext"}
    function = {
        "name": f"zqfunction{number}q",
        "description": f"zqdescription{number}q",
        "parameters": {"type": "object", "properties": {f"zqparameter{number}q": parameter}, "required": []},
    }
    return {"type": "function", "function": function}
