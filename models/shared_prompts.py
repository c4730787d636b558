"""What models compute along the tree of prompts that responses share, see `models.tree`: states, rewards,
log-probabilities.

Letters of array shapes: T tokens of the row, S of them whose states are asked for, E features, N tokens of responses, R
responses.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from posttrain.data.records import IGNORED
from posttrain.models.adapters import without_adapter_wrapper
from posttrain.models.cpu.llama_layers import chosen_shared_states, is_known
from posttrain.models.load import evaluating
from posttrain.models.packing import best_fit_decreasing
from posttrain.models.token_log_probs import backbone_and_head, head_log_probs, response_log_probs, split_by_response
from posttrain.models.tree.attention import SHARED, block_mask
from posttrain.models.tree.layout import Groups, lay_out_to_predict
from posttrain.stage.progress import track

Prompted = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and its responses."""
Logps = NDArray[np.float32]
"""Log-probabilities of a response's tokens."""
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
    told = along_tree(trunk, groups, ids_1T.device)
    states_1TE: Tensor = trunk(input_ids=ids_1T, use_cache=False, **told).last_hidden_state
    return states_1TE[0, chosen_S]


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


def along_tree(model: Any, groups: Groups, device: torch.device) -> dict[str, Any]:
    """Return the arguments that tell a model, or its trunk, of the tree, beside the tokens."""
    seen = _what_is_seen(model.config.get_text_config(), groups, device)
    return {"position_ids": groups.positions()[None].to(device), **seen}


@torch.no_grad()
def shared_log_probs(model: Any, rows: Sequence[Prompted], batches: Sequence[list[int]]) -> dict[int, list[Logps]]:
    """Return the log-probabilities of the tokens of each response, in nats, by the number of its row.

    ``model`` went through `share_prompts`; ``batches`` are the numbers of rows that lie end to end, see `by_budget`.
    The model is in evaluation mode meanwhile.
    """
    trunk, head = backbone_and_head(model)
    device = next(model.parameters()).device
    found: dict[int, list[Logps]] = {}
    with evaluating(model):
        for numbers in track(batches, sum(map(len, batches)), "log-probabilities"):
            ids_1T, labels_1T, groups = lay_out_to_predict([rows[number] for number in numbers])
            labeled_N = (labels_1T[0] != IGNORED).nonzero().squeeze(1)
            hidden_NE = shared_states(trunk, ids_1T.to(device), groups, labeled_N - 1)
            logps_N, _ = head_log_probs(model, head, hidden_NE, labels_1T[0, labeled_N].to(device))
            responses = [response for number in numbers for response in rows[number][1]]
            parts = iter(split_by_response(logps_N, responses))
            found |= {number: [next(parts) for _ in rows[number][1]] for number in numbers}
    return found


def scores_as_alone(model: Any) -> bool:
    """Return whether a few made-up responses that share a prompt have the log-probabilities which they have alone."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = [number * 7 % vocabulary for number in range(1, 20)]
    prompt, responses = tokens[:9], [tokens[9:12], tokens[12:]]
    (shared,) = shared_log_probs(model, [(prompt, responses)], [[0]]).values()
    alone = response_log_probs(model, [prompt] * 2, responses, [[0, 1]])
    tolerance = 0.1 if next(model.parameters()).dtype in (torch.bfloat16, torch.float16) else 1e-3
    return all(bool(np.allclose(shared[number], alone[number], tolerance, tolerance)) for number in alone)


def by_budget(rows: Sequence[Prompted], batch_tokens: int) -> list[list[int]]:
    """Return the numbers of rows in batches of at most that many tokens, each prompt counted once; the fullest first.

    A row longer than that is a batch of its own.
    """
    lengths = [len(prompt) + sum(len(response) + 1 for response in responses) for prompt, responses in rows]
    alone = [number for number, length in enumerate(lengths) if length > batch_tokens]
    others = [number for number, length in enumerate(lengths) if length <= batch_tokens]
    packs = best_fit_decreasing([lengths[number] for number in others], batch_tokens)
    batches = [[number] for number in alone] + [[others[place] for place in pack] for pack in packs]
    return sorted(batches, key=lambda batch: (-sum(lengths[number] for number in batch), batch))


def _what_is_seen(config: Any, groups: Groups, device: torch.device) -> dict[str, Any]:
    """Return what a token sees: for our attention as ``groups``, for flex attention as its mask."""
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
