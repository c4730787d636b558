"""Log-probabilities and entropies of chosen tokens, with the least memory and time that their gradients allow.

N tokens, V tokens of the vocabulary, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 16
"""Rows that are worked on at once: no second N × V tensor is ever held, and a processor's cache holds them."""


def backbone_and_head(model: Any) -> tuple[Any, Any]:
    """Return the trunk of a causal language model, adapters included, and its output layer."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.base_model, inner.get_output_embeddings()


def head_log_probs(
    model: Any, head: Any, hidden_NH: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of target tokens, given the hidden states that predict them.

    Entropies carry gradients like log-probabilities. The output layer is called as a module, so that engines which
    shard its weights notice.
    """
    logits_NV = scaled_logits(model, head(hidden_NH), temperature)
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
    """log softmax of the targets and the entropy; the logits' own memory holds the probabilities, then the gradient.

    With p = softmax(x): ∂ log p_t / ∂x = onehot_t − p and ∂H / ∂x = −p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        store_NV = logits_NV.detach()
        precise = torch.promote_types(store_NV.dtype, torch.float32)
        logps_N = torch.empty(len(targets_N), device=store_NV.device, dtype=precise)
        entropies_N = torch.empty_like(logps_N)
        for start in range(0, len(targets_N), _ROWS):
            rows = slice(start, start + _ROWS)
            shifted_RV = store_NV[rows].to(precise)
            shifted_RV = shifted_RV - shifted_RV.amax(-1, keepdim=True)
            weights_RV = shifted_RV.exp()
            total_R = weights_RV.sum(-1)
            logps_N[rows] = shifted_RV.gather(-1, targets_N[rows, None]).squeeze(-1) - total_R.log()
            entropies_N[rows] = total_R.log() - torch.linalg.vecdot(weights_RV, shifted_RV) / total_R
            if ctx.needs_input_grad[0]:
                store_NV[rows] = weights_RV.div_(total_R[:, None])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(store_NV, targets_N, entropies_N)
        return logps_N, entropies_N

    @staticmethod
    def backward(ctx: Any, logp_gradient_N: Tensor | None, entropy_gradient_N: Tensor | None) -> tuple[Tensor, None]:
        store_NV, targets_N, entropies_N = ctx.saved_tensors
        if logp_gradient_N is None:
            logp_gradient_N = torch.zeros_like(entropies_N)
        for start in range(0, len(targets_N), _ROWS):
            rows = slice(start, start + _ROWS)
            gradient_RV, own_R1 = store_NV[rows], logp_gradient_N[rows, None]
            factor_RV = -own_R1
            if entropy_gradient_N is not None:
                log_RV = gradient_RV.to(entropies_N.dtype).clamp(min=1e-38).log()
                factor_RV = factor_RV - entropy_gradient_N[rows, None] * (log_RV + entropies_N[rows, None])
            gradient_RV.mul_(factor_RV)
            gradient_RV.scatter_add_(-1, targets_N[rows, None], own_R1.to(gradient_RV.dtype))
        return store_NV, None
