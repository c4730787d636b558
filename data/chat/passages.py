"""Passages in a conversation: put before what is asked, by number, and read back from there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.data.config.retrieve import INSTRUCTION
from posttrain.data.messages import Json

_GAP = re.compile(r"\n\s*\n")
_BEFORE_NUMBER = re.compile(r"\n\n(?=\[\d+\] )")


def one_paragraph(text: str) -> str:
    """Return a passage without its blank lines, which stand between passages."""
    return _GAP.sub("\n", text.strip())


def with_passages(messages: Sequence[Json], passages: Sequence[str], instruction: str = INSTRUCTION) -> list[Json]:
    """Return a conversation whose system message ends in the passages, by number; without any, in the instruction.

    They stand behind what the system says already, and the instruction, which may be empty, between the two.
    """
    first = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    numbered = [f"[{number}] {one_paragraph(passage)}" for number, passage in enumerate(passages, start=1)]
    parts = [*(str(message["content"]) for message in first), instruction, *numbered]
    content = "\n\n".join(part for part in parts if part)
    return [*([{"role": "system", "content": content}] if content else []), *messages[len(first) :]]


def passages_of(messages: Sequence[Json]) -> list[str]:
    """Return the passages that `with_passages` put into a conversation; none where it has none."""
    if not messages or messages[0]["role"] != "system":
        return []
    parts = _BEFORE_NUMBER.split("\n\n" + str(messages[0]["content"]))
    found: list[str] = []
    for part in reversed(parts):
        number, _, passage = part.partition("] ")
        if not re.fullmatch(r"\[\d+", number):
            break
        found.insert(0, passage)
        if number == "[1":
            return found
    return []
