"""Records as token ids: which tokens are trained, and what happens to rows that do not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_pieces
from posttrain.data.chat.rendering import render, render_prompt, response_start
from posttrain.data.chat.tokenizer import adds_bos, control_tokens
from posttrain.data.messages import Message, message_dict, message_dicts
from posttrain.data.records import (
    IGNORED,
    Comparison,
    Demonstration,
    EvaluationItem,
    Prompt,
    Record,
    UnpairedPreference,
    prompt_of,
)
from posttrain.stage.errors import UsageError

Overlong = Literal["drop", "truncate", "error"]
LossOn = Literal["completion", "assistant", "all"]
OnControlTokens = Literal["drop", "error"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one record: a row of the tokens artifact, or the reason why there is none."""

    row: dict[str, Any] | None = None
    reason: str = ""
    lengths: tuple[int, ...] = ()
    """Tokens of each kept sequence: of the conversation, or of the prompt with each response."""
    words: int = 0
    """Words separated by white space in the same sequences."""
    truncated: int = 0
    """Sequences that were cut."""
    responses_dropped: int = 0
    """Responses missing from a kept comparison."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A demonstration as text, cut where trained and untrained pieces meet."""

    text: str
    cuts: list[int]
    trained: list[bool]
    """One for each piece."""
    plain: bool = False
    """Whether it is running text without turns."""


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Demonstration],
    max_length: int,
    overlong: Overlong,
    on_control_tokens: OnControlTokens,
    loss_on: LossOn,
) -> list[Outcome]:
    """Return one outcome per demonstration, in order.

    Rows hold `input_ids` and `labels`. Raises UsageError, naming the row, as the policies ask.
    """
    forged = hold_control_tokens(tokenizer, records, on_control_tokens)
    layouts = []
    for record in itertools.compress(records, map(operator.not_, forged)):
        with naming(record):
            layouts.append(lay_out(tokenizer, record, loss_on))
    pieces = encode_pieces(tokenizer, [layout.text for layout in layouts], [layout.cuts for layout in layouts])
    encoded = zip(layouts, pieces, strict=True)
    outcomes = []
    for record, is_forged in zip(records, forged, strict=True):
        if is_forged:
            outcomes.append(Outcome(reason="control_token"))
            continue
        ids, labels = label(tokenizer, *next(encoded))
        outcomes.append(_fit_demonstration(record, ids, labels, max_length, overlong))
    return outcomes


def lay_out(tokenizer: PreTrainedTokenizerBase, record: Demonstration, loss_on: LossOn) -> Layout:
    """Return a demonstration as text with the pieces that are trained.

    Without a prompt it is plain text, trained in full. Raises UsageError when the last turn is not the assistant's, or
    the template does not allow what ``loss_on`` needs.
    """
    if not record.prompt and len(record.completion) == 1:
        return Layout(record.completion[0].content, [], [True], plain=True)
    conversation = prompt_of(record).followed_by(*message_dicts(record.completion))
    if record.completion[-1].role != "assistant":
        raise UsageError(
            f"the last turn is by {record.completion[-1].role!r}; end the completion with an assistant turn"
        )
    text, spans = render(tokenizer, conversation)
    if loss_on == "all":
        return Layout(text, [], [True])
    if loss_on == "assistant":
        return Layout(text, [cut for span in spans for cut in span], [False, *[True, False] * len(spans)])
    start = response_start(tokenizer, render_prompt(tokenizer, conversation.without_last()), text)
    return Layout(text, [start], [False, True])


def label(
    tokenizer: PreTrainedTokenizerBase, layout: Layout, pieces: Sequence[list[int]]
) -> tuple[list[int], list[int]]:
    """Return input ids and labels of a layout whose pieces are encoded; both end with EOS."""
    if layout.plain:
        bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        ids = [*bos, *pieces[0], tokenizer.eos_token_id]
        return ids, list(ids)
    ids = up_to_eos([token for piece in pieces for token in piece], tokenizer.eos_token_id)
    trained = [trained for piece, trained in zip(pieces, layout.trained, strict=True) for _ in piece]
    return ids, [token if train else IGNORED for token, train in zip(ids, trained, strict=False)]


def up_to_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """Return the ids without what a template writes after the last end of turn, such as a newline."""
    after = ids[::-1].index(eos_token_id)
    return ids[: len(ids) - after]


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Comparison],
    max_length: int,
    overlong: Overlong,
    on_control_tokens: OnControlTokens,
) -> list[Outcome]:
    """Return one outcome per comparison, in order.

    Rows hold `prompt_ids`, `responses_ids` and `ranks`; a response ends with EOS unless the record says that it was
    cut. Raises UsageError, naming the row, as the policies ask.
    """
    forged = hold_control_tokens(tokenizer, records, on_control_tokens)
    rendered: list[tuple[str, int]] = []
    for record in itertools.compress(records, map(operator.not_, forged)):
        with naming(record):
            rendered.extend(_rendered_responses(tokenizer, record))
    pieces = iter(encode_pieces(tokenizer, [text for text, _ in rendered], [[start] for _, start in rendered]))
    outcomes = []
    for record, is_forged in zip(records, forged, strict=True):
        if is_forged:
            outcomes.append(Outcome(reason="control_token"))
            continue
        own = [next(pieces) for _ in record.responses]
        endings = record.ended or [True] * len(own)
        whole = [up_to_eos(response, tokenizer.eos_token_id) for _, response in own]
        responses = [ids if ended else ids[:-1] for ids, ended in zip(whole, endings, strict=True)]
        outcomes.append(_fit_comparison(record, own[0][0], responses, max_length, overlong))
    return outcomes


def _rendered_responses(tokenizer: PreTrainedTokenizerBase, record: Comparison) -> Iterator[tuple[str, int]]:
    asked = prompt_of(record)
    prompt = render_prompt(tokenizer, asked)
    for response in record.responses:
        text, _ = render(tokenizer, asked.followed_by(message_dict(response)))
        yield text, response_start(tokenizer, prompt, text)


def _fit_demonstration(
    record: Demonstration, ids: list[int], labels: list[int], max_length: int, overlong: Overlong
) -> Outcome:
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
    return Outcome(row, lengths=(len(ids),), words=words, truncated=int(too_long))


def _fit_comparison(
    record: Comparison, prompt: list[int], responses: list[list[int]], max_length: int, overlong: Overlong
) -> Outcome:
    if len(set(record.ranks)) < 2:
        return Outcome(reason="all_tied")
    room = max_length - len(prompt)
    longest = max(len(response) for response in responses)
    if longest > room and overlong == "error":
        raise overlong_error(record, len(prompt) + longest, max_length)
    fits = [len(response) <= room or (overlong == "truncate" and room > 0) for response in responses]
    kept = [index for index, fit in enumerate(fits) if fit]
    ranks = [record.ranks[index] for index in kept]
    if len(set(ranks)) < 2:
        return Outcome(reason="overlong" if overlong == "drop" else "no_trained_token")
    best, first = _distinct([tuple(responses[index][:room]) for index in kept], ranks)
    if len(set(best.values())) < 2:
        was_cut = any(len(responses[index]) > room for index in kept)
        return Outcome(reason="identical_after_truncation" if was_cut else "identical_responses")
    kept, ranks = [kept[place] for place in first], list(best.values())
    ids = [responses[index][:room] for index in kept]
    prompt_words = count_words(record.prompt)
    return Outcome(
        row={**provenance(record), "prompt_ids": prompt, "responses_ids": ids, "ranks": ranks},
        lengths=tuple(len(prompt) + len(response) for response in ids),
        words=sum(prompt_words + count_words([record.responses[index]]) for index in kept),
        truncated=sum(len(responses[index]) > room for index in kept),
        responses_dropped=len(responses) - len(kept),
    )


def _distinct(
    responses: Sequence[tuple[int, ...]], ranks: Sequence[int]
) -> tuple[dict[tuple[int, ...], int], list[int]]:
    """Return the best rank of each different response, and where each stands first.

    Texts that differ may be equal as tokens, above all where only their long beginning is left; a loss of such a pair
    says nothing, and counts as an error of the model.
    """
    best: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    for place, (response, rank) in enumerate(zip(responses, ranks, strict=True)):
        if response not in best:
            first.append(place)
        best[response] = min(best.get(response, rank), rank)
    return best, first


def hold_control_tokens(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], on_control_tokens: OnControlTokens
) -> list[bool]:
    """Return which records hold a special token in their text, where it would be read as a turn's beginning or end."""
    pattern = re.compile("|".join(re.escape(token) for token in control_tokens(tokenizer)))
    matches = [next(filter(None, map(pattern.search, _texts(record))), None) for record in records]
    for record, match in zip(records, matches, strict=True):
        if match is not None and on_control_tokens == "error":
            raise UsageError(
                f"row {record.id} of {record.source}: its text holds {match[0]!r}, a special token of the tokenizer; "
                "remove it there, or set on_control_tokens=drop"
            )
    return [match is not None for match in matches]


def _texts(record: Record) -> Iterator[str]:
    if isinstance(record, (Demonstration, UnpairedPreference)):
        yield from (message.content for message in [*record.prompt, *record.completion])
    elif isinstance(record, Comparison):
        yield from (message.content for message in record.prompt)
        yield from (response.content for response in record.responses)
    elif isinstance(record, (Prompt, EvaluationItem)):
        yield from (message.content for message in record.prompt)


def count_words(messages: Sequence[Message]) -> int:
    """Return the words of messages, separated by white space."""
    return sum(len(message.content.split()) for message in messages)


def provenance(record: Record) -> dict[str, str]:
    """Return the columns that every row of a tokens artifact has."""
    return {"id": record.id, "source": record.source, "language": record.language, "task": record.task}


def overlong_error(record: Record, length: int, max_length: int) -> UsageError:
    """Return what to raise for a row that is too long."""
    return UsageError(
        f"row {record.id} of {record.source}: {length} tokens, but max_length={max_length}; raise max_length, "
        "or set overlong=drop or truncate"
    )


@contextlib.contextmanager
def naming(record: Record) -> Iterator[None]:
    """Put the row's name in front of a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"row {record.id} of {record.source}: {error}") from None
