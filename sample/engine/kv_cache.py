"""Keys and values of a batch whose rows come and go, in one preallocated buffer.

The rows are aligned on the right: whatever their lengths, all write their next token to the same column, so a step
copies one column and concatenates nothing. This is left padding, which every architecture and attention kernel of
transformers understands, sliding windows included.

Letters of array shapes: R rows of the buffer, C its columns, B rows of a forward, H heads, T tokens of a forward,
D features of a head.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig

from posttrain.stage.errors import UsageError


class RowCache(Cache):
    """The cache of one model; `aim` says which part of it the next forward reads and extends."""

    def __init__(self, layers: int, rows: int, columns: int = 0) -> None:
        super().__init__(layers=[RowLayer(self) for _ in range(layers)])
        self.rows = rows
        self.columns = columns
        self.part = slice(0, 0)
        self.first = 0
        self.end = 0

    def aim(self, rows: slice, first: int, end: int) -> None:
        """Let the next forward run on ``rows``, read columns from ``first`` on and write from ``end`` on."""
        self.part, self.first, self.end = rows, first, end

    def copy_rows(self, sources: Tensor, targets: Tensor, columns: slice) -> None:
        """Copy columns of rows to other rows."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[targets, :, columns] = buffer[sources, :, columns]

    def move_columns(self, rows: slice, source: slice, target: slice, columns: int) -> None:
        """Move columns of some rows, in buffers of ``columns`` columns."""
        grown = columns > self.columns
        self.columns = columns
        for layer in self.layers:
            if layer.is_initialized:
                states = layer.keys[rows, :, source].clone(), layer.values[rows, :, source].clone()
                if grown:
                    layer.lazy_initialization(layer.keys, layer.values)
                layer.keys[rows, :, target], layer.values[rows, :, target] = states

    def take(self, rows: Tensor, columns: slice, more: int) -> RowCache:
        """Return a cache that begins with a copy of some columns of some rows and has ``more`` columns free."""
        width = columns.stop - columns.start
        taken = RowCache(len(self.layers), len(rows), width + more)
        for layer, copy in zip(self.layers, taken.layers, strict=True):
            copy.lazy_initialization(layer.keys, layer.values)
            copy.keys[:, :, :width] = layer.keys[rows, :, columns]
            copy.values[:, :, :width] = layer.values[rows, :, columns]
        return taken

    def paste(self, row: int, columns: slice, other: RowCache) -> None:
        """Copy another cache's first columns, of its only row, to some columns of a row."""
        count = columns.stop - columns.start
        for layer, copy in zip(self.layers, other.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(copy.keys, copy.values)
            layer.keys[row, :, columns] = copy.keys[0, :, :count]
            layer.values[row, :, columns] = copy.values[0, :, :count]

    def put(self, rows: Tensor, columns: slice, taken: RowCache) -> None:
        """Store another cache's columns in some rows."""
        for layer, copy in zip(self.layers, taken.layers, strict=True):
            layer.keys[rows, :, columns] = copy.keys
            layer.values[rows, :, columns] = copy.values


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer, of shape (R, H, C, D)."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = weakref.ref(cache)  # or only the collector of cycles would free the buffers

    @property
    def cache(self) -> RowCache:
        """The cache that this is a layer of."""
        cache = self._cache()
        assert cache is not None
        return cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers for states of the given shapes.

        In memory a token's heads lie together, which attention reads faster than heads apart. The buffers begin as
        zeros: attention weighs what a mask hides with 0, and 0 times the NaN that memory may hold is NaN.
        """
        self.keys, self.values = (
            states.new_zeros(self.cache.rows, self.cache.columns, states.shape[1], states.shape[3]).transpose(1, 2)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store states of shape (B, H, T, D) and return them with those before: views of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self.cache
        part, first, end = cache.part, cache.first, cache.end
        after = end + key_states.shape[2]
        self.keys[part, :, end:after] = key_states
        self.values[part, :, end:after] = value_states
        return self.keys[part, :, first:after], self.values[part, :, first:after]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the next forward attends to, and 0: the first of them is the mask's first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many columns the next forward reads."""
        cache = self.cache
        return cache.end - cache.first

    def get_max_length(self) -> int:
        """Return -1: the buffer grows."""
        return -1


def attention_layers(config: PreTrainedConfig, takes_cache: bool = True) -> int:
    """Return how many layers keep keys and values; a sliding window needs nothing else, since masks narrow it.

    ``takes_cache`` says whether the model's forward takes a cache at all. Raises UsageError when it does not, or when a
    layer keeps a state of another kind.
    """
    if not takes_cache:
        raise _refusal(config, "a forward that takes no cache of keys and values")
    try:
        layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    except (AttributeError, KeyError, ValueError):
        raise _refusal(config, "layers of kinds that transformers has no common cache for") from None
    other = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if other:
        raise _refusal(config, f"layers with a state that is not keys and values ({', '.join(sorted(other))})")
    return len(layers)


def _refusal(config: PreTrainedConfig, what: str) -> UsageError:
    return UsageError(
        f"{config.model_type}: {what} cannot be sampled here; use a model with attention layers only, or a server"
    )
