"""The texts of a record, by what they are in it, and a record with its texts rewritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from posttrain.data.messages import Message, ToolCall
from posttrain.data.records import Comparison, Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Texts:
    """What a record says, in plain text."""

    prompt: str
    """All turns before the answer."""
    answers: tuple[str, ...]
    """The completion, or the responses from the best to the worst; none of a bare prompt."""

    def whole(self) -> str:
        """Return all of it as one text."""
        return "\n".join([self.prompt, *self.answers])


def texts_of(record: Record) -> Texts:
    """Return the texts of a record, reasoning and arguments of calls included."""
    prompt = _said(getattr(record, "prompt", []))
    if isinstance(record, Comparison):
        ranked = sorted(zip(record.ranks, (_said([turn]) for turn in record.responses), strict=True))
        return Texts(prompt, tuple(text for _, text in ranked))
    completion: list[Message] = getattr(record, "completion", [])
    return Texts(prompt, (_said(completion),) if completion else ())


def turns_of(record: Record) -> list[Message]:
    """Return all turns of a record, those of every response included."""
    return [turn for name in _TURNS for turn in getattr(record, name, [])]


_TURNS = ("prompt", "completion", "responses")
_TEXTS = ("reference", "ideal")


def rewritten(record: R, rewrite: Callable[[str], str]) -> R:
    """Return a copy of a record with every text that a person wrote in it rewritten, in the order of reading."""
    changed: dict[str, Any] = {
        name: [_turn(turn, rewrite) for turn in getattr(record, name)] for name in _TURNS if hasattr(record, name)
    }
    changed |= {name: rewrite(text) for name in _TEXTS if (text := getattr(record, name, None)) is not None}
    changed["tools"] = values_rewritten(record.tools, rewrite)
    return record.model_copy(update=changed)


def values_rewritten(value: Any, rewrite: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it rewritten, keys excepted."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, dict):
        return {key: values_rewritten(item, rewrite) for key, item in value.items()}
    return [values_rewritten(item, rewrite) for item in value] if isinstance(value, list) else value


def _turn(turn: Message, rewrite: Callable[[str], str]) -> Message:
    changed: dict[str, Any] = {"content": rewrite(turn.content)}
    if turn.reasoning_content is not None:
        changed["reasoning_content"] = rewrite(turn.reasoning_content)
    if turn.tool_calls:
        changed["tool_calls"] = [_call(call, rewrite) for call in turn.tool_calls]
    return turn.model_copy(update=changed)


def _call(call: ToolCall, rewrite: Callable[[str], str]) -> ToolCall:
    return call.model_copy(update={"arguments": values_rewritten(call.arguments, rewrite)})


def _said(turns: Sequence[Message]) -> str:
    return "\n".join(text for turn in turns for text in _texts(turn))


def _texts(turn: Message) -> list[str]:
    calls = [f"{call.name} {' '.join(_leaves(call.arguments))}" for call in turn.tool_calls or []]
    return [text for text in (turn.reasoning_content, turn.content, *calls) if text]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _leaves(item)]
    if isinstance(value, list):
        return [text for item in value for text in _leaves(item)]
    return [str(value)]
