"""From logits to tokens: the knobs, and the draw by inversion of the cumulative distribution.

Letters of array shapes: B rows of the batch, V tokens of the vocabulary, K candidates of a row by falling logit,
N blocks of S tokens each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from posttrain.sample.sampling import SamplingParams

PREFILTERS = (64, 1024)
"""Candidates among which a nucleus is looked for before the whole vocabulary is sorted."""
FEW = 16
"""Tokens of the vocabulary for each of those candidates, at least: below, sorting all of it is as fast."""


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs that act on each row's logits, as columns of shape (B, 1); None where no row turns the knob."""

    greedy: Tensor | None
    temperature: Tensor | None
    top_k: Tensor | None
    """The size of the vocabulary where off."""
    top_p: Tensor | None
    """Infinity where off."""
    min_p: Tensor | None
    all_greedy: bool
    largest_top_k: int
    """Of the rows that turn it; 0 where none does."""
    any_without_top_k: bool
    """Whether a row keeps its most likely tokens by mass alone."""
    truncated: Tensor | None
    """Which rows keep their most likely tokens by number or mass, when some do and some do not: shape (B,)."""

    @property
    def plain(self) -> bool:
        """Whether every row is drawn from the logits as they are."""
        knobs = (self.greedy, self.temperature, self.top_k, self.top_p, self.min_p)
        return all(knob is None for knob in knobs)

    def take(self, rows: Tensor) -> Knobs:
        """Return the knobs of some rows."""

        def some(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        return dataclasses.replace(
            self,
            greedy=some(self.greedy),
            temperature=some(self.temperature),
            top_k=some(self.top_k),
            top_p=some(self.top_p),
            min_p=some(self.min_p),
            truncated=some(self.truncated),
        )


def knobs_of(rows: Sequence[SamplingParams], vocabulary: int, device: torch.device) -> Knobs:
    """Return the knobs of a batch."""

    def column(values: Sequence[float], off: float, dtype: torch.dtype = torch.float32) -> Tensor | None:
        if all(value == off for value in values):
            return None
        return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

    greedy = [row.temperature == 0 for row in rows]
    top_k = [min(row.top_k or vocabulary, vocabulary) for row in rows]
    truncated = [row.top_k > 0 or row.top_p < 1 for row in rows]
    some = any(truncated) and not all(truncated)
    return Knobs(
        greedy=column(greedy, False, torch.bool),
        temperature=column([row.temperature or 1.0 for row in rows], 1.0),
        top_k=column(top_k, vocabulary, torch.int64),
        top_p=column([row.top_p if row.top_p < 1 else math.inf for row in rows], math.inf),
        min_p=column([row.min_p for row in rows], 0.0),
        all_greedy=all(greedy),
        largest_top_k=max((k for k in top_k if k < vocabulary), default=0),
        any_without_top_k=any(k == vocabulary and row.top_p < 1 for k, row in zip(top_k, rows, strict=True)),
        truncated=torch.tensor(truncated, device=device) if some else None,
    )


def penalise_repeats(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Return logits where those of seen tokens are divided by the penalty if positive, else multiplied by it."""
    penalised_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, penalised_BV, logits_BV)


def penalise_counts(logits_BV: Tensor, counts_BV: Tensor, presence_B1: Tensor, frequency_B1: Tensor) -> Tensor:
    """Return logits less a penalty for each token that was there, and another for each time that it was."""
    return logits_BV - presence_B1 * (counts_BV > 0) - frequency_B1 * counts_BV


def add_bias(logits_BV: Tensor, biases: Sequence[Mapping[int, float]]) -> None:
    """Add each row's bias to the logits of its tokens, in place."""
    entries = [(row, token, value) for row, bias in enumerate(biases) for token, value in bias.items()]
    rows, tokens, values = (torch.tensor(column, device=logits_BV.device) for column in zip(*entries, strict=True))
    logits_BV.index_put_((rows, tokens), values.to(logits_BV.dtype), accumulate=True)


def log_probabilities(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """Return the log-probability of one token per row."""
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    chosen_B = (logits_BV.gather(1, tokens_B[:, None]) - largest_B1)[:, 0]
    return chosen_B - (logits_BV - largest_B1).exp_().sum(-1).log()


def most_likely(logits_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the most likely tokens of each row, falling, and their log-probabilities: shape (B, count)."""
    values_BK, ids_BK = largest(logits_BV, min(count, logits_BV.shape[1]))
    return ids_BK, values_BK - logits_BV.logsumexp(-1, keepdim=True)


def choose(logits_BV: Tensor, knobs: Knobs, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Return a token per row, and its log-probability under the distribution that it was drawn from.

    ``uniforms_B2`` are float64 in [0, 1). Greedy rows take the most likely token, the first of equals, and 0.
    """
    if knobs.all_greedy:
        tokens_B = logits_BV.argmax(-1)
        return tokens_B, torch.zeros_like(tokens_B, dtype=logits_BV.dtype)
    scaled_BV = logits_BV if knobs.temperature is None else logits_BV / knobs.temperature
    tokens_B, logprobs_B = _choose_in_parts(scaled_BV, knobs, uniforms_B2)
    if knobs.greedy is not None:
        greedy_B = knobs.greedy[:, 0]
        tokens_B = torch.where(greedy_B, logits_BV.argmax(-1), tokens_B)
        logprobs_B = logprobs_B.masked_fill(greedy_B, 0.0)
    return tokens_B, logprobs_B


def draw(weights_BV: Tensor, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Return an index per row, with probability proportional to its weight, and the row's total weight.

    The first uniform chooses a block of about √V weights by inverting the cumulative sum of the blocks, the second a
    weight of that block. That is faster than one cumulative sum over all, and steadier: rounding moves a boundary
    between two tokens by its error in one block, not by what has added up before it.
    """
    blocks_BNS = _blocks(weights_BV)
    rows, _, size = blocks_BNS.shape
    masses_BN = blocks_BNS.sum(-1)
    block_B = _invert(masses_BN, uniforms_B2[:, 0])
    weights_BS = blocks_BNS[torch.arange(rows, device=block_B.device), block_B]
    return block_B * size + _invert(weights_BS, uniforms_B2[:, 1]), masses_BN.sum(-1)


def _blocks(weights_BV: Tensor) -> Tensor:
    """Return weights in blocks, the last filled up with zeros: shape (B, N, S)."""
    rows, width = weights_BV.shape
    size = _block_size(width)
    if width % size:
        weights_BV = functional.pad(weights_BV, (0, -width % size))
    return weights_BV.view(rows, -1, size)


def _block_size(width: int) -> int:
    return 1 << math.ceil(math.log2(width) / 2)


def _invert(masses_BN: Tensor, uniform_B: Tensor) -> Tensor:
    """Return, per row, the index at which the cumulative mass passes a share of the total; never one of mass 0."""
    cumulative_BN = masses_BN.double().cumsum(-1)
    total_B = cumulative_BN[:, -1]
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))  # rounding may carry the product up to the total
    return torch.searchsorted(cumulative_BN, (uniform_B * total_B).minimum(below_B)[:, None], right=True)[:, 0]


def largest(logits_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest logits of each row, falling, and their tokens; faster than `topk` on a whole row.

    The columns are dealt into groups. The largest logits lie in the groups with the largest maxima, so only those
    groups are looked into.
    """
    width = logits_BV.shape[1]
    if count == width:
        return _sorted(logits_BV)
    depth = math.isqrt(width // count)
    if depth < 4:
        return logits_BV.topk(count)
    groups = width // depth
    head_BDG = logits_BV[:, : groups * depth].unflatten(1, (depth, groups))
    chosen_BC = head_BDG.amax(1).topk(count, sorted=False).indices
    offsets_D = torch.arange(0, groups * depth, groups, device=logits_BV.device)
    tail = torch.arange(groups * depth, width, device=logits_BV.device).expand(len(logits_BV), -1)
    ids_BM = torch.cat([(chosen_BC[:, None] + offsets_D[:, None]).flatten(1), tail], 1)
    values_BK, places_BK = logits_BV.gather(1, ids_BM).topk(count)
    return values_BK, ids_BM.gather(1, places_BK)


def _sorted(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    if logits_BV.is_cuda:
        values_BV, ids_BV = logits_BV.sort(-1, descending=True)
        return values_BV, ids_BV
    ids_BV = torch.from_numpy(np.argsort(-logits_BV.numpy(), -1))  # vectorised: a fifth of the time of torch's sort
    return logits_BV.gather(1, ids_BV), ids_BV


def _falling(logits_BV: Tensor) -> Tensor:
    """Return the logits of each row, the largest first, without their tokens: two to nine times as fast on a CPU."""
    if logits_BV.is_cuda:
        return logits_BV.sort(-1, descending=True).values
    return torch.from_numpy(-np.sort(-logits_BV.numpy(), -1))


def kept_weights(values_BK: Tensor, mass_B1: Tensor, vocabulary: int, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """Return the weights of each row's candidates, 0 where a knob drops one, and which rows have all that they keep.

    ``mass_B1`` is the weight of the whole vocabulary when the first candidate weighs 1, as it does here.
    """
    count = values_BK.shape[1]
    weights_BK = (values_BK - values_BK[:, :1]).exp_()
    done_B = torch.full_like(weights_BK[:, 0], count == vocabulary, dtype=torch.bool)
    if knobs.top_k is not None:
        ranks_K = torch.arange(count, device=values_BK.device)
        weights_BK.masked_fill_(ranks_K >= knobs.top_k, 0.0)
        done_B |= knobs.top_k[:, 0] <= count
    if knobs.top_p is not None:
        through_BK = weights_BK.cumsum(-1)
        if knobs.top_k is not None:
            mass_B1 = torch.where(knobs.top_k < vocabulary, through_BK[:, -1:], mass_B1)
        nucleus_B1 = knobs.top_p * mass_B1
        through_B = (through_BK[:, -1:] >= nucleus_B1)[:, 0]
        done_B |= through_B if knobs.top_k is None else through_B & (knobs.top_k[:, 0] == vocabulary)
        weights_BK.masked_fill_(through_BK - weights_BK >= nucleus_B1, 0.0)
    if knobs.min_p is not None:
        weights_BK.masked_fill_(weights_BK < knobs.min_p, 0.0)
    return weights_BK, done_B


def _choose_in_parts(logits_BV: Tensor, knobs: Knobs, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the rows that keep only their most likely tokens, and the others."""
    if knobs.truncated is None:
        whole = knobs.top_k is None and knobs.top_p is None
        return (_choose_any if whole else _choose_truncated)(logits_BV, knobs, uniforms_B2)
    tokens_B = torch.empty(len(logits_BV), dtype=torch.int64, device=logits_BV.device)
    logprobs_B = logits_BV.new_empty(len(logits_BV))
    for way, mask_B in ((_choose_truncated, knobs.truncated), (_choose_any, ~knobs.truncated)):
        rows = mask_B.nonzero()[:, 0]
        if not len(rows):
            continue
        tokens_B[rows], logprobs_B[rows] = way(logits_BV[rows], knobs.take(rows), uniforms_B2[rows])
    return tokens_B, logprobs_B


def _choose_any(logits_BV: Tensor, knobs: Knobs, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    weights_BV = (logits_BV - largest_B1).exp_()
    if knobs.min_p is not None:
        weights_BV.masked_fill_(weights_BV < knobs.min_p, 0.0)
    tokens_B, mass_B = draw(weights_BV, uniforms_B2)
    chosen_B = (logits_BV.gather(1, tokens_B[:, None]) - largest_B1)[:, 0]
    return tokens_B, chosen_B - mass_B.log()


def _choose_truncated(logits_BV: Tensor, knobs: Knobs, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Draw among each row's most likely tokens.

    Nuclei of trained models are small, so a few candidates come first; rows that keep more, or whose last token kept
    may have equals beyond them, go on to more, and the last resort sorts the vocabulary. What a row draws does not
    depend on how many candidates that took, since those are chosen with the whole batch in view.
    """
    width = logits_BV.shape[1]
    nucleus = knobs.top_p is not None and knobs.any_without_top_k
    mass_B1 = _mass(logits_BV) if nucleus else torch.ones_like(logits_BV[:, :1])  # else it is of the top k's mass
    tokens_B = torch.empty(len(logits_BV), dtype=torch.int64, device=logits_BV.device)
    logprobs_B = logits_BV.new_empty(len(logits_BV))
    rows = torch.arange(len(logits_BV), device=logits_BV.device)
    for count in _candidate_counts(knobs.largest_top_k, width):
        part_BV = logits_BV[rows]
        values_BK, ids_BK = largest(part_BV, count) if count < width else (_falling(part_BV), None)
        weights_BK, done_B = kept_weights(values_BK, mass_B1[rows], width, knobs.take(rows))
        kept_B1 = (weights_BK > 0).sum(-1, keepdim=True)
        last_B1 = values_BK.gather(1, kept_B1 - 1)
        if count < width:
            done_B &= values_BK[:, -1] < last_B1[:, 0]
        chosen_B1, mass_B = _draw_by_token(part_BV, values_BK, ids_BK, (kept_B1, last_B1), uniforms_B2[rows])
        tokens_B[rows] = chosen_B1[:, 0]
        logprobs_B[rows] = (part_BV.gather(1, chosen_B1) - values_BK[:, :1])[:, 0] - mass_B.log()
        rows = rows[~done_B]
        if not len(rows):
            break
    return tokens_B, logprobs_B


def _candidate_counts(largest_top_k: int, width: int) -> list[int]:
    """Return how many candidates to look at, one after the other; a few more than any row's top k, for equals."""
    first = [largest_top_k + max(8, largest_top_k // 4)] if largest_top_k else []
    more = [count for count in PREFILTERS if count > 2 * largest_top_k and count * FEW <= width]
    return [*(count for count in (*first, *more) if count < width), width]


def _mass(logits_BV: Tensor) -> Tensor:
    """Return each row's sum of weights where the most likely token weighs 1: shape (B, 1)."""
    weights_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp_()
    return _blocks(weights_BV).sum(-1).sum(-1, dtype=torch.float64).float()[:, None]


def _draw_by_token(
    logits_BV: Tensor, values_BK: Tensor, ids_BK: Tensor | None, kept: tuple[Tensor, Tensor], uniforms_B2: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw among candidates in the order of tokens; return the tokens, and the mass of what is kept.

    The order by weight changes with the rounding of near ties. ``ids_BK`` is None where all tokens are candidates;
    ``kept`` has, as columns, how many of them are kept and the logit of the last one.
    """
    (kept_B1, last_B1), width = kept, logits_BV.shape[1]
    if ids_BK is not None:
        ids_BK = ids_BK.sort(-1).values
        logits_BV = logits_BV.gather(1, ids_BK)
    drop_BK = logits_BV < last_B1
    if bool(((values_BK >= last_B1).sum(-1, keepdim=True) > kept_B1).any()):  # of equals, the first tokens are kept
        equal_BK = logits_BV == last_B1
        room_B1 = kept_B1 - (values_BK > last_B1).sum(-1, keepdim=True)
        drop_BK |= equal_BK & (equal_BK.cumsum(-1) > room_B1)
    weights_BK = (logits_BV - values_BK[:, :1]).exp_().masked_fill_(drop_BK, 0.0).double()
    if ids_BK is None:
        tokens_B, mass_B = draw(weights_BK, uniforms_B2)
        return tokens_B[:, None], mass_B.float()
    return _draw_sparse(weights_BK, ids_BK, _block_size(width), uniforms_B2)


def _draw_sparse(weights_BK: Tensor, ids_BK: Tensor, size: int, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Draw as `draw` would, given the tokens that have a weight in rising order: shape (B, 1), and the mass."""
    cumulative_BK = weights_BK.cumsum(-1)
    total_B1 = cumulative_BK[:, -1:]
    zero_B1 = torch.zeros_like(total_B1)
    wanted_B1 = (uniforms_B2[:, :1] * total_B1).minimum(torch.nextafter(total_B1, zero_B1))
    begin_B1 = ids_BK.gather(1, torch.searchsorted(cumulative_BK, wanted_B1, right=True)) // size * size
    ends_B2 = torch.searchsorted(ids_BK, torch.cat([begin_B1, begin_B1 + size], 1))
    padded_BK = functional.pad(cumulative_BK, (1, 0))
    low_B1, high_B1 = padded_BK.gather(1, ends_B2).split(1, 1)
    wanted_B1 = (low_B1 + uniforms_B2[:, 1:] * (high_B1 - low_B1)).minimum(torch.nextafter(high_B1, zero_B1))
    place_B1 = torch.searchsorted(cumulative_BK, wanted_B1, right=True)
    return ids_BK.gather(1, place_B1), total_B1[:, 0].float()
