"""When two records are the same, and what they are called."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from posttrain.data.messages import Message
from posttrain.data.records import Comparison, Demonstration, EvaluationItem, Prompt, Record, UnpairedPreference

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
            return [_turns(record.prompt), _turns(record.completion), *_setting(record)]
        case Comparison():
            ranked = sorted(zip(record.ranks, _turns(record.responses), strict=True))
            return [_turns(record.prompt), ranked, record.annotator, *_setting(record)]
        case UnpairedPreference():
            return [*answer_content(record), record.label, *_setting(record)]
        case EvaluationItem():
            return [_turns(record.prompt), record.reference, record.scorer, *_setting(record)]
        case Prompt():
            return [_turns(record.prompt), record.reference, *_setting(record)]
    raise TypeError(f"no content defined for {type(record).__name__}")


def answer_content(record: UnpairedPreference) -> list[Any]:
    """Return what an unpaired row says but for its label."""
    return [_turns(record.prompt), _turns(record.completion)]


def _setting(record: Record) -> list[Any]:
    """Return what else a chat template is given: rows that differ only there are two rows."""
    return [[record.tools, record.template_arguments]] if record.tools or record.template_arguments else []


def _turns(messages: list[Message]) -> list[list[str]]:
    return [[message.role, message.content, *_further(message)] for message in messages]


def _further(message: Message) -> list[str]:
    further = message.model_dump(exclude={"role", "content"}, exclude_none=True)
    return [json.dumps(further, ensure_ascii=False, sort_keys=True)] if further else []
