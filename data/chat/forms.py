"""The form in which a template takes what templates do not agree on: reasoning, calls, and the developer's role."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from posttrain.data.chat.templates import ChatTemplate
from posttrain.data.messages import Conversation, Json
from posttrain.stage.errors import UsageError

Reasoning = Literal["reasoning_content", "thinking", "content"]
_REASONING: tuple[Reasoning, ...] = ("reasoning_content", "thinking", "content")
_QUESTION = {"role": "user", "content": "zqquestion"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqdescription",
        "parameters": {"type": "object", "properties": {"zqkey": {"type": "string"}}, "required": ["zqkey"]},
    },
}


@dataclass(frozen=True)
class Forms:
    """How messages are written for one template."""

    reasoning: Reasoning = "reasoning_content"
    """The key of a message that the template reads, or its content with the reasoning between ``<think>`` tags."""
    arguments_as_text: bool = False
    """Whether a call's arguments are JSON text rather than an object."""
    no_content_is_null: bool = False
    """Whether a message that only calls tools has null as its content rather than an empty text."""
    developer_is_system: bool = False
    """Whether the developer's messages are written as the system's, since the template knows no such role."""

    def write(self, conversation: Conversation) -> Conversation:
        """Return a conversation as the template takes it."""
        ids = itertools.count(1)
        return replace(conversation, messages=[self._message(message, ids) for message in conversation.messages])

    def _message(self, message: Json, ids: itertools.count[int]) -> Json:
        made = dict(message)
        if self.developer_is_system and made["role"] == "developer":
            made["role"] = "system"
        reasoning = made.pop("reasoning_content", None)
        if reasoning is not None:
            if self.reasoning == "content":
                made["content"] = f"<think>\n{reasoning}\n</think>\n\n{made['content']}"
            else:
                made[self.reasoning] = reasoning
        if made.get("tool_calls"):
            made["tool_calls"] = [self._call(call, ids) for call in made["tool_calls"]]
            if self.no_content_is_null and not made["content"]:
                made["content"] = None
        return made

    def _call(self, call: Json, ids: itertools.count[int]) -> Json:
        function = dict(call["function"])
        if self.arguments_as_text:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        return {"id": f"call{next(ids):05}", **call, "function": function}


@functools.lru_cache(maxsize=64)
def forms_of(template: ChatTemplate) -> Forms:
    """Return the first form, of those in use, in which a template writes all that it is given.

    Where no form keeps a thing, the form that templates mostly take stays.
    """
    forms = Forms()
    thought = {"role": "assistant", "content": "zqanswer", "reasoning_content": "zqreasoning"}
    for key in _REASONING:
        tried = replace(forms, reasoning=key)
        if _keeps(template, tried, [_QUESTION, thought], "zqreasoning", "zqanswer"):
            forms = tried
            break
    call = {"id": "zqid00001", "type": "function", "function": {"name": "zqtool", "arguments": {"zqkey": "zqvalue"}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    for as_text, is_null in itertools.product((False, True), (False, True)):
        tried = replace(forms, arguments_as_text=as_text, no_content_is_null=is_null)
        if _keeps(template, tried, [_QUESTION, called], "zqtool", '"zqkey"', "zqvalue", tools=[_TOOL]):
            forms = tried
            break
    developer = {"role": "developer", "content": "zqinstruction"}
    if not _keeps(template, forms, [developer, _QUESTION], "zqinstruction"):
        tried = replace(forms, developer_is_system=True)
        if _keeps(template, tried, [developer, _QUESTION], "zqinstruction"):
            forms = tried
    return forms


def _keeps(
    template: ChatTemplate, forms: Forms, messages: list[Json], *wanted: str, tools: list[Any] | None = None
) -> bool:
    try:
        text, _ = template.fill(forms.write(Conversation(messages, tools or [])))
    except UsageError:
        return False
    # The definition of a tool names it too, so a call counts where its value stands.
    return all(part in text for part in wanted)
