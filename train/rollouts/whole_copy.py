"""A whole copy of a model whose weights an engine keeps in parts, for what a rank does alone.

A forward pass of a model in parts takes all ranks; sampling takes as many as the rank's longest response has tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from posttrain.models.processes import device
from posttrain.stage import heartbeat
from posttrain.stage.engine import engine_asked_for, spreads_weights
from posttrain.stage.spec import Distributed
from posttrain.train.checkpoints.whole_weights import gathered
from posttrain.train.engine.processes import kept_random_state
from posttrain.train.nets.in_parts import InParts, let_go


def whole_copy(build: Callable[[], Any], dtype: str, distributed: Distributed) -> Any | None:
    """Return a second model from ``build``, in the precision of the forward pass; None where the first is whole itself.

    The random state is left as it was.
    """
    if not spreads_weights(engine_asked_for(distributed)):
        return None
    with kept_random_state():
        copy = build()
    return copy.to(device=device(), dtype=getattr(torch, dtype)).eval()


class Resting:
    """A whole copy's weights, which are there for the time of a rollout."""

    def __init__(self, copy: Any, trained: Any) -> None:
        """``trained`` is the model whose trained weights the copy takes on."""
        names = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
        own = dict(copy.named_parameters())
        self._taken_on = {name: parameter for name, parameter in own.items() if name in names}
        kept = [parameter for name, parameter in own.items() if name not in names]
        self._kept = InParts(kept) if dist.is_initialized() else None
        self.rest()

    @torch.no_grad()
    def refresh(self, trained: Any) -> None:
        """Give the copy the weights that are trained, as they are now, and its own; all ranks must call this."""
        trained.state_dict()  # under FSDP it puts gathered weights back into shards
        weights = dict(trained.named_parameters())
        for name, parameter in self._taken_on.items():
            heartbeat.pulse()
            parameter.data = gathered(weights[name]).to(parameter.device, parameter.dtype, copy=True)
        if self._kept is not None:
            self._kept.gather()

    def rest(self) -> None:
        """Free what the copy takes; no other rank needs to."""
        for parameter in self._taken_on.values():
            let_go(parameter)
        if self._kept is not None:
            self._kept.rest()
