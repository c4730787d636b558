"""The logits of a causal language model's output layer, in tiles that a processor's cache holds.

N tokens, R of them at once, V tokens of the vocabulary, W of them at once, E features, K tokens with rows of their own.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 1024
"""Tokens that a tile has at most."""
NARROWEST = 64
"""Tokens of the vocabulary that a tile has at least."""
TILE = 2**19
"""Logits that a tile has."""
STORE = 2**26
"""Logits that are kept for the backward pass at most: 256 MiB in single precision."""
_ALIGNED = 64
"""Logits after which a tile may begin, so that a cache's line holds none of two."""
_FREE: list[Tensor] = []
"""The store of the last backward pass: memory that is new at each would cost its page faults each time."""

Gathered = Callable[..., contextlib.AbstractContextManager[Any]]
"""Of weights that an engine keeps in parts, makes them whole for the time of a ``with`` block."""


def _as_they_are(*_: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class OutputLayer:
    """Weights ``VE``, and what a family makes of their products: ``cap · tanh(scale · x / cap) / temperature``."""

    weight: Tensor
    bias: Tensor | None = None
    own_tokens: tuple[int, ...] = ()
    """Tokens whose rows are not the weight's, ascending."""
    own_rows: Tensor | None = None
    """Their rows ``KE``."""
    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0
    gathered: Gathered = _as_they_are

    @property
    def inner(self) -> float:
        """The factor of the products, before the cap if there is one."""
        return self.scale / (self.temperature if self.cap is None else self.cap)


class Tiles:
    """The logits of all tokens, block of tokens by block, and in a block tile by tile of the vocabulary."""

    def __init__(
        self,
        layer: OutputLayer,
        dtype: torch.dtype,
        states_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        rows_KE: Tensor | None,
        store: Tensor | None,
        stored: bool = False,
    ) -> None:
        """``stored`` says that the store holds the tiles that have room in it."""
        self.layer = layer
        self.dtype = dtype
        self.precise = torch.promote_types(dtype, torch.float32)
        self.states_NE, self.weight_VE = states_NE.detach().to(dtype), weight_VE.detach().to(dtype)
        self.bias_V, self.rows_KE = (None if part is None else part.detach().to(dtype) for part in (bias_V, rows_KE))
        self.store, self.stored = store, stored
        self._used = 0
        self._spare: Tensor | None = None

    def blocks(self) -> list[slice]:
        """Return the tokens of each block; at least one block."""
        return [slice(start, start + ROWS) for start in range(0, max(1, len(self.states_NE)), ROWS)]

    def of(self, rows: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield the tiles ``RW`` of a block and what of the vocabulary they have; a tile is there until the next."""
        states_RE = self.states_NE[rows]
        width = max(NARROWEST, TILE // max(1, len(states_RE)) // NARROWEST * NARROWEST)
        for start in range(0, len(self.weight_VE), width):
            span = slice(start, min(start + width, len(self.weight_VE)))
            shape = (len(states_RE), span.stop - span.start)
            tile_RW, there = self._room(shape)
            if not there:
                self._fill(tile_RW, states_RE, span)
            yield span, tile_RW

    def own(self, span: slice) -> tuple[slice, Tensor]:
        """Return which of the rows of their own are of a tile's tokens, and at which of its columns they go."""
        tokens = self.layer.own_tokens
        first, last = bisect.bisect_left(tokens, span.start), bisect.bisect_left(tokens, span.stop)
        return slice(first, last), torch.tensor(tokens[first:last], dtype=torch.int64) - span.start

    def _room(self, shape: tuple[int, int]) -> tuple[Tensor, bool]:
        """Return memory for a tile, and whether the tile is there already."""
        start, size = self._used, shape[0] * shape[1]
        if self.store is not None and start + size <= len(self.store):
            self._used += -(-size // _ALIGNED) * _ALIGNED
            return self.store[start : start + size].view(shape), self.stored
        if self._spare is None or len(self._spare) < size:
            self._spare = torch.empty(size, dtype=self.dtype)
        return self._spare[:size].view(shape), False

    def _fill(self, tile_RW: Tensor, states_RE: Tensor, span: slice) -> None:
        factor = self.layer.inner
        bias = tile_RW if self.bias_V is None else self.bias_V[span]
        beta = 0.0 if self.bias_V is None else factor
        torch.addmm(bias, states_RE, self.weight_VE[span].t(), beta=beta, alpha=factor, out=tile_RW)
        members, columns_K = self.own(span)
        if self.rows_KE is not None and len(columns_K):
            bias_K = None if self.bias_V is None else bias[columns_K]
            tile_RW[:, columns_K] = factor * functional.linear(states_RE, self.rows_KE[members], bias_K)

    def finished(self, tile_RW: Tensor) -> Tensor:
        """Return the logits of a tile: its products, capped in full precision where a family does that."""
        if self.layer.cap is None:
            return tile_RW
        return tile_RW.to(self.precise).tanh().mul_(self.layer.cap / self.layer.temperature)


def store_for(tokens: int, vocabulary: int, dtype: torch.dtype) -> Tensor | None:
    """Return memory for all logits of tokens, or for as many as are kept; that of an earlier backward pass will do.

    What fits does not depend on what there was before: products may be rounded otherwise at another alignment.
    """
    if not tokens:
        return None
    size = min(STORE, tokens * vocabulary + -(-tokens // ROWS) * _ALIGNED)
    if _FREE and _FREE[0].dtype == dtype and len(_FREE[0]) >= size:
        return _FREE.pop()
    _FREE.clear()
    return torch.empty(size, dtype=dtype)


def give_back(store: Tensor) -> None:
    """Have the next `store_for` take this memory."""
    _FREE[:] = [store]
