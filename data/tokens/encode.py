"""Demonstrations as token ids: which tokens are trained, and what happens to rows that do not fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from typing import Literal

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_pieces
from posttrain.data.chat.spans import spoken_turns, within_marks
from posttrain.data.chat.thinking import Thinking, choose_reasoning
from posttrain.data.chat.tokenizer import adds_bos, control_pattern
from posttrain.data.messages import message_dicts
from posttrain.data.records import IGNORED, Demonstration, prompt_of
from posttrain.data.tokens.outcome import Outcome, Policies, count_words, or_reason, overlong_error, provenance
from posttrain.stage.errors import UsageError

LossOn = Literal["completion", "assistant", "all"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A demonstration as text, cut where trained and untrained pieces meet."""

    text: str
    cuts: list[int]
    trained: list[bool]
    """One for each piece."""
    reasoning_dropped: int = 0
    turns_untrained: int = 0
    plain: bool = False
    """Whether it is running text without turns."""


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Demonstration], policies: Policies, loss_on: LossOn
) -> list[Outcome]:
    """Return one outcome per demonstration, in order.

    Rows hold `input_ids` and `labels`. Raises UsageError, naming the row, as the policies ask.
    """
    control = control_pattern(tokenizer)
    layouts = [
        or_reason(record, control, policies, partial(lay_out, tokenizer, control, record, loss_on, policies.thinking))
        for record in records
    ]
    laid = [layout for layout in layouts if isinstance(layout, Layout)]
    pieces = iter(encode_pieces(tokenizer, [layout.text for layout in laid], [layout.cuts for layout in laid]))
    return [
        _fit_demonstration(record, layout, *label(tokenizer, layout, next(pieces)), policies)
        if isinstance(layout, Layout)
        else layout
        for record, layout in zip(records, layouts, strict=True)
    ]


def lay_out(
    tokenizer: PreTrainedTokenizerBase,
    control: re.Pattern[str],
    record: Demonstration,
    loss_on: LossOn,
    thinking: Thinking,
) -> Layout:
    """Return a demonstration as text with the pieces that are trained; ``control`` matches a special token.

    Without a prompt it is plain text, trained in full. Raises UsageError when the last turn is not the assistant's, or
    the template does not allow what ``loss_on`` needs.
    """
    if not record.prompt and len(record.completion) == 1:
        return Layout(record.completion[0].content, [], [True], plain=True)
    if record.completion[-1].role != "assistant":
        role = record.completion[-1].role
        raise UsageError(f"the last turn is by {role!r}; end the completion with an assistant turn")
    whole = prompt_of(record).followed_by(*message_dicts(record.completion))
    conversation, dropped = choose_reasoning(whole, thinking)
    # A turn that lost its reasoning was not said like that: only where none is wanted at all is it trained.
    unsaid = set(dropped) if thinking == "last_turn" else set()
    turns = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    first = 0 if loss_on == "assistant" else len(record.prompt)
    asked = [turn for turn in turns if turn >= first and turn not in unsaid]
    spoken = spoken_turns(tokenizer, control, conversation, asked)
    if loss_on == "assistant":
        spoken = within_marks(tokenizer, conversation, spoken)
    if loss_on == "all":
        return Layout(spoken.text, [], [True], len(dropped))
    left_out = spoken.left_out + (len(unsaid) if loss_on == "assistant" else 0)
    cuts = [cut for span in spoken.spans for cut in span]
    return Layout(spoken.text, cuts, [False, *[True, False] * len(spoken.spans)], len(dropped), left_out)


def label(
    tokenizer: PreTrainedTokenizerBase, layout: Layout, pieces: Sequence[list[int]]
) -> tuple[list[int], list[int]]:
    """Return input ids and labels of a layout whose pieces are encoded; both end with what ends the last turn."""
    if layout.plain:
        bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        ids = [*bos, *pieces[0], tokenizer.eos_token_id]
        return ids, list(ids)
    ids = [token for piece in pieces for token in piece]
    trained = [trained for piece, trained in zip(pieces, layout.trained, strict=True) for _ in piece]
    return ids, [token if train else IGNORED for token, train in zip(ids, trained, strict=True)]


def _fit_demonstration(
    record: Demonstration, layout: Layout, ids: list[int], labels: list[int], policies: Policies
) -> Outcome:
    max_length, overlong = policies.max_length, policies.overlong
    too_long = len(ids) > max_length
    if too_long and overlong == "error":
        raise overlong_error(record, len(ids), max_length)
    if too_long and overlong == "drop":
        return Outcome(reason="overlong")
    ids, labels = ids[:max_length], labels[:max_length]
    # The first label is never predicted: there is no token before it.
    if all(token == IGNORED for token in labels[1:]):
        return Outcome(reason="no_trained_token")
    row = {**provenance(record), "input_ids": ids, "labels": labels}
    words = count_words([*record.prompt, *record.completion])
    return Outcome(
        row,
        lengths=(len(ids),),
        words=words,
        truncated=int(too_long),
        reasoning_dropped=layout.reasoning_dropped,
        turns_untrained=layout.turns_untrained,
    )
