"""Optimizers beside AdamW: Muon for matrices with AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MUON = "kind=muon"
"""What stands in `TrainingArguments.optim_args` where Muon is wanted, which `transformers` has no name for."""


class Pair(torch.optim.Optimizer):
    """Two optimizers of different parameters as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._parts = (first, second)
        self.defaults = second.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of both, the very dictionaries."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """What both remember of their parameters."""
        return {parameter: kept for part in self._parts for parameter, kept in part.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the parameters of both; a closure is not taken."""
        assert closure is None
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def muon(model: Any, decayed: set[str], rate: float, weight_decay: float, of_adamw: dict[str, Any]) -> Pair:
    """Return Muon for the matrices of a model but those of its vocabulary, and AdamW for its other parameters.

    ``decayed`` are the names of parameters whose weights decay, ``of_adamw`` the options of AdamW. Updates of matrices
    are as long as AdamW's would be, so that one rate does for both (Liu et al. 2025).
    """
    of_vocabulary = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [p for _, p in trained if p.ndim == 2 and id(p) not in of_vocabulary]
    taken = {id(parameter) for parameter in matrices}
    others: list[dict[str, Any]] = []
    for decays in (True, False):
        group: list[nn.Parameter] = [p for name, p in trained if id(p) not in taken and (name in decayed) == decays]
        if group:
            others.append({"params": group, "weight_decay": weight_decay * decays})
    first = torch.optim.Muon(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Pair(first, torch.optim.AdamW(others, lr=rate, **of_adamw))
