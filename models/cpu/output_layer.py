"""The output layer of a causal language model on a CPU: scores of tokens, without ever a matrix of all logits.

Logits are made in tiles that a processor's cache holds, and folded into each token's sums at once. The backward pass
takes them from a store of bounded size, makes those again that it does not hold, and adds the gradients of the weights
to those of earlier micro-batches in place.

N tokens, R of them at once, V tokens of the vocabulary, W of them at once, E features, K tokens with rows of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from posttrain.models.cpu.linear import kept_gradient
from posttrain.models.cpu.logit_tiles import OutputLayer, Tiles, give_back, store_for

Slopes = tuple[Tensor, Tensor | None]
"""Gradients of log-probabilities and of entropies ``R1``."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of each token its log-probability; of the distribution that it is from, what was asked for."""

    log_probs: Tensor
    entropy: Tensor
    """Zero unless asked for."""
    mean_logits: Tensor
    """Zero unless asked for; without gradient."""
    is_top1: Tensor
    """Whether no token is likelier, and none that comes earlier in the vocabulary is as likely."""


def score_tokens(
    layer: OutputLayer, states_NE: Tensor, targets_N: Tensor, entropy: bool = True, mean_logits: bool = False
) -> Scores:
    """Return the scores of target tokens, given the states that predict them; entropies carry gradients, too.

    Products have the precision of the states, or that of autocast; sums have single precision or more.
    """
    parts = (states_NE, layer.weight, layer.bias, layer.own_rows)
    learns = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
    with layer.gathered(layer.weight, layer.bias):
        found = _Scores.apply(*parts, targets_N, layer, learns, entropy, mean_logits)  # type: ignore[no-untyped-call]
    return Scores(*found)


class _Scores(Function):
    """With p the probabilities: ∂ log p_t / ∂x = onehot_t − p and ∂H / ∂x = −p (log p + H).

    At the target p − 1 is expm1(log p): the difference of two numbers near 1 would be all rounding.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        rows_KE: Tensor | None,
        targets_N: Tensor,
        layer: OutputLayer,
        learns: bool,
        entropy: bool,
        mean_logits: bool,
    ) -> tuple[Tensor, ...]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states_NE.dtype
        store = store_for(len(states_NE), len(weight_VE), dtype) if learns else None
        tiles = Tiles(layer, dtype, states_NE, weight_VE, bias_V, rows_KE, store)
        parts = [_folded(tiles, rows, targets_N[rows], entropy, mean_logits) for rows in tiles.blocks()]
        *results, normalizers_N = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(states_NE, weight_VE, bias_V, rows_KE, targets_N, normalizers_N, *results[:2])
        ctx.layer, ctx.dtype, ctx.store = layer, dtype, store
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[2:])
        return tuple(results)

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, of_logps_N: Tensor | None, of_entropies_N: Tensor | None, *_: Any) -> tuple[Any, ...]:
        *parts, targets_N, normalizers_N, logps_N, entropies_N = ctx.saved_tensors
        if of_logps_N is None:
            of_logps_N = torch.zeros_like(logps_N)
        with ctx.layer.gathered(*parts[1:3]), torch.autocast("cpu", enabled=False):
            states_NE, weight_VE, bias_V, rows_KE = parts
            stored = ctx.store is not None
            tiles = Tiles(ctx.layer, ctx.dtype, states_NE, weight_VE, bias_V, rows_KE, ctx.store, stored)
            found = _Gradients(tiles, parts, ctx.needs_input_grad[:4])
            for rows in tiles.blocks():
                slopes = (of_logps_N[rows, None], None if of_entropies_N is None else of_entropies_N[rows, None])
                of_token = (normalizers_N[rows, None], logps_N[rows, None], entropies_N[rows, None])
                found.add(rows, targets_N[rows], slopes, of_token)
        if ctx.store is not None:
            give_back(ctx.store)
            ctx.store = None  # a second pass makes all logits again
        return *found.results(), *[None] * 5


def _folded(
    tiles: Tiles, rows: slice, targets_R: Tensor, entropy: bool, mean_logits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return log-probabilities, entropies, mean logits, whether targets are the likeliest, and log ∑ exp of logits.

    Sums are of e = exp(x − peak), with the highest logit so far as the peak, and of e · (x − peak).
    """
    order_R = targets_R.argsort()
    zeros_R = torch.zeros(len(targets_R), dtype=tiles.precise)
    peak_R, total_R, spread_R, sum_R = zeros_R - torch.inf, zeros_R, zeros_R, zeros_R
    own_R, first_R = zeros_R.clone(), torch.zeros(len(targets_R), dtype=torch.bool)
    for span, products_RW in tiles.of(rows):
        tile_RW = tiles.finished(products_RW)
        highest_R = tile_RW.amax(-1).to(tiles.precise)
        _note_targets(tile_RW, span, targets_R, order_R, highest_R, peak_R, own_R, first_R)
        before_R, peak_R = peak_R, torch.maximum(peak_R, highest_R)
        shifted_RW = torch.sub(tile_RW, peak_R[:, None])
        weights_RW = torch.exp(shifted_RW)
        if span.start:
            fall_R = before_R - peak_R
            spread_R = (spread_R + total_R * fall_R) * fall_R.exp()
            total_R = total_R * fall_R.exp()
        total_R = total_R + weights_RW.sum(-1)
        if entropy:
            spread_R = spread_R + shifted_RW.mul_(weights_RW).sum(-1)
        if mean_logits:
            sum_R = sum_R + tile_RW.sum(-1, dtype=tiles.precise)
    log_R = total_R.log()
    entropies_R = log_R - spread_R / total_R if entropy else zeros_R
    means_R = sum_R / len(tiles.weight_VE)
    return own_R - peak_R - log_R, entropies_R, means_R, first_R & (own_R == peak_R), peak_R + log_R


def _note_targets(
    tile_RW: Tensor,
    span: slice,
    targets_R: Tensor,
    order_R: Tensor,
    highest_R: Tensor,
    peak_R: Tensor,
    own_R: Tensor,
    first_R: Tensor,
) -> None:
    """Write the logits of the targets in a tile into ``own_R``, and whether no earlier logit is as high."""
    edges = torch.searchsorted(targets_R, torch.tensor([span.start, span.stop]), sorter=order_R).tolist()
    members_M = order_R[slice(*edges)]
    if not len(members_M):
        return
    at_M = targets_R[members_M] - span.start
    own_R[members_M] = tile_RW[members_M, at_M].to(own_R.dtype)
    highest_M = highest_R[members_M]
    may_M = (own_R[members_M] == highest_M) & (highest_M > peak_R[members_M])
    members_M, at_M = members_M[may_M], at_M[may_M]
    first_R[members_M] = tile_RW[members_M].argmax(-1) == at_M


class _Gradients:
    """Of states, weight, bias and rows, those that are needed."""

    def __init__(self, tiles: Tiles, parts: list[Tensor | None], needed: tuple[bool, ...]) -> None:
        self.tiles, self.parts = tiles, parts
        self.kept = [False] * 4
        self.sums: list[Tensor | None] = [None] * 4
        for n, (part, wanted) in enumerate(zip(parts, needed, strict=True)):
            if part is not None and wanted:
                kept = kept_gradient(part) if n == 1 and part.is_leaf else None
                self.kept[n] = kept is not None and kept.dtype == tiles.precise
                make = torch.empty_like if n == 1 else torch.zeros_like  # the first block of tokens writes all of it
                self.sums[n] = kept if self.kept[n] else make(part, dtype=tiles.precise)

    def add(self, rows: slice, targets_R: Tensor, slopes: Slopes, of_token: tuple[Tensor, ...]) -> None:
        """Add what a block of tokens gives."""
        tiles, (states, weight, bias, own) = self.tiles, self.sums
        order_R = targets_R.argsort()
        factor = -tiles.layer.scale / tiles.layer.temperature
        factor_R1: Tensor = (slopes[0] if slopes[1] is None else torch.ones_like(of_token[0])) * factor
        scaled_RE = (tiles.states_NE[rows].to(tiles.precise) * factor_R1).to(tiles.dtype)
        of_states_RE = torch.zeros(scaled_RE.shape, dtype=tiles.precise)
        for span, products_RW in tiles.of(rows):
            tile_RW = tiles.finished(products_RW)
            wrong_RW = _wrong(tiles, span, tile_RW, targets_R, order_R, slopes, of_token)
            if bias is not None:
                bias[span] += factor_R1.squeeze(1).to(tiles.precise) @ wrong_RW.to(tiles.precise)
            members, columns_K = tiles.own(span)
            if tiles.rows_KE is not None and len(columns_K):
                part_RK = wrong_RW[:, columns_K]
                wrong_RW[:, columns_K] = 0
                if own is not None:
                    _add_product(own[members], part_RK.t(), scaled_RE)
                _add_product(of_states_RE, part_RK, tiles.rows_KE[members])
            if states is not None:
                _add_product(of_states_RE, wrong_RW, tiles.weight_VE[span])
            if weight is not None:
                _add_product(weight[span], wrong_RW.t(), scaled_RE, fresh=rows.start == 0 and not self.kept[1])
        if states is not None:
            states[rows] = of_states_RE.mul_(factor_R1)

    def results(self) -> list[Tensor | None]:
        """Return the gradients that autograd has to know of."""
        return [
            None if found is None or part is None or kept else found.to(part.dtype)
            for found, kept, part in zip(self.sums, self.kept, self.parts, strict=True)
        ]


def _wrong(
    tiles: Tiles,
    span: slice,
    tile_RW: Tensor,
    targets_R: Tensor,
    order_R: Tensor,
    slopes: Slopes,
    of_token: tuple[Tensor, ...],
) -> Tensor:
    """Return what the gradient of a tile's products is a multiple of: p, and p − 1 at the target, but for entropies."""
    normalizers_R1, logps_R1, entropies_R1 = of_token
    wrong_RW = torch.sub(tile_RW, normalizers_R1)
    of_logps_R1, of_entropies_R1 = slopes
    surprise_RW = wrong_RW + entropies_R1 if of_entropies_R1 is not None else None
    wrong_RW.exp_()
    edges = torch.searchsorted(targets_R, torch.tensor([span.start, span.stop]), sorter=order_R).tolist()
    members_M = order_R[slice(*edges)]
    at_M = targets_R[members_M] - span.start
    if surprise_RW is None or of_entropies_R1 is None:
        wrong_RW[members_M, at_M] = torch.expm1(logps_R1[members_M, 0])
    else:
        own_M = wrong_RW[members_M, at_M] * of_entropies_R1[members_M, 0] * surprise_RW[members_M, at_M]
        wrong_RW.mul_(surprise_RW.mul_(of_entropies_R1).add_(of_logps_R1))
        wrong_RW[members_M, at_M] = own_M + of_logps_R1[members_M, 0] * torch.expm1(logps_R1[members_M, 0])
    if tiles.layer.cap is not None:
        bent_RW = tile_RW * (tiles.layer.temperature / tiles.layer.cap)
        wrong_RW.mul_(bent_RW.square_().neg_().add_(1))
    return wrong_RW.to(tiles.dtype)


def _add_product(sum_: Tensor, left: Tensor, right: Tensor, fresh: bool = False) -> None:
    """Add a product to a sum, in place; what a ``fresh`` sum held is forgotten."""
    if sum_.dtype == left.dtype:
        sum_.addmm_(left, right, beta=0.0 if fresh else 1.0)
    elif fresh:
        sum_.copy_(left @ right)
    else:
        sum_.add_(left @ right)
