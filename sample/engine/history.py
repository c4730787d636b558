"""What the tokens of running samples do to their next logits: penalties of what was there, and ends that are too early.

Letters of array shapes: B rows of the batch, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.sample.engine.logits import penalise_counts, penalise_repeats
from posttrain.sample.engine.running import Running


class History:
    """The tokens that the rows of a batch have had, as far as their knobs look at them."""

    def __init__(self, rows: Sequence[Running], width: int, device: torch.device) -> None:
        """``width`` is the size of the vocabulary."""
        self.rows = rows
        self.seen_BV: Tensor | None = None
        self.counts_BV: Tensor | None = None
        self.any_early = any(row.too_early for row in rows)
        if any(row.params.repetition_penalty != 1 for row in rows):
            self.seen_BV = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
            for place, row in enumerate(rows):
                self.seen_BV[place, torch.tensor([*row.prompt, *row.tokens], device=device)] = True
            self.penalty_B1 = torch.tensor([[row.params.repetition_penalty] for row in rows], device=device)
        if any(row.params.presence_penalty or row.params.frequency_penalty for row in rows):
            self.counts_BV = torch.zeros(len(rows), width, device=device)
            for place, row in enumerate(rows):
                self.note(torch.tensor([place]), torch.tensor(row.tokens, dtype=torch.int64, device=device))
            self.presence_B1 = torch.tensor([[row.params.presence_penalty] for row in rows], device=device)
            self.frequency_B1 = torch.tensor([[row.params.frequency_penalty] for row in rows], device=device)

    @property
    def idle(self) -> bool:
        """Whether it leaves all logits as they are."""
        return self.seen_BV is None and self.counts_BV is None and not self.any_early

    def note(self, places: Tensor, tokens: Tensor) -> None:
        """Take tokens that rows got; the shape of ``places`` goes out to that of ``tokens``."""
        if self.seen_BV is not None:
            self.seen_BV[places, tokens] = True
        if self.counts_BV is not None:
            device = self.counts_BV.device
            where = places.to(device).expand_as(tokens), tokens.to(device)
            self.counts_BV.index_put_(where, torch.ones((), device=device), accumulate=True)

    def weigh(self, logits_BV: Tensor, places: Sequence[int], part: slice | Tensor) -> Tensor:
        """Return the logits of some rows, which ``part`` picks, with penalties, and without ends that are too early."""
        if self.seen_BV is not None:
            logits_BV = penalise_repeats(logits_BV, self.seen_BV[part], self.penalty_B1[part])
        if self.counts_BV is not None:
            penalties = self.presence_B1[part], self.frequency_B1[part]
            logits_BV = penalise_counts(logits_BV, self.counts_BV[part], *penalties)
        early = [number for number, place in enumerate(places) if self.rows[place].too_early]
        if early:
            logits_BV = logits_BV.clone()
            for number in early:
                ends = sorted(self.rows[places[number]].ending.tokens)
                logits_BV[number, torch.tensor(ends, device=logits_BV.device)] = -torch.inf
        return logits_BV
