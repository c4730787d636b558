"""When two records are the same, and what they are called."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from posttrain.data.records import Comparison, Demonstration, EvaluationItem, Message, Prompt, Record

_DIGEST_BYTES = 12


def content_digest(record: Record) -> str:
    """Return BLAKE2b, in hex, of what a record says: its texts in NFC, whatever its provenance.

    The order in which a comparison lists its responses does not count; who ranked them does, since two annotators of
    one mind are two pieces of evidence.
    """
    text = json.dumps(_content(record), ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(nfc(text).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def nfc(text: str) -> str:
    """Return the text in Unicode normal form C."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _content(record: Record) -> list[Any]:
    match record:
        case Demonstration():
            return [_turns(record.prompt), _turns(record.completion)]
        case Comparison():
            ranked = sorted(zip(record.ranks, record.responses, strict=True))
            return [_turns(record.prompt), ranked, record.annotator]
        case EvaluationItem():
            return [_turns(record.prompt), record.reference, record.scorer]
        case Prompt():
            return [_turns(record.prompt), record.reference]
    raise TypeError(f"no content defined for {type(record).__name__}")


def _turns(messages: list[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]
