"""Reasoning that stands inside the text of an answer, and how it is told from the answer."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<think>", "</think>"
_SPACE_BEFORE_ANSWER = re.compile(r"(?:[ \t\r]*\n)+|[ \t]*")


def split_reasoning(text: str) -> tuple[str, str]:
    """Return the reasoning with which an answer begins, and the answer without it.

    Reasoning ends with ``</think>``. It begins with ``<think>``, or, as models write whose prompt already holds that
    mark, without it; then the closing mark must end a line, since an answer may speak of it. Where no reasoning is
    closed the text is all answer.
    """
    before, mark, after = text.partition(_CLOSE)
    opened = before.lstrip().startswith(_OPEN)
    if not mark or (not opened and (_OPEN in before or not _ends_line(before, after))):
        return "", text
    thought = before.lstrip().removeprefix(_OPEN) if opened else before
    space = _SPACE_BEFORE_ANSWER.match(after)
    return thought.strip(), after[space.end() :] if space else after


def _ends_line(before: str, after: str) -> bool:
    return not before.strip() or before.endswith("\n") or not after.strip() or after.lstrip(" \t\r").startswith("\n")
