"""Log-probabilities and entropies of chosen tokens, with the least memory and time that their gradients allow.

N tokens, R tokens of a block of them, V tokens of the vocabulary, H hidden size; B rows of a batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from posttrain.models.adapters import without_adapter_wrapper
from posttrain.models.batching import begun_alike, pad_rows
from posttrain.models.cpu.linear import is_plain
from posttrain.models.cpu.llama_layers import is_known, states_at
from posttrain.models.cpu.logit_tiles import OutputLayer
from posttrain.models.cpu.output_layer import score_tokens
from posttrain.models.load import evaluating
from posttrain.models.token_rows import TrainedRowsModule, own_rows, rows_over_plain, whole
from posttrain.stage.progress import track

_ROWS = 256
"""Tokens whose logits are made at once: where no gradient is needed, no more of them are ever held."""
_BLOCK = 2**17
"""Logits that are worked on at once: no second N × V tensor is ever held, and a processor's cache holds them."""


def backbone_and_head(model: Any) -> tuple[Any, Any]:
    """Return the trunk of a causal language model, adapters included, and its output layer."""
    inner = without_adapter_wrapper(model)
    return inner.base_model, inner.get_output_embeddings()


def states_before(trunk: Any, ids_BT: Tensor, chosen_BT: Tensor, share: bool = True) -> Tensor:
    """Return the states ``NH`` from which chosen tokens are predicted; rows are padded on the right."""
    return states_at(trunk, ids_BT, functional.pad(chosen_BT[:, 1:], (0, 1)), share)


@torch.no_grad()
def response_log_probs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    batches: Sequence[list[int]],
    temperature: float = 1.0,
    share: bool = True,
) -> dict[int, NDArray[np.float32]]:
    """Return the log-probability of each token of the responses in ``batches``, in nats, by the response's number.

    ``batches`` are the numbers of responses that run together, see `models.batching.by_tokens`; with ``share``, on a
    trunk that computes once what rows begin alike with, responses to one prompt do. ``temperature`` divides the logits,
    as in sampling. The model is in evaluation mode meanwhile, since dropout is no part of a policy. A model whose
    logits are more than its output layer's product is asked for them.
    """
    trunk, head = backbone_and_head(model)
    device = next(model.parameters()).device
    by_head = head_gives_logits(model)
    found: dict[int, NDArray[np.float32]] = {}
    with evaluating(model):
        if share and by_head and is_known(trunk):
            whole_rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
            batches = begun_alike(whole_rows, batches)
        for rows in track(batches, sum(map(len, batches)), "log-probabilities"):
            batch = response_batch([(prompts[n], responses[n]) for n in rows])
            ids_BT, chosen_BT = (part.to(device) for part in batch)
            if by_head:
                hidden_NH = states_before(trunk, ids_BT, chosen_BT, share)
                logps_N, _ = head_log_probs(model, head, hidden_NH, ids_BT[chosen_BT], temperature)
            else:
                logits_NV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1][chosen_BT[:, 1:]].float()
                logps_N = -functional.cross_entropy(logits_NV / temperature, ids_BT[chosen_BT], reduction="none")
            found.update(zip(rows, split_by_response(logps_N, [responses[n] for n in rows]), strict=True))
    return found


@torch.no_grad()
def head_gives_logits(model: Any) -> bool:
    """Return whether `head_log_probs` gives what a model's own logits say, tried on a few tokens.

    Some families scale or shift between their last state and their logits in ways that no configuration key tells.
    """
    trunk, head = backbone_and_head(model)
    device = next(model.parameters()).device
    ids_BT = (torch.arange(8, device=device) * 7 % model.config.get_text_config().vocab_size)[None]
    chosen_BT = torch.ones_like(ids_BT, dtype=torch.bool).index_fill(1, torch.tensor([0], device=device), False)
    ours_N, _ = head_log_probs(model, head, states_before(trunk, ids_BT, chosen_BT), ids_BT[chosen_BT])
    logits_NV = model(input_ids=ids_BT, use_cache=False).logits[0, :-1].float()
    theirs_N = -functional.cross_entropy(logits_NV, ids_BT[chosen_BT], reduction="none")
    tolerance = 0.1 if next(model.parameters()).dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool(((ours_N - theirs_N).abs() <= tolerance * theirs_N.abs().clamp(min=1)).all())


def response_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Return ``ids_BT`` of prompts with their responses, and the mask of the responses' tokens ``chosen_BT``."""
    ids_BT, mask_BT = pad_rows([[*prompt, *response] for prompt, response in rows], padding)
    prompts_B1 = torch.tensor([[len(prompt)] for prompt, _ in rows])
    return ids_BT, (torch.arange(ids_BT.shape[1]) >= prompts_B1) & mask_BT.bool()


def split_by_response(values_N: Tensor, responses: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Return each response's part of values that stand one behind the other."""
    ends = np.cumsum([len(response) for response in responses])[:-1]
    return [part.copy() for part in np.split(values_N.float().cpu().numpy(), ends)]


def head_log_probs(
    model: Any, head: Any, hidden_NH: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of target tokens, given the hidden states that predict them.

    Entropies carry gradients like log-probabilities. An output layer that is more than its weights is called as a
    module, once, so that engines which shard them notice; one whose trained rows alone are more, in parts.
    """
    if is_plain(head) or (rows_over_plain(head) and own_rows(head) is not None):
        found = score_tokens(output_layer(model, head, temperature), hidden_NH, targets_N)
        return found.log_probs, found.entropy
    if not rows_over_plain(head):
        return _log_probs(model, head(hidden_NH), targets_N, temperature)
    parts = [
        _log_probs(model, head(states_RH), targets_R, temperature)
        for states_RH, targets_R in zip(hidden_NH.split(_ROWS), targets_N.split(_ROWS), strict=True)
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def output_layer(model: Any, head: Any, temperature: float = 1.0) -> OutputLayer:
    """Return the weights of a model's output layer ``head`` and what the model makes of their products.

    Rows that an adapter trains stand apart, so that no gradient is made of all others. Weights that an engine keeps in
    parts as tensors of its own are put together.
    """
    config = model.config.get_text_config()
    inner, apart = head, own_rows(head) if isinstance(head, TrainedRowsModule) else None
    tokens: tuple[int, ...] = ()
    rows_KE = None
    if apart is not None:
        inner, (tokens, rows_KE) = head.original_module, apart
    bias = None if inner.bias is None else whole(inner.bias)
    return OutputLayer(whole(inner.weight), bias, tokens, rows_KE, logit_scale(config), logit_cap(config), temperature)


def _log_probs(model: Any, logits_NV: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_NV = scaled_logits(model, logits_NV, temperature)
    logps_N, entropies_N = _ChosenLogProbs.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return logps_N, entropies_N


def scaled_logits(model: Any, logits_NV: Tensor, temperature: float) -> Tensor:
    """Return logits divided by the temperature, after the scales and caps that some families put on them."""
    config = model.config.get_text_config()
    if (scale := logit_scale(config)) != 1:
        logits_NV = logits_NV * scale
    if (cap := logit_cap(config)) is not None:
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV if temperature == 1 else logits_NV / temperature


def logit_scale(config: Any) -> float:
    """Return the factor that a family puts on the products of its output layer."""
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale *= 1.0 if (own := getattr(config, name, None)) is None else own
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        scale *= scaling if config.model_type == "hyperclovax" else 1 / scaling
    return scale


def logit_cap(config: Any) -> float | None:
    """Return what a family's logits come near to at most, if anything."""
    caps = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")]
    return next((cap for cap in caps if cap is not None), None)


class _ChosenLogProbs(torch.autograd.Function):
    """log softmax of the targets and the entropy; the logits' own memory holds weights, then the gradient.

    Weights w are exp(x − max x). With p = w / ∑ w: ∂ log p_t / ∂x = onehot_t − p and ∂H / ∂x = −p (log p + H). At the
    target 1 − p is −expm1(log p): the difference of two numbers near 1 would be all rounding in bfloat16.
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
        ctx.save_for_backward(store_NV, targets_N, logps_N, entropies_N, totals_N)
        return logps_N, entropies_N

    @staticmethod
    def backward(ctx: Any, logp_gradient_N: Tensor | None, entropy_gradient_N: Tensor | None) -> tuple[Tensor, None]:
        store_NV, targets_N, logps_N, entropies_N, totals_N = ctx.saved_tensors
        if logp_gradient_N is None:
            logp_gradient_N = torch.zeros_like(entropies_N)
        for rows in _blocks(store_NV):
            gradient_RV, own_R1, total_R1 = store_NV[rows], logp_gradient_N[rows, None], totals_N[rows, None]
            factor_RV = -own_R1 / total_R1
            if entropy_gradient_N is not None:
                log_RV = gradient_RV.to(entropies_N.dtype).clamp(min=1e-38).log() - total_R1.log()
                factor_RV = factor_RV - entropy_gradient_N[rows, None] / total_R1 * (log_RV + entropies_N[rows, None])
            gradient_RV.mul_(factor_RV)
            of_target_R1 = -torch.expm1(logps_N[rows, None]) * own_R1
            if entropy_gradient_N is not None:
                surprise_R1 = logps_N[rows, None] + entropies_N[rows, None]
                of_target_R1 -= entropy_gradient_N[rows, None] * logps_N[rows, None].exp() * surprise_R1
            gradient_RV.scatter_(-1, targets_N[rows, None], of_target_R1.to(gradient_RV.dtype))
        return store_NV, None


def _blocks(logits_NV: Tensor) -> Iterator[slice]:
    """Yield the rows of one block after the other."""
    rows = max(1, _BLOCK // logits_NV.shape[1])
    for start in range(0, len(logits_NV), rows):
        yield slice(start, start + rows)
