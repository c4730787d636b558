"""Unpaired preferences as token ids: the prompt, the response, and its label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_pieces
from posttrain.data.chat.spans import Spoken, spoken_response
from posttrain.data.chat.thinking import Thinking
from posttrain.data.chat.tokenizer import control_pattern
from posttrain.data.messages import message_dict
from posttrain.data.records import UnpairedPreference, prompt_of
from posttrain.data.tokens.outcome import Outcome, Policies, count_words, or_reason, overlong_error, provenance


def encode_unpaired(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[UnpairedPreference], policies: Policies
) -> list[Outcome]:
    """Return one outcome per unpaired preference, in order.

    Rows hold `prompt_ids`, `response_ids` and `label`; a response ends with EOS unless the record says that it was cut,
    or it is cut here. Raises UsageError, naming the row, as the policies ask.
    """
    control = control_pattern(tokenizer)
    answered = [
        or_reason(record, control, policies, partial(_answered, tokenizer, control, record, policies.thinking))
        for record in records
    ]
    spoken = [own.spoken for own in answered if isinstance(own, _Answered)]
    pieces = iter(encode_pieces(tokenizer, [one.text for one in spoken], [[one.spans[0][0]] for one in spoken]))
    return [
        _fit(record, next(pieces), own.reasoning_dropped, policies) if isinstance(own, _Answered) else own
        for record, own in zip(records, answered, strict=True)
    ]


class _Answered(NamedTuple):
    spoken: Spoken
    reasoning_dropped: int


def _answered(
    tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], record: UnpairedPreference, thinking: Thinking
) -> _Answered:
    response = message_dict(record.completion[0])
    return _Answered(*spoken_response(tokenizer, control, prompt_of(record), response, thinking))


def _fit(record: UnpairedPreference, pieces: list[list[int]], reasoning_dropped: int, policies: Policies) -> Outcome:
    prompt, whole = pieces
    response = whole if record.ended else whole[:-1]
    room = policies.max_length - len(prompt)
    too_long = len(response) > room
    if too_long and policies.overlong == "error":
        raise overlong_error(record, len(prompt) + len(response), policies.max_length)
    if too_long and policies.overlong == "drop":
        return Outcome(reason="overlong")
    ids = response[: max(room, 0)]
    if not ids:
        return Outcome(reason="no_trained_token")
    return Outcome(
        {**provenance(record), "prompt_ids": prompt, "response_ids": ids, "label": record.label},
        lengths=(len(prompt) + len(ids),),
        words=count_words([*record.prompt, *record.completion]),
        truncated=int(too_long),
        reasoning_dropped=reasoning_dropped,
    )
