"""Log-probabilities and entropies of chosen tokens, with the least memory and time that their gradients allow.

N tokens, R tokens of a block of them, V tokens of the vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.train.linear import is_plain, products

_ROWS = 256
"""Tokens whose logits are made at once: where no gradient is needed, no more of them are ever held."""
_BLOCK = 2**17
"""Logits that are worked on at once: no second N × V tensor is ever held, and a processor's cache holds them."""


def backbone_and_head(model: Any) -> tuple[Any, Any]:
    """Return the trunk of a causal language model, adapters included, and its output layer."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.base_model, inner.get_output_embeddings()


def head_log_probs(
    model: Any, head: Any, hidden_NH: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of target tokens, given the hidden states that predict them.

    Entropies carry gradients like log-probabilities. An output layer that is more than its weights is called as a
    module, once, so that engines which shard them notice.
    """
    if not is_plain(head):
        return _log_probs(model, head(hidden_NH), targets_N, temperature)
    parts = [
        _log_probs(model, products(states_RH, head)[0], targets_R, temperature)
        for states_RH, targets_R in zip(hidden_NH.split(_ROWS), targets_N.split(_ROWS), strict=True)
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def _log_probs(model: Any, logits_NV: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_NV = scaled_logits(model, logits_NV, temperature)
    logps_N, entropies_N = _ChosenLogProbs.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return logps_N, entropies_N


def scaled_logits(model: Any, logits_NV: Tensor, temperature: float) -> Tensor:
    """Return logits divided by the temperature, after the caps and scales that some families put on them."""
    config = model.config.get_text_config()
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits_NV = torch.tanh(logits_NV / cap) * cap
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits_NV = logits_NV * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits_NV = logits_NV / divisor
    return logits_NV if temperature == 1 else logits_NV / temperature


class _ChosenLogProbs(torch.autograd.Function):
    """log softmax of the targets and the entropy; the logits' own memory holds weights, then the gradient.

    Weights w are exp(x − max x). With p = w / ∑ w: ∂ log p_t / ∂x = onehot_t − p and ∂H / ∂x = −p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        store_NV, keep = logits_NV.detach(), ctx.needs_input_grad[0]
        precise = torch.promote_types(store_NV.dtype, torch.float32)
        logps_N = torch.empty(len(targets_N), device=store_NV.device, dtype=precise)
        entropies_N, totals_N = torch.empty_like(logps_N), torch.empty_like(logps_N)
        for rows in _blocks(store_NV):
            kept_RV = store_NV[rows]
            shifted_RV = kept_RV.to(precise)
            shifted_RV = shifted_RV - shifted_RV.amax(-1, keepdim=True)
            in_place = keep and kept_RV.dtype == precise
            weights_RV = torch.exp(shifted_RV, out=kept_RV if in_place else None)
            if keep and not in_place:
                kept_RV.copy_(weights_RV)
            totals_N[rows] = total_R = weights_RV.sum(-1)
            logps_N[rows] = shifted_RV.gather(-1, targets_N[rows, None]).squeeze(-1) - total_R.log()
            entropies_N[rows] = total_R.log() - shifted_RV.mul_(weights_RV).sum(-1) / total_R
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(store_NV, targets_N, entropies_N, totals_N)
        return logps_N, entropies_N

    @staticmethod
    def backward(ctx: Any, logp_gradient_N: Tensor | None, entropy_gradient_N: Tensor | None) -> tuple[Tensor, None]:
        store_NV, targets_N, entropies_N, totals_N = ctx.saved_tensors
        if logp_gradient_N is None:
            logp_gradient_N = torch.zeros_like(entropies_N)
        for rows in _blocks(store_NV):
            gradient_RV, own_R1, total_R1 = store_NV[rows], logp_gradient_N[rows, None], totals_N[rows, None]
            factor_RV = -own_R1 / total_R1
            if entropy_gradient_N is not None:
                log_RV = gradient_RV.to(entropies_N.dtype).clamp(min=1e-38).log() - total_R1.log()
                factor_RV = factor_RV - entropy_gradient_N[rows, None] / total_R1 * (log_RV + entropies_N[rows, None])
            gradient_RV.mul_(factor_RV)
            gradient_RV.scatter_add_(-1, targets_N[rows, None], own_R1.to(gradient_RV.dtype))
        return store_NV, None


def _blocks(logits_NV: Tensor) -> Iterator[slice]:
    """Yield the rows of one block after the other."""
    rows = max(1, _BLOCK // logits_NV.shape[1])
    for start in range(0, len(logits_NV), rows):
        yield slice(start, start + rows)
