"""The frozen model that a policy is held to: a copy, or the policy itself with its adapter switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from posttrain.models.adapters import AdapterKind
from posttrain.models.load import is_adapter, load_policy
from posttrain.stage.spec import Distributed
from posttrain.train.config.common import Dtype
from posttrain.train.nets.in_parts import InParts, in_parts

_ADAPTER = "reference"


class Reference:
    """Where the reference's weights are; `for_policy` says how to use them beside a policy."""

    def __init__(self, source: Path, model: Any, parts: InParts | None = None) -> None:
        self.source = source
        self.model = model
        """A frozen copy; None where the policy's own backbone serves."""
        self.parts = parts
        """Its weights, where they are whole only while they are used."""

    def for_policy(self, policy: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        """Return a function whose context gives the reference model."""
        if self.model is not None:
            return lambda: _whole(self.model, self.parts)
        if is_adapter(self.source):
            policy.load_adapter(str(self.source), adapter_name=_ADAPTER, is_trainable=False)
            return lambda: _with_adapter(policy)
        return lambda: _without_adapter(policy)

    def release(self, policy: Any) -> None:
        """Take from a policy what `for_policy` put into it, so that it can be saved alone."""
        if _ADAPTER in getattr(policy, "peft_config", {}):
            policy.delete_adapter(_ADAPTER)


def reference_of(
    source: Path,
    adapter: AdapterKind,
    dtype: Dtype,
    attention: str,
    device: torch.device,
    distributed: Distributed,
) -> Reference:
    """Return the reference of a policy that starts from ``source``: with adapters it needs no weights of its own.

    Where the engine spreads weights, its own are in parts between uses.
    """
    if adapter != "full":
        return Reference(source, None)
    model = load_policy(source, dtype, attention).to(device).eval().requires_grad_(False)
    return Reference(source, model, in_parts(model, distributed))


@contextlib.contextmanager
def _whole(model: Any, parts: InParts | None) -> Iterator[Any]:
    """Give a frozen model with all its weights."""
    with parts.whole() if parts is not None else contextlib.nullcontext():
        yield model


@contextlib.contextmanager
def _without_adapter(policy: Any) -> Iterator[Any]:
    """Give the bare backbone that a fresh adapter was put on."""
    with policy.disable_adapter():
        yield policy


@contextlib.contextmanager
def _with_adapter(policy: Any) -> Iterator[Any]:
    """Give the backbone under the adapter that training started from."""
    policy.base_model.set_adapter(_ADAPTER, inference_mode=True)
    try:
        yield policy
    finally:
        policy.base_model.set_adapter("default")
