"""What may become of a record on its way to token ids, and what every kind of record shares there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from posttrain.data.chat.given import message_parts
from posttrain.data.chat.rendering import LostTextError
from posttrain.data.chat.thinking import Thinking
from posttrain.data.messages import Message, message_dicts
from posttrain.data.records import Record
from posttrain.stage.errors import UsageError

Overlong = Literal["drop", "truncate", "error"]
OnControlTokens = Literal["drop", "error"]
OnLostText = Literal["drop", "error"]


@dataclasses.dataclass(frozen=True)
class Policies:
    """What happens to rows that do not fit, and what of them is rendered."""

    max_length: int
    overlong: Overlong
    on_control_tokens: OnControlTokens
    on_lost_text: OnLostText
    thinking: Thinking


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one record: a row of the tokens artifact, or the reason why there is none."""

    row: dict[str, Any] | None = None
    reason: str = ""
    lengths: tuple[int, ...] = ()
    """Tokens of each kept sequence: of the conversation, or of the prompt with each response."""
    words: int = 0
    """Words separated by white space in the same sequences."""
    truncated: int = 0
    """Sequences that were cut."""
    responses_dropped: int = 0
    """Responses missing from a kept comparison."""
    reasoning_dropped: int = 0
    """Messages that were rendered without their reasoning."""
    turns_untrained: int = 0
    """Turns that were to be trained and stand behind another text than the one they would be generated from."""


Made = TypeVar("Made")


def or_reason(record: Record, control: re.Pattern[str], policies: Policies, make: Callable[[], Made]) -> Made | Outcome:
    """Return what ``make`` makes of a record, or why there is none. Raises UsageError, naming the row."""
    with naming(record):
        if holds_control_token(record, control, policies.on_control_tokens):
            return Outcome(reason="control_token")
        try:
            return make()
        except LostTextError:
            if policies.on_lost_text == "error":
                raise
            return Outcome(reason="lost_text")


def holds_control_token(record: Record, control: re.Pattern[str], on_control_tokens: OnControlTokens) -> bool:
    """Return whether a record's text holds a special token, which would be read as a turn's beginning or end.

    Raises UsageError where that is an error.
    """
    match = next(filter(None, map(control.search, _texts(record))), None)
    if match is not None and on_control_tokens == "error":
        raise UsageError(
            f"its text holds {match[0]!r}, a special token of the tokenizer; remove it there, or set "
            "on_control_tokens=drop"
        )
    return match is not None


def _texts(record: Record) -> Iterator[str]:
    for name in ("prompt", "completion", "responses"):
        for message in message_dicts(getattr(record, name, [])):
            yield from (text for _, text in message_parts(message))
    if record.tools:
        yield json.dumps(record.tools, ensure_ascii=False)


def count_words(messages: Sequence[Message]) -> int:
    """Return the words of messages and of their reasoning, separated by white space."""
    return sum(len(f"{message.reasoning_content or ''} {message.content}".split()) for message in messages)


def provenance(record: Record) -> dict[str, str]:
    """Return the columns that every row of a tokens artifact has."""
    return {"id": record.id, "source": record.source, "language": record.language, "task": record.task}


def overlong_error(record: Record, length: int, max_length: int) -> UsageError:
    """Return what to raise for a row that is too long."""
    return UsageError(
        f"row {record.id} of {record.source}: {length} tokens, but max_length={max_length}; raise max_length, "
        "or set overlong=drop or truncate"
    )


@contextlib.contextmanager
def naming(record: Record) -> Iterator[None]:
    """Put the row's name in front of a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"row {record.id} of {record.source}: {error}") from None
