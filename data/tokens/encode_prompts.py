"""Prompts as token ids, up to where the answer begins, with what a verifier needs to judge one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_texts
from posttrain.data.chat.rendering import render_prompt
from posttrain.data.records import Record, prompt_of
from posttrain.data.tokens.encode import (
    OnControlTokens,
    Outcome,
    Overlong,
    count_words,
    hold_control_tokens,
    naming,
    overlong_error,
    provenance,
)
from posttrain.stage.errors import UsageError


def encode_prompt_records(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Any],
    max_length: int,
    overlong: Overlong,
    on_control_tokens: OnControlTokens,
) -> list[Outcome]:
    """Return one outcome per record of any type that has a prompt, in order.

    Rows hold `prompt_ids` and `messages`, and `reference` and `scorer` where the record has them. Raises UsageError,
    naming the row, as the policies ask; a prompt is never cut.
    """
    if overlong == "truncate":
        raise UsageError("data.tokenize.overlong: 'truncate' would cut questions short; use drop or error for prompts")
    forged = hold_control_tokens(tokenizer, records, on_control_tokens)
    texts = []
    for record, is_forged in zip(records, forged, strict=True):
        with naming(record):
            texts.append("" if is_forged or not record.prompt else render_prompt(tokenizer, prompt_of(record)))
    encoded = encode_texts(tokenizer, texts)
    return [
        Outcome(reason="control_token") if is_forged else _fit(record, ids, max_length, overlong)
        for record, ids, is_forged in zip(records, encoded, forged, strict=True)
    ]


def _fit(record: Record, ids: list[int], max_length: int, overlong: Overlong) -> Outcome:
    prompt: Any = getattr(record, "prompt")  # noqa: B009 (every record type that gets here has one)
    if not prompt:
        return Outcome(reason="no_prompt")
    if len(ids) > max_length:
        if overlong == "error":
            raise overlong_error(record, len(ids), max_length)
        return Outcome(reason="overlong")
    row = {
        **provenance(record),
        "prompt_ids": ids,
        "conversation": prompt_of(record).to_json(),
        "reference": getattr(record, "reference", None),
        "scorer": getattr(record, "scorer", None),
    }
    return Outcome(row, lengths=(len(ids),), words=count_words(prompt))
