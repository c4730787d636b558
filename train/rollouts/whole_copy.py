"""A whole copy of a model whose weights an engine keeps in parts, for what a rank does alone.

A forward pass of a model in parts takes all ranks; sampling takes as many as the rank's longest response has tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from posttrain.models.processes import device
from posttrain.stage import heartbeat
from posttrain.stage.engine import engine_asked_for, spreads_weights
from posttrain.stage.spec import Distributed
from posttrain.train.checkpoints.whole_weights import gathered
from posttrain.train.engine.processes import kept_random_state


def whole_copy(build: Callable[[], Any], dtype: str, distributed: Distributed) -> Any | None:
    """Return a second model from ``build``, in the precision of the forward pass; None where the first is whole itself.

    The random state is left as it was.
    """
    if not spreads_weights(engine_asked_for(distributed)):
        return None
    with kept_random_state():
        copy = build()
    return copy.to(device=device(), dtype=getattr(torch, dtype)).eval()


@torch.no_grad()
def refresh(copy: Any, trained: Any) -> None:
    """Give a copy the weights that are trained, as they are now; all ranks must call this."""
    trained.state_dict()  # under FSDP it puts gathered weights back into shards
    weights = dict(trained.named_parameters())
    for name, parameter in copy.named_parameters():
        if name in weights and weights[name].requires_grad:
            heartbeat.pulse()
            parameter.copy_(gathered(weights[name]))
