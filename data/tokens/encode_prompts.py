"""Prompts as token ids, up to where the answer begins, with what a verifier needs to judge one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_texts
from posttrain.data.chat.rendering import render_prompt
from posttrain.data.chat.thinking import Thinking, choose_reasoning
from posttrain.data.chat.tokenizer import control_pattern
from posttrain.data.records import Record, prompt_of
from posttrain.data.tokens.outcome import Outcome, Policies, count_words, or_reason, overlong_error, provenance
from posttrain.stage.errors import UsageError


def encode_prompt_records(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Any], policies: Policies
) -> list[Outcome]:
    """Return one outcome per record of any type that has a prompt, in order.

    Rows hold `prompt_ids` and `conversation`, and `reference` and `scorer` where the record has them. Raises
    UsageError, naming the row, as the policies ask; a prompt is never cut.
    """
    if policies.overlong == "truncate":
        raise UsageError("data.tokenize.overlong: 'truncate' would cut questions short; use drop or error for prompts")
    control = control_pattern(tokenizer)
    rendered = [
        or_reason(record, control, policies, partial(_rendered, tokenizer, record, policies.thinking))
        for record in records
    ]
    ids = iter(encode_texts(tokenizer, [made.text for made in rendered if isinstance(made, _Rendered)]))
    return [
        _fit(record, next(ids), made.reasoning_dropped, policies) if isinstance(made, _Rendered) else made
        for record, made in zip(records, rendered, strict=True)
    ]


class _Rendered(NamedTuple):
    text: str
    reasoning_dropped: int


def _rendered(tokenizer: PreTrainedTokenizerBase, record: Any, thinking: Thinking) -> _Rendered | Outcome:
    if not record.prompt:
        return Outcome(reason="no_prompt")
    conversation, dropped = choose_reasoning(prompt_of(record), thinking)
    return _Rendered(render_prompt(tokenizer, conversation), len(dropped))


def _fit(record: Record, ids: list[int], reasoning_dropped: int, policies: Policies) -> Outcome:
    if len(ids) > policies.max_length:
        if policies.overlong == "error":
            raise overlong_error(record, len(ids), policies.max_length)
        return Outcome(reason="overlong")
    asked = prompt_of(record)
    row = {
        **provenance(record),
        "prompt_ids": ids,
        "conversation": asked.to_json(),
        "reference": getattr(record, "reference", None),
        "scorer": getattr(record, "scorer", None),
    }
    words = count_words(getattr(record, "prompt"))  # noqa: B009 (every record type that gets here has one)
    return Outcome(row, lengths=(len(ids),), words=words, reasoning_dropped=reasoning_dropped)
