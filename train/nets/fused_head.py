"""An output layer that gives a model's caller scores of labels, and never holds all logits.

B rows, T positions, N positions that have a label.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, maybe_gather_lm_head_ctx

from posttrain.data.records import IGNORED
from posttrain.models.adapters import without_adapter_wrapper
from posttrain.models.cpu.llama_layers import states_at
from posttrain.models.cpu.output_layer import score_tokens
from posttrain.models.shared_prompts import shared_states
from posttrain.models.token_log_probs import output_layer
from posttrain.models.tree.layout import Groups
from posttrain.stage.errors import UsageError

_KNOWN = {"input_ids", "attention_mask", "position_ids", "use_cache", "labels", "groups"}
"""Arguments that say all that there is about a batch of text; `groups` says it of a row of shared prompts."""


def with_fused_head(model: Any, where: str, *more: str, temperature: float = 1.0, share: bool = True) -> Any:
    """Return the model, which gives log-probabilities and entropies where it is called with ``fused_lm_head=True``.

    ``more`` are other fields of TRL's `FusedCausalLMOutput`; sums of squared probabilities are TRL's also on a CPU.
    ``temperature`` divides the logits, ``share`` is that of `states_at`.
    Raises UsageError for an adapter on the output layer, which that does not know.
    """
    inner = without_adapter_wrapper(model)
    if isinstance(inner.get_output_embeddings(), BaseTunerLayer):
        raise UsageError(
            f"{where}.adapter.target_modules: an adapter on the output layer would not be trained; leave that layer out"
        )
    add_fused_lm_head(inner, temperature=temperature, outputs=("log_probs", "entropy", *more))
    if "log_sum_sq_probs" in more:
        return model
    return fused_on_cpu(model, mean_logits="mean_logits" in more, temperature=temperature, share=share)


def fused_on_cpu(model: Any, mean_logits: bool = False, temperature: float = 1.0, share: bool = True) -> Any:
    """Return a model with TRL's fused output layer whose place ours takes on a CPU, to the same numbers.

    TRL's is written for GPUs: elsewhere it scores every position, with a label or without. ``share`` is that of
    `states_at`.
    """
    inner = without_adapter_wrapper(model)
    theirs = inner.forward

    @functools.wraps(type(inner).forward)  # what a trainer and `generate` take the model's arguments from
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **batch: Any) -> Any:
        ids_BT, labels_BT = batch.get("input_ids"), batch.get("labels")
        balanced = getattr(self.config.get_text_config(), "output_router_logits", False)
        ours = fused_lm_head and not args and not balanced and set(batch) <= _KNOWN
        if not ours or ids_BT is None or labels_BT is None or ids_BT.device.type != "cpu":
            return theirs(*args, fused_lm_head=fused_lm_head, **batch) if fused_lm_head else theirs(*args, **batch)
        labeled_BT = labels_BT[:, 1:] != IGNORED
        states_NH = _states(self.base_model, ids_BT, labeled_BT, share, **batch)
        return _scored(self, states_NH, labels_BT, labeled_BT, mean_logits, temperature)

    inner.forward = types.MethodType(forward, inner)
    return model


def _states(
    trunk: Any,
    ids_BT: Tensor,
    labeled_BT: Tensor,
    share: bool,
    *,
    groups: Groups | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Return the last hidden states ``NH`` before the tokens that have a label."""
    if groups is not None:
        return shared_states(trunk, ids_BT, groups, labeled_BT[0].nonzero().squeeze(1))
    chosen_BT = functional.pad(labeled_BT, (0, 1))
    if attention_mask is None or bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is None and position_ids is None:
        return states_at(trunk, ids_BT, chosen_BT, share)
    given = {"attention_mask": attention_mask, "position_ids": position_ids}
    states_BTH: Tensor = trunk(input_ids=ids_BT, use_cache=False, **given).last_hidden_state
    return states_BTH[chosen_BT]


def _scored(
    model: Any, states_NH: Tensor, labels_BT: Tensor, labeled_BT: Tensor, mean_logits: bool, temperature: float
) -> FusedCausalLMOutput:
    """Return the scores of a batch's labels, each where the token before it stands; zero where there is none."""
    head = model.get_output_embeddings()
    layer = dataclasses.replace(output_layer(model, head, temperature), gathered=maybe_gather_lm_head_ctx)
    found = score_tokens(layer, states_NH, labels_BT[:, 1:][labeled_BT], mean_logits=mean_logits)
    return FusedCausalLMOutput(
        log_probs=_spread(found.log_probs, labeled_BT),
        entropy=_spread(found.entropy, labeled_BT),
        mean_logits=_spread(found.mean_logits, labeled_BT) if mean_logits else None,
        is_top1=_spread(found.is_top1, labeled_BT),
        label_mask=labeled_BT,
    )


def _spread(values_N: Tensor, at_BT: Tensor) -> Tensor:
    """Return values at their positions, zero elsewhere; they hang on the model even where there are none."""
    return values_N.new_zeros(at_BT.shape).masked_scatter(at_BT, values_N)
