"""How prompts lie in one row with their responses, each prompt once: the tree that attention follows.

A row is a prompt, its responses one behind the other, the next prompt, and so on. A token sees what comes before it in
its own response, and the prompt of its group. Positions of every response go on where its prompt ends.

Letters of array shapes: T tokens of the row, R responses.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.data.records import IGNORED


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a prompt and each of its responses lie in the row."""

    prompt: slice
    responses: tuple[slice, ...]

    @property
    def all_responses(self) -> slice:
        """Where the responses lie, together."""
        return slice(self.prompt.stop, self.responses[-1].stop if self.responses else self.prompt.stop)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Lengths of the prompts of a row, and of the responses to each."""

    prompts: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.prompts) + sum(map(sum, self.responses))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with a response."""
        return max(prompt + max(own, default=0) for prompt, own in zip(self.prompts, self.responses, strict=True))

    @functools.cached_property
    def spans(self) -> tuple[Span, ...]:
        """Where every group lies."""
        spans, at = [], 0
        for prompt, own in zip(self.prompts, self.responses, strict=True):
            ends = [at + prompt]
            for length in own:
                ends.append(ends[-1] + length)
            branches = tuple(slice(start, stop) for start, stop in itertools.pairwise(ends))
            spans.append(Span(slice(at, at + prompt), branches))
            at = ends[-1]
        return tuple(spans)

    def positions(self) -> Tensor:
        """Return the position ``T`` of every token on its way from the first of its prompt."""
        parts = []
        for span in self.spans:
            start, prompt = span.prompt.start, span.prompt.stop
            parts.append(torch.arange(prompt - start))
            parts += [torch.arange(branch.stop - branch.start) + prompt - start for branch in span.responses]
        return torch.cat(parts)

    def branches(self) -> tuple[Tensor, Tensor]:
        """Return the group ``T`` of every token, and its response's number in the row ``T``; −1 in a prompt."""
        group_T = torch.empty(self.num_tokens, dtype=torch.int64)
        branch_T = torch.full_like(group_T, -1)
        number = 0
        for group, span in enumerate(self.spans):
            group_T[span.prompt.start : span.all_responses.stop] = group
            for branch in span.responses:
                branch_T[branch] = number
                number += 1
        return group_T, branch_T

    def last_tokens(self) -> Tensor:
        """Return where each response ends ``R``; an empty one ends with its prompt."""
        return torch.tensor(
            [
                (branch.stop if branch.stop > branch.start else span.prompt.stop) - 1
                for span in self.spans
                for branch in span.responses
            ],
            dtype=torch.int64,
        )


def lay_out(rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> tuple[Tensor, Groups]:
    """Return the tokens ``1T`` of prompts with their responses as one row, and how they lie in it."""
    groups = Groups(
        tuple(len(prompt) for prompt, _ in rows),
        tuple(tuple(len(response) for response in responses) for _, responses in rows),
    )
    ids = [token for prompt, responses in rows for part in (prompt, *responses) for token in part]
    return torch.tensor([ids], dtype=torch.int64), groups


def lay_out_to_predict(rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> tuple[Tensor, Tensor, Groups]:
    """Return a row as `lay_out` does, the labels of its tokens ``1T``, and how it lies.

    Every response begins with a copy of its prompt's last token, so that the token before each label is what predicts
    it, also that of a response's first. Only responses have labels. Raises ValueError for a prompt without tokens.
    """
    for number, (prompt, _) in enumerate(rows):
        if not prompt:
            raise ValueError(f"prompt {number} has no token; a response needs one to be predicted from")
    begun = [(prompt[:-1], [[prompt[-1], *response] for response in responses]) for prompt, responses in rows]
    ids_1T, groups = lay_out(begun)
    labels_1T = torch.full_like(ids_1T, IGNORED)
    for span in groups.spans:
        for branch in span.responses:
            own = slice(branch.start + 1, branch.stop)
            labels_1T[:, own] = ids_1T[:, own]
    return ids_1T, labels_1T, groups


LEAST_SHARED = 16
"""Tokens that rows have in common at least where these are computed once: a part of its own costs a layer as much."""


def lay_end_to_end(ids_BT: Tensor, lengths: Sequence[int], share: bool = True) -> tuple[Tensor, Tensor, Groups]:
    """Return the first tokens of rows as one row ``1T`` without padding, what they begin alike with once if ``share``.

    Also where in it each of their tokens is ``BT``, and how it lies.
    """
    place_BT, parts, prompts, responses, end = torch.zeros_like(ids_BT), [], [], [], 0
    groups = _alike(ids_BT, lengths) if share else [(length, [row]) for row, length in enumerate(lengths)]
    for common, members in groups:
        first, tails = end, [(row, common, lengths[row]) for row in members]
        prompts.append(common)
        responses.append(tuple(stop - start for _, start, stop in tails) if len(members) > 1 else ())
        for row, start, stop in [(members[0], 0, common), *tails]:
            parts.append(ids_BT[row, start:stop])
            place_BT[row, start:stop] = torch.arange(end, end + stop - start)
            end += stop - start
        place_BT[members, :common] = torch.arange(first, first + common)
    return torch.cat(parts)[None], place_BT, Groups(tuple(prompts), tuple(responses))


def _alike(ids_BT: Tensor, lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return rows in groups, and with how many tokens those of a group begin alike, so that the fewest are left.

    Groups are neighbours among sorted rows; the best beginning of a group is found for each end.
    """
    order = sorted(range(len(lengths)), key=lambda row: ids_BT[row, : lengths[row]].tolist())
    common = [0]
    for row, other in itertools.pairwise(order):
        shortest = min(lengths[row], lengths[other])
        differ = (ids_BT[row, :shortest] != ids_BT[other, :shortest]).nonzero()
        common.append(int(differ[0]) if len(differ) else shortest)
    saved, begins = [0], [0]
    for stop in range(1, len(order) + 1):
        alike, best = lengths[order[stop - 1]], (saved[stop - 1], stop - 1)
        for start in range(stop - 2, -1, -1):
            alike = min(alike, common[start + 1])
            if alike <= LEAST_SHARED:
                break
            best = max(best, (saved[start] + (alike - LEAST_SHARED) * (stop - 1 - start), start))
        saved.append(best[0])
        begins.append(best[1])
    groups, stop = [], len(order)
    while stop:
        start = begins[stop]
        alike = min(common[start + 1 : stop], default=lengths[order[start]])
        groups.append((alike, [order[at] for at in range(start, stop)]))
        stop = start
    return groups[::-1]


def visible(groups: Groups, window: int | None = None, span: slice = slice(None)) -> Tensor:
    """Return which tokens a token sees, ``TT`` of the whole row or of a part of it.

    Under a sliding ``window`` a token sees that many, itself included.
    """
    group_T, branch_T = (part[span] for part in groups.branches())
    position_T = groups.positions()[span]
    key_branch_1T, distance_TT = branch_T[None], position_T[:, None] - position_T[None]
    seen_TT = (group_T[:, None] == group_T[None]) & (distance_TT >= 0)
    seen_TT &= (key_branch_1T == -1) | (key_branch_1T == branch_T[:, None])
    return seen_TT if window is None else seen_TT & (distance_TT < window)
