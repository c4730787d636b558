"""Unpaired preferences as token ids: the prompt, the response, and its label."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_pieces
from posttrain.data.chat.rendering import render, render_prompt, response_start
from posttrain.data.messages import message_dict
from posttrain.data.records import UnpairedPreference, prompt_of
from posttrain.data.tokens.encode import (
    OnControlTokens,
    Outcome,
    Overlong,
    count_words,
    hold_control_tokens,
    naming,
    overlong_error,
    provenance,
    up_to_eos,
)


def encode_unpaired(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[UnpairedPreference],
    max_length: int,
    overlong: Overlong,
    on_control_tokens: OnControlTokens,
) -> list[Outcome]:
    """Return one outcome per unpaired preference, in order.

    Rows hold `prompt_ids`, `response_ids` and `label`; a response ends with EOS unless the record says that it was cut,
    or it is cut here. Raises UsageError, naming the row, as the policies ask.
    """
    forged = hold_control_tokens(tokenizer, records, on_control_tokens)
    rendered: list[tuple[str, int]] = []
    for record in itertools.compress(records, map(operator.not_, forged)):
        with naming(record):
            asked = prompt_of(record)
            text, _ = render(tokenizer, asked.followed_by(message_dict(record.completion[0])))
            rendered.append((text, response_start(tokenizer, render_prompt(tokenizer, asked), text)))
    pieces = iter(encode_pieces(tokenizer, [text for text, _ in rendered], [[start] for _, start in rendered]))
    outcomes = []
    for record, is_forged in zip(records, forged, strict=True):
        if is_forged:
            outcomes.append(Outcome(reason="control_token"))
            continue
        prompt, rest = next(pieces)
        whole = up_to_eos(rest, tokenizer.eos_token_id)
        outcomes.append(_fit(record, prompt, whole if record.ended else whole[:-1], max_length, overlong))
    return outcomes


def _fit(
    record: UnpairedPreference, prompt: list[int], response: list[int], max_length: int, overlong: Overlong
) -> Outcome:
    room = max_length - len(prompt)
    too_long = len(response) > room
    if too_long and overlong == "error":
        raise overlong_error(record, len(prompt) + len(response), max_length)
    if too_long and overlong == "drop":
        return Outcome(reason="overlong")
    ids = response[: max(room, 0)]
    if not ids:
        return Outcome(reason="no_trained_token")
    row = {**provenance(record), "prompt_ids": prompt, "response_ids": ids, "label": record.label}
    words = count_words([*record.prompt, *record.completion])
    return Outcome(row, lengths=(len(prompt) + len(ids),), words=words, truncated=int(too_long))
