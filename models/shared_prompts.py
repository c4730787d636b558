"""What models compute along the tree of prompts that responses share, see `models.tree`: states, rewards,
log-probabilities.

Letters of array shapes: T tokens of the row, S of them whose states are asked for, E features, N tokens of responses, R
responses.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from posttrain.models.adapters import without_adapter_wrapper
from posttrain.models.cpu.llama_layers import chosen_shared_states, is_known
from posttrain.models.tree.attention import SHARED, block_mask
from posttrain.models.tree.layout import Groups

_KINDS = {"full_attention", "sliding_attention"}
_STATEFUL = "carries a state from token to token"


def why_unshared(model: Any, attention: str) -> str:
    """Return why the responses of a model cannot share their prompt; empty where they can.

    ``attention`` is the implementation that was asked for.
    """
    inner = without_adapter_wrapper(model)
    config, trunk = inner.config.get_text_config(), inner.base_model
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    takes = inspect.signature(trunk.forward).parameters
    reasons = {
        f"attention={attention} knows no tree": attention not in ("auto", "sdpa", "eager", "flex_attention", SHARED),
        _STATEFUL: bool(getattr(inner, "_is_stateful", False)),
        f"has layers of {', '.join(sorted(kinds - _KINDS))}": bool(kinds - _KINDS),
        "has an attention of its own": not type(inner)._supports_attention_backend,
        "takes no positions": "position_ids" not in takes or "kwargs" not in takes,
        "has attention sinks": any(hasattr(module, "sinks") for module in trunk.modules()),
        "attends both ways": bool(getattr(config, "use_bidirectional_attention", False)),
        "balances its experts over padding, too": bool(getattr(config, "output_router_logits", False)),
    }
    found = next((reason for reason, holds in reasons.items() if holds), "")
    return f"{config.model_type} {found}" if found and not found.startswith("attention=") else found


def share_prompts(model: Any, on_gpu: bool) -> Any:
    """Return the model with an attention that knows shared prompts: flex attention on a GPU, else that of `tree`."""
    without_adapter_wrapper(model).set_attn_implementation("flex_attention" if on_gpu else SHARED)
    return model


def shared_states(trunk: Any, ids_1T: Tensor, groups: Groups, chosen_S: Tensor) -> Tensor:
    """Return a trunk's last hidden states ``SE`` at places of a row of shared prompts.

    The trunk is that of a model which went through `share_prompts`.
    """
    chosen_S = chosen_S.to(ids_1T.device)
    if is_known(trunk):
        return chosen_shared_states(trunk, ids_1T, groups, chosen_S)
    positions_1T = groups.positions()[None].to(ids_1T.device)
    seen = _what_is_seen(trunk.config.get_text_config(), groups, ids_1T.device)
    states_SE: Tensor = trunk(input_ids=ids_1T, position_ids=positions_1T, use_cache=False, **seen).last_hidden_state[
        0, chosen_S
    ]
    return states_SE


def with_shared_rewards(classifier: Any) -> Any:
    """Return the classifier with a forward pass that takes ``groups``, and then returns ``logits`` ``R1`` of responses.

    Called without them it does what it did.
    """
    inner = without_adapter_wrapper(classifier)
    alone = inner.forward

    def forward(self: Any, *args: Any, groups: Groups | None = None, **more: Any) -> Any:
        if groups is None:
            return alone(*args, **more)
        states_RE = shared_states(self.base_model, more["input_ids"], groups, groups.last_tokens())
        return SequenceClassifierOutput(logits=self.score(states_RE))

    inner.forward = MethodType(forward, inner)
    return classifier


def _what_is_seen(config: Any, groups: Groups, device: torch.device) -> dict[str, Any]:
    """Return how a trunk is told of the tree: our attention by ``groups``, flex attention by its mask."""
    if config._attn_implementation == SHARED:
        # of four dimensions, so that transformers builds none of its own; nobody reads it
        return {"groups": groups, "attention_mask": torch.empty(1, 1, 0, 0, device=device)}
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if window is None or kinds == {"full_attention"}:
        return {"attention_mask": block_mask(groups, device)}
    if "full_attention" not in kinds:
        return {"attention_mask": block_mask(groups, device, window)}
    masks = {"full_attention": block_mask(groups, device), "sliding_attention": block_mask(groups, device, window)}
    return {"attention_mask": masks}
