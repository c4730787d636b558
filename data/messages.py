"""The turns of a conversation: how records check them, how Parquet stores them, and the form that chat templates take.

The names are those of the OpenAI chat format, which chat templates read; reasoning stands beside the answer, as the
templates and servers of reasoning models have it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "developer", "user", "assistant", "tool"]
Json = dict[str, Any]
"""A JSON object."""


class ToolCall(BaseModel):
    """A tool that an assistant's turn calls."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1)]
    arguments: Json
    id: str | None = None
    """What the tool's result refers to, where the data says."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Role
    content: str
    """Empty where that says something: an assistant that only calls tools, a response of nothing, no output."""
    reasoning_content: str | None = None
    """What an assistant thought before it answered."""
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    """The tools that an assistant calls, at once."""
    tool_call_id: str | None = None
    """Of a tool's result: the id of the call."""
    name: str | None = None
    """Of a tool's result: the tool."""

    @model_validator(mode="after")
    def _is_its_roles(self) -> Message:
        if not self.content and self.role == "user":
            raise ValueError("empty content; write a text or remove the turn")
        for name, role in (("reasoning_content", "assistant"), ("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) is not None and self.role != role:
                raise ValueError(f"{name} in a turn by {self.role!r}; only {role!r} turns have it")
        return self


@dataclass(frozen=True)
class Conversation:
    """What a chat template is given: plain messages, the tools on offer, and further arguments."""

    messages: list[Json]
    tools: list[Json] = field(default_factory=list)
    template_arguments: Json = field(default_factory=dict)

    def followed_by(self, *messages: Json) -> Conversation:
        """Return the conversation with further messages."""
        return Conversation([*self.messages, *messages], self.tools, self.template_arguments)

    def without_last(self) -> Conversation:
        """Return the conversation up to its last message."""
        return Conversation(self.messages[:-1], self.tools, self.template_arguments)

    def to_json(self) -> str:
        """Return the conversation as text, which `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Return the conversation that `to_json` wrote."""
        return cls(**json.loads(text))


def message_dict(message: Message) -> Json:
    """Return a message as the plain dictionary that chat templates take; what it does not say is left out."""
    plain: Json = {"role": message.role, "content": message.content}
    for name in ("reasoning_content", "tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [_call_dict(call) for call in message.tool_calls]
    return plain


def message_dicts(messages: Sequence[Message]) -> list[Json]:
    """Return messages as `message_dict` does."""
    return [message_dict(message) for message in messages]


def _call_dict(call: ToolCall) -> Json:
    own = {} if call.id is None else {"id": call.id}
    return {**own, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


MESSAGE_TYPE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("tool_calls", pa.list_(pa.struct([("name", pa.string()), ("arguments", pa.string()), ("id", pa.string())]))),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
    ]
)
"""How Parquet stores a message; the arguments of a call, of any structure, are JSON text."""


def stored_message(message: Message) -> Json:
    """Return a message as a value of `MESSAGE_TYPE`."""
    stored = message.model_dump()
    for call in stored["tool_calls"] or []:
        call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return stored


def read_message(stored: Json) -> Message:
    """Return the message of what `stored_message` made, which is not checked again."""
    calls = stored["tool_calls"]
    if calls is not None:
        calls = [ToolCall.model_construct(**call | {"arguments": json.loads(call["arguments"])}) for call in calls]
    return Message.model_construct(**stored | {"tool_calls": calls})
