"""What a chat template does with each thing that a conversation may hold, found by trying."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.forms import forms_of
from posttrain.data.chat.rendering import LostTextError, render, render_prompt
from posttrain.data.chat.templates import template_of
from posttrain.data.messages import Conversation, Json
from posttrain.stage.errors import UsageError

_QUESTION: Json = {"role": "user", "content": "How warm is it?"}
_ANSWER: Json = {"role": "assistant", "content": "It is mild."}
_TOOL: Json = {
    "type": "function",
    "function": {
        "name": "read_thermometer",
        "description": "Reads a thermometer.",
        "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
    },
}


def _call(number: int, room: str) -> Json:
    return {
        "id": f"warmth{number:03}",
        "type": "function",
        "function": {"name": "read_thermometer", "arguments": {"room": room}},
    }


def _result(number: int, content: str) -> Json:
    return {"role": "tool", "name": "read_thermometer", "tool_call_id": f"warmth{number:03}", "content": content}


_CALLED: Json = {"role": "assistant", "content": "", "tool_calls": [_call(1, "kitchen")]}
_BOTH: Json = {"role": "assistant", "content": "", "tool_calls": [_call(1, "kitchen"), _call(2, "attic")]}
_THOUGHT: Json = {**_ANSWER, "reasoning_content": "Few degrees have changed."}
_NEXT: Json = {"role": "user", "content": "And tomorrow?"}
_THINGS: dict[str, list[Json]] = {
    "system": [{"role": "system", "content": "Be brief."}, _QUESTION, _ANSWER],
    "later system": [_QUESTION, _ANSWER, {"role": "system", "content": "Be brief."}, _NEXT, _ANSWER],
    "developer": [{"role": "developer", "content": "Be brief."}, _QUESTION, _ANSWER],
    "reasoning": [_QUESTION, _THOUGHT],
    "earlier reasoning": [_QUESTION, _THOUGHT, _NEXT, _ANSWER],
    "tool call": [_QUESTION, _CALLED],
    "parallel calls": [_QUESTION, _BOTH],
    "tool result": [_QUESTION, _CALLED, _result(1, "20 degrees"), _ANSWER],
}
_WITH_TOOLS = ("tool call", "parallel calls", "tool result")


def probe(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return, for each thing, whether the template ``writes`` it, ``leaves it out`` or ``refuses`` it, and why.

    Also which form of reasoning it reads, and what its generation prompt opens.
    """
    found = {thing: _tried(tokenizer, messages) for thing, messages in _THINGS.items()}
    found["tools"] = _tried(tokenizer, [_QUESTION, _ANSWER], [_TOOL])
    if found["tools"] == "writes":
        found |= {thing: _tried(tokenizer, _THINGS[thing], [_TOOL]) for thing in _WITH_TOOLS}
    forms = forms_of(template_of(tokenizer))
    if found["reasoning"] == "writes":
        found["reasoning"] = "writes" if forms.reasoning != "content" else "writes, within the content"
    if found["developer"] == "writes" and forms.developer_is_system:
        found["developer"] = "writes, as system"
    prompt = render_prompt(tokenizer, Conversation([_QUESTION]))
    found["generation prompt"] = repr(prompt.rpartition(_QUESTION["content"])[2][-60:])
    return found


def _tried(tokenizer: PreTrainedTokenizerBase, messages: list[Json], tools: list[Json] | None = None) -> str:
    try:
        render(tokenizer, Conversation(messages, tools or []))
    except LostTextError:
        return "leaves out"
    except UsageError as error:
        return f"refuses: {str(error).partition('refuses the conversation: ')[2] or error}"
    return "writes"
