"""Weights that nothing trains and that are used for a while in each phase: whole then, in parts in between.

Every process keeps an equal part of each tensor. Put together they are the same bits as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.stage import heartbeat
from posttrain.stage.engine import engine_asked_for, spreads_weights
from posttrain.stage.spec import Distributed


class InParts:
    """Parameters in parts; all processes have to make them whole the same number of times."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self._held: list[tuple[nn.Parameter, torch.Size, Tensor]] = []
        for parameter in parameters:
            size = -(-parameter.numel() // ranks)
            own = parameter.detach().flatten()[rank * size : (rank + 1) * size]
            part = torch.zeros(size, dtype=parameter.dtype, device=parameter.device)
            part[: len(own)] = own
            self._held.append((parameter, parameter.shape, part))
        self.rest()

    @torch.no_grad()
    def gather(self) -> None:
        """Make the parameters whole; a collective operation."""
        for parameter, shape, part in self._held:
            full = part.new_empty(len(part) * dist.get_world_size())
            bits = full.view(torch.uint8)  # whatever the type
            dist.all_gather(list(bits.chunk(dist.get_world_size())), part.view(torch.uint8))
            parameter.data = full[: shape.numel()].view(shape)
            heartbeat.pulse()

    def rest(self) -> None:
        """Keep this process's part alone; no other process needs to."""
        for parameter, _, _ in self._held:
            let_go(parameter)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have the parameters whole within the context."""
        self.gather()
        try:
            yield
        finally:
            self.rest()


def let_go(parameter: nn.Parameter) -> None:
    """Free the memory of a parameter, which is to get other data before it is used."""
    parameter.data = parameter.data.new_empty(0)


def in_parts(model: nn.Module, distributed: Distributed) -> InParts | None:
    """Return a frozen model's weights in parts where the engine spreads those that are trained; None elsewhere."""
    if not spreads_weights(engine_asked_for(distributed)) or distributed.num_processes == 1:
        return None
    return InParts(model.parameters())
