"""Weights in the precision of the forward pass, for the time of a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def cast_once(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Hold the weights of linear maps in a lower precision inside, and have the very parameters back afterwards.

    Autocast would cast each of them at each token: it keeps what it cast where gradients are wanted alone. What is
    computed is the same to the bit, since linear maps are what it computes in that precision.
    """
    linears = [
        module for module in model.modules() if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32
    ]
    weights = [module.weight for module in linears]
    try:
        for module, weight in zip(linears, weights, strict=True):
            module.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, weight in zip(linears, weights, strict=True):
            module.weight = weight
