"""Comparisons as token ids: one prompt with its responses, and what happens to those that do not fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_pieces
from posttrain.data.chat.spans import Spoken, spoken_response
from posttrain.data.chat.thinking import Thinking
from posttrain.data.chat.tokenizer import control_pattern
from posttrain.data.messages import message_dicts
from posttrain.data.records import Comparison, prompt_of
from posttrain.data.tokens.outcome import Outcome, Policies, count_words, or_reason, overlong_error, provenance
from posttrain.stage.errors import UsageError


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Comparison], policies: Policies
) -> list[Outcome]:
    """Return one outcome per comparison, in order.

    Rows hold `prompt_ids`, `responses_ids` and `ranks`; a response ends with EOS unless the record says that it was
    cut. Raises UsageError, naming the row, as the policies ask.
    """
    control = control_pattern(tokenizer)
    answered = [
        or_reason(record, control, policies, partial(_answered, tokenizer, control, record, policies.thinking))
        for record in records
    ]
    spoken = [one for own in answered if not isinstance(own, Outcome) for one in own.responses]
    pieces = iter(encode_pieces(tokenizer, [one.text for one in spoken], [[one.spans[0][0]] for one in spoken]))
    outcomes = []
    for record, own in zip(records, answered, strict=True):
        if isinstance(own, Outcome):
            outcomes.append(own)
            continue
        encoded = [next(pieces) for _ in own.responses]
        endings = record.ended or [True] * len(encoded)
        responses = [ids if ended else ids[:-1] for (_, ids), ended in zip(encoded, endings, strict=True)]
        outcome = _fit_comparison(record, encoded[0][0], responses, policies)
        outcomes.append(dataclasses.replace(outcome, reasoning_dropped=own.reasoning_dropped))
    return outcomes


@dataclasses.dataclass(frozen=True)
class _Answered:
    """A prompt with each of its responses as text."""

    responses: list[Spoken]
    reasoning_dropped: int


def _answered(
    tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], record: Comparison, thinking: Thinking
) -> _Answered:
    asked = prompt_of(record)
    answered = [spoken_response(tokenizer, control, asked, turn, thinking) for turn in message_dicts(record.responses)]
    spoken = [one for one, _ in answered]
    if any(one.text[: one.spans[0][0]] != spoken[0].text[: spoken[0].spans[0][0]] for one in spoken):
        raise UsageError("its responses stand behind different renderings of one prompt; give each a row of its own")
    return _Answered(spoken, sum(dropped for _, dropped in answered))


def _fit_comparison(record: Comparison, prompt: list[int], responses: list[list[int]], policies: Policies) -> Outcome:
    max_length, overlong = policies.max_length, policies.overlong
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
