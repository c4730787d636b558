"""A model's forward over a running batch: prompts enter, every row takes a token, rows leave.

Letters of array shapes: B rows of the batch, P rows of prompts, T tokens of a forward, C columns that it attends to,
V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.batching import pad_rows
from posttrain.sample.engine.kv_cache import RowCache, attention_layers
from posttrain.sample.engine.llama_step import Forward, llama_forward

MIN_COLUMNS = 512
"""Columns that the cache begins with, if rows may come to have so many tokens; then it doubles."""
MIN_SLACK = 64
"""Columns that the cache has beyond its longest row; when they are used up, the rows move."""
CHUNK_TOKENS = 1024
"""Most tokens of a row that run at once."""
MIN_SHARED = 128
"""Fewest tokens with which prompts must begin alike for these to be run once."""


class Decoder:
    """The rows of a running batch, their cache and the model that extends them.

    Every row ends at column ``end`` of the cache and starts at its own, so its length is the difference.
    """

    def __init__(self, model: PreTrainedModel, rows: int, longest: int, *, others_wait: bool = True) -> None:
        """``longest`` is how many tokens a row may come to have.

        Where ``others_wait`` for the place of rows that end, the cache has more columns than that, since new rows end
        where the old ones do.

        Raises UsageError when the model keeps a state that is not keys and values.
        """
        self.device = model.device
        self.cache = RowCache(attention_layers(model.config, "past_key_values" in forward_arguments(model)), rows)
        self.forward = llama_forward(model) or any_forward(model)
        self.longest = longest
        self.slack = max(MIN_SLACK, longest // 4) if others_wait else 0
        self.end = 0
        self.starts: list[int] = []
        self.starts_B1 = torch.empty(0, 1, dtype=torch.int64)
        self.prefix: list[int] = []
        self.prefix_cache = RowCache(0, 1)

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """Run prompts, each once, and append as many rows of each as wanted.

        Returns the rows' next logits, of shape (B, V), the rows of the first prompt first.
        """
        width = max(map(len, prompts))
        self._reserve(width, 0)
        first, old = self.end - width, len(self.starts)
        shared = shared_tokens(prompts, self.prefix)
        if shared:
            logits_PV = self._run_behind_prefix(prompts, shared, old)
        else:
            ids_PT, mask_PT = pad_rows(prompts, 0, "left")
            positions_PT = (mask_PT.cumsum(-1) - 1).clamp_(min=0)
            logits_PV = self._run_in_chunks(
                self.cache, slice(old, old + len(prompts)), first, 0, (ids_PT, mask_PT, positions_PT)
            )
        if max(copies) == 1:
            self._place([*self.starts, *(self.end - len(prompt) for prompt in prompts)])
            return logits_PV
        sources_B = torch.arange(len(prompts)).repeat_interleave(torch.tensor(copies))
        targets_B = torch.arange(old, old + len(sources_B))
        self.cache.copy_rows(old + sources_B, targets_B, slice(first, self.end))
        self._place([*self.starts, *(self.end - len(prompts[source]) for source in sources_B.tolist())])
        return logits_PV[sources_B.to(self.device)]

    def _run_behind_prefix(self, prompts: Sequence[Sequence[int]], shared: int, old: int) -> Tensor:
        """Run prompts that begin with the same tokens: those once, then the last tokens of all, equally many of each.

        Returns the logits after the prompts, which become the rows from ``old`` on.
        """
        prefix = list(prompts[0][:shared])
        if prefix != self.prefix:
            self.prefix = prefix
            self.prefix_cache = RowCache(len(self.cache.layers), 1, shared)
            ids_1T = torch.tensor([prefix])
            parts = (ids_1T, torch.ones_like(ids_1T), torch.arange(shared)[None])
            self._run_in_chunks(self.prefix_cache, slice(0, 1), 0, 0, parts)
        more = max(map(len, prompts)) - shared
        starts = [self.end - len(prompt) for prompt in prompts]
        for row, start in enumerate(starts, start=old):
            self.cache.paste(row, slice(start, self.end - more), self.prefix_cache)
        ids_PT = torch.tensor([prompt[-more:] for prompt in prompts])
        mask_PC = torch.arange(min(starts), self.end) >= torch.tensor(starts)[:, None]
        positions_PT = torch.tensor([len(prompt) - more for prompt in prompts])[:, None] + torch.arange(more)
        done = self.end - more - min(starts)
        parts = (ids_PT, mask_PC, positions_PT)
        return self._run_in_chunks(self.cache, slice(old, old + len(prompts)), min(starts), done, parts)

    def _run_in_chunks(
        self, cache: RowCache, rows: slice, first: int, done: int, parts: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Append tokens to some rows, a few at a time: a mask has as many entries as tokens times columns.

        ``parts`` are ids and positions (P, T) of the tokens, and the mask (P, C) of the columns from ``first`` on, of
        which ``done`` are there already. Returns the logits after the last token: shape (P, V).
        """
        ids_PT, mask_PC, positions_PT = parts
        logits_PTV = torch.empty(0)
        for begin in range(0, ids_PT.shape[1], CHUNK_TOKENS):
            part = slice(begin, begin + CHUNK_TOKENS)
            cache.aim(rows, first, first + done + begin)
            mask = mask_PC[:, : done + begin + ids_PT[:, part].shape[1]]
            logits_PTV = self._forward(cache, ids_PT[:, part], mask, positions_PT[:, part], 1)
        return logits_PTV[:, -1]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to every row and return their next logits, of shape (B, V)."""
        self._reserve(0, 1)
        first = min(self.starts)
        self.cache.aim(slice(0, len(self.starts)), first, self.end)
        mask_BC = torch.arange(first, self.end + 1, device=self.device) >= self.starts_B1
        logits_BTV = self._forward(self.cache, tokens_B[:, None], mask_BC, self.end - self.starts_B1, 1)
        self.end += 1
        return logits_BTV[:, -1]

    def extend(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append several tokens, equally many, to some rows, and return the logits after each: shape (P, T, V).

        Those rows run by themselves and move to the left, so that all rows end at the same column again.
        """
        more = len(tokens[0])
        self._reserve(self.end - min(self.starts[row] for row in rows) + more, 0)
        index_P = torch.tensor(rows, device=self.device)
        starts_P1 = self.starts_B1[index_P]
        first = min(self.starts[row] for row in rows)
        taken = self.cache.take(index_P, slice(first, self.end), more)
        taken.aim(slice(0, len(rows)), 0, self.end - first)
        columns_C = torch.arange(first, self.end + more, device=self.device)
        positions_PT = columns_C[-more:] - starts_P1
        logits_PTV = self._forward(taken, torch.tensor(tokens), columns_C >= starts_P1, positions_PT, more)
        self.cache.put(index_P, slice(first - more, self.end), taken)
        self._place([start - more if row in set(rows) else start for row, start in enumerate(self.starts)])
        return logits_PTV

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but some, and return which old row each row now is.

        Rows from the back fill the gaps, so that few are copied.
        """
        kept = set(rows)
        gaps = [row for row in range(len(kept)) if row not in kept]
        tails = [row for row in sorted(kept) if row >= len(kept)]
        moved = dict(zip(gaps, tails, strict=True))
        origins = [moved.get(row, row) for row in range(len(kept))]
        self.rearrange(origins)
        return origins

    def rearrange(self, origins: Sequence[int]) -> None:
        """Make row ``i`` a copy of what row ``origins[i]`` was; rows that are not named are gone."""
        targets = [row for row, origin in enumerate(origins) if row != origin]
        if targets:
            sources = [origins[row] for row in targets]
            columns = slice(min(self.starts[row] for row in sources), self.end)
            self.cache.copy_rows(torch.tensor(sources), torch.tensor(targets), columns)
        self._place([self.starts[origin] for origin in origins])

    def _place(self, starts: list[int]) -> None:
        self.starts = starts
        self.starts_B1 = torch.tensor(starts, dtype=torch.int64, device=self.device)[:, None]

    def _reserve(self, longest: int, more: int) -> None:
        """Make room for a row of ``longest`` tokens left of the end, and for ``more`` columns right of it."""
        if longest <= self.end and self.end + more <= self.cache.columns:
            return
        first = min(self.starts, default=self.end)
        longest = max(longest, self.end - first)
        if longest + self.slack > self.cache.columns:
            columns = min(max(2 * longest, MIN_COLUMNS), self.longest) + self.slack
        else:
            columns = self.cache.columns
        shift = longest - self.end
        source, target = slice(first, self.end), slice(first + shift, longest)
        self.cache.move_columns(slice(0, len(self.starts)), source, target, columns)
        self.end = longest
        self._place([start + shift for start in self.starts])

    def _forward(self, cache: RowCache, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor, last: int) -> Tensor:
        """Return the logits after the ``last`` tokens, in float32: shape (B, last, V)."""
        ids_BT, mask_BC, positions_BT = (part.to(self.device) for part in (ids_BT, mask_BC, positions_BT))
        return self.forward(cache, ids_BT, mask_BC, positions_BT, last).float()


def shared_tokens(prompts: Sequence[Sequence[int]], known: Sequence[int]) -> int:
    """Return with how many tokens prompts begin alike, if those are most of each and need not be run for each; else 0.

    ``known`` are tokens that were run before, which a single prompt may begin with.
    """
    low, high, known = min(map(list, prompts)), max(map(list, prompts)), list(known)
    most = min(map(len, prompts)) - 1
    if MIN_SHARED <= len(known) <= most and low[: len(known)] == high[: len(known)] == known:
        shared = len(known)
    else:
        shared = min(_alike(low, high), most) if len(prompts) > 1 else 0
    return shared if shared >= MIN_SHARED and max(map(len, prompts)) <= 2 * shared else 0


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def forward_arguments(model: PreTrainedModel) -> set[str]:
    """Return the names of what a model's forward takes, adapters left out."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)


def any_forward(model: PreTrainedModel) -> Forward:
    """Return the forward of any causal language model of transformers, adapters and quantised layers included."""
    known = forward_arguments(model)

    def forward(cache: RowCache, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor, last: int) -> Tensor:
        optional = {"position_ids": positions_BT, "logits_to_keep": last}
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BC,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in known},
        )
        logits_BTV: Tensor = output.logits[:, -last:]
        return logits_BTV

    return forward
