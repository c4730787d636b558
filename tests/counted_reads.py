"""Counts how often a host reads a number from its device, and so has to wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CountedReads(TorchDispatchMode):
    """While it is entered, ``seen`` counts reads of single numbers, such as ``.item()`` and ``bool`` of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        self.seen += func._overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def as_on_a_gpu(model: torch.nn.Module) -> None:
    """Let a model on a CPU compute as it would on a GPU: an argument that our trunk does not know leaves it out."""

    def ask(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "return_dict": True}

    model.register_forward_pre_hook(ask, with_kwargs=True)
