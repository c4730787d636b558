"""JSON out of what a model wrote: strict parsing, and repair that says what it changed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import json_repair

from posttrain.data.chat.reasoning import split_reply

_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.|\\\Z)*("|\Z)|[{}\[\],]', re.DOTALL)
_PARTIAL_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?\Z")
_PARTIAL_WORD = re.compile(r"[a-z]+\Z")
_PARTIAL_NUMBER = re.compile(r"(?<=\d)[.eE+-]+\Z")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_BEGUN = re.compile(r"""\{\s*"|\[\s*["{\[\d-]""")
_MOST_TAKEN_BACK = 8
_MAX_DEPTH = 500
_CLOSER = {"{": "}", "[": "]"}
_LITERALS = ("true", "false", "null")


@dataclasses.dataclass(frozen=True)
class Repair:
    """A JSON value, and what had to be changed to read it."""

    value: Any
    changes: tuple[str, ...]
    """In order; empty when the text was valid as it stood."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text by RFC 8259: no NaN, no comments, no byte order mark, UTF-8 only.

    Raises ValueError on anything else, and on half a surrogate pair, since no text can hold the value.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def repair_json(text: str) -> Repair | None:
    """Return the JSON value in a response, or None where there is none.

    Valid JSON comes back as it is. Otherwise, one after the other until it parses: reasoning is taken off, with the
    drafts in it, a code fence, the text around the last document, commas before a closing bracket; what was cut off is
    closed, after taking back what cannot be read; and json-repair tries the rest (quotes, comments, missing commas).
    """
    try:
        return Repair(parse_json(text), ())
    except ValueError:
        changes: list[str] = []
    body = text.strip().removeprefix("\ufeff")
    begins_document = body.startswith(("{", "[")) and not body.startswith("[THINK]")
    if not begins_document and (answer := split_reply(body).answer.strip()) != body:
        changes.append(f"left out reasoning: {len(body) - len(answer)} characters")
        body = answer
    if not body.startswith(("{", "[")) and (fence := _FENCE.search(body)):
        body = fence.group(1).strip()
        changes.append("took off a code fence")
    start = _start(body)
    if start is None:
        return _parsed(body, changes)
    if before := body[:start].strip():
        changes.append(f"left out before the document: {len(before)} characters")
    body = body[start:]
    if end := _end(body):
        if after := body[end:].strip():
            changes.append(f"left out after the document: {len(after)} characters")
        body = body[:end]
    if repaired := _parsed(body, changes):
        return repaired
    body, commas = _without_trailing_commas(body)
    if commas:
        changes.append(f"left out before a closing bracket: {commas} commas")
    if end:
        return _parsed(body, changes) or _with_library(body, changes)
    if len(_closers(body)) > _MAX_DEPTH:
        return None
    closed = (_parsed(text, [*changes, *made]) for text, made in _closings(body))
    return next(filter(None, closed), None) or _with_library(body, changes)


def _parsed(text: str, changes: list[str]) -> Repair | None:
    try:
        return Repair(parse_json(text), tuple(changes or ["left out blanks or a byte order mark"]))
    except ValueError:
        return None


def _start(body: str) -> int | None:
    """Return where the document begins: the last one of the kind of the longest, object or array, that is not empty.

    Drafts come before it, and what stands in brackets beside it is of another kind. A document that is cut at the end
    is the last one. Without any it is the first bracket.
    """
    spans: list[tuple[int, int]] = []
    cut = None
    first = position = _next_bracket(body, 0)
    while position is not None and cut is None:
        end = _document_end(body, position)
        if end is not None:
            spans.append((position, end))
        elif length := _end(body[position:]):
            end = position + length
        else:
            cut, end = position, len(body)
        position = _next_bracket(body, end)
    if not spans:
        return first
    longest = max(spans, key=lambda span: span[1] - span[0])[0]
    if cut is not None and body[cut] == body[longest] and _BEGUN.match(body, cut):
        return cut
    alike = [start for start, end in spans if body[start] == body[longest] and body[start + 1 : end - 1].strip()]
    return alike[-1] if alike else longest


def _document_end(body: str, position: int) -> int | None:
    """Return where the document at a bracket ends, valid but for commas before closing brackets; None where is none."""
    try:
        return _DECODER.raw_decode(body, position)[1]
    except (RecursionError, ValueError):
        length = _end(body[position:])
    if length is None:
        return None
    text, commas = _without_trailing_commas(body[position : position + length])
    return position + length if commas and _parsed(text, []) else None


def _next_bracket(body: str, position: int) -> int | None:
    found = re.compile(r"[{\[]").search(body, position)
    return found.start() if found else None


def _without_trailing_commas(body: str) -> tuple[str, int]:
    """Return a document without the commas that stand before a closing bracket, and how many those were."""
    tokens = list(_TOKEN.finditer(body))
    commas = [
        comma.start()
        for comma, after in itertools.pairwise(tokens)
        if comma.group() == "," and after.group() in ("}", "]") and not body[comma.end() : after.start()].strip()
    ]
    for position in reversed(commas):
        body = body[:position] + body[position + 1 :]
    return body, len(commas)


def _closings(body: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a cut document closed in several ways: its last word complete, as it stands, with less and less of it."""
    tokens = list(_TOKEN.finditer(body))
    if tokens and tokens[-1].group().startswith('"') and not tokens[-1].group(1):
        head = _PARTIAL_ESCAPE.sub("", body)
        yield head + '"' + _closers(head), [f"""closed with '"{_closers(head)}'"""]
    else:
        word = _PARTIAL_WORD.search(body)
        for literal in _LITERALS:
            if word and literal.startswith(word.group()):
                rest = literal[len(word.group()) :] + _closers(body)
                yield body + rest, [f"closed with {rest!r}"]
        yield _PARTIAL_NUMBER.sub("", body) + _closers(body), [f"closed with {_closers(body)!r}"]
    whole = [token.start() if token.group() == "," else token.end() for token in tokens[-_MOST_TAKEN_BACK:]]
    for length in reversed(whole):
        head = body[:length]
        yield head + _closers(head), [f"took back {body[length:]!r}", f"closed with {_closers(head)!r}"]


def _end(body: str) -> int | None:
    """Return where the outermost bracket closes, or None where it does not."""
    depth = 0
    for token in _TOKEN.finditer(body):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token.group(), 0)
        if depth == 0:
            return token.end()
    return None


def _closers(body: str) -> str:
    """Return the brackets that close what is open at the end of a text."""
    closers: list[str] = []
    for token in _TOKEN.finditer(body):
        if token.group() in _CLOSER:
            closers.append(_CLOSER[token.group()])
        elif token.group() in ("}", "]") and closers:
            closers.pop()
    return "".join(reversed(closers))


def _with_library(body: str, changes: list[str]) -> Repair | None:
    """Let json-repair guess; what is no single object or array, or holds no number, is not taken for one."""
    try:
        repaired: Any = json_repair.loads(body, logging=True)
        value, log = repaired
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (RecursionError, ValueError):
        return None
    if not isinstance(value, dict if body.startswith("{") else list):
        return None
    texts = dict.fromkeys(entry["text"] for entry in log) or ["rewrote it"]
    return Repair(value, (*changes, *(f"json-repair: {text}" for text in texts)))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
