"""Attention along the tree of `layout`, as an implementation that transformers' models can be given.

On a CPU no mask is needed where nothing but the tree decides what a token sees: a prompt sees itself causally, the
responses of a group see their prompt whole, and each sees itself causally. What a response finds in its prompt and in
itself is put together by the sums of its exponentials; in the backward pass both parts are given the whole's, which
makes their gradients exact (Liu et al. 2023, ring attention). A sliding window shorter than a row, a cap on scores and
other devices take a mask, one a group, so that the cost never is that of the whole row squared.

Letters of array shapes: H heads, T tokens of the row, D features of a head, S tokens of one group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from posttrain.models.tree.layout import Groups, visible
from posttrain.stage.errors import UsageError

Qkv = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
SHARED = "shared_prompts"
"""The name under which transformers knows `attend`."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    module: Any,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    *,
    groups: Groups | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return what a layer's heads read ``1THD``, as transformers' implementations do; dropout is not known.

    Without ``groups`` the rows are not shared, and ``attention_mask`` is that of SDPA. Raises UsageError for a family
    that does not say which window a layer has.
    """
    repeats = query_1HTD.shape[1] // key_1HTD.shape[1]
    qkv = (query_1HTD, key_1HTD.repeat_interleave(repeats, 1), value_1HTD.repeat_interleave(repeats, 1))
    if groups is None:
        read_1HTD = _alone(qkv, attention_mask, scaling, softcap)
    else:
        if "sliding_window" not in more and getattr(module.config, "sliding_window", None) is not None:
            raise UsageError(
                f"share_prompts: {module.config.model_type} does not tell its attention the window of a layer; "
                "set share_prompts=never"
            )
        read_1HTD = attend_along(groups, qkv, scaling, more.get("sliding_window"), softcap)
    return read_1HTD.transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED, attend)
AttentionMaskInterface.register(SHARED, sdpa_mask)


def attend_along(
    groups: Groups,
    qkv_1HTD: Qkv,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return what each token reads along the tree ``1HTD``, of queries, keys and values with equally many heads."""
    query, key, value = qkv_1HTD
    device = query.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else query.dtype
    qkv = (query.to(dtype), key.to(dtype), value.to(dtype))  # as autocast does for SDPA
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    limited = window is not None and window < groups.longest
    if device.type == "cpu" and not limited and softcap is None and len({part.shape for part in qkv}) == 1:
        read: Tensor = _AlongTree.apply(*qkv, groups, scale)  # type: ignore[no-untyped-call]
        return read
    parts = []
    for span in groups.spans:
        whole = slice(span.prompt.start, span.all_responses.stop)
        seen_SS = visible(groups, window if limited else None, whole).to(device)
        of_group = (qkv[0][:, :, whole], qkv[1][:, :, whole], qkv[2][:, :, whole])
        parts.append(_masked(of_group, seen_SS, scale, softcap))
    return torch.cat(parts, 2)


def block_mask(groups: Groups, device: torch.device, window: int | None = None) -> BlockMask:
    """Return the tree as flex attention's mask, which leaves out blocks of tokens that see nothing of each other."""
    group_T, branch_T = (part.to(device) for part in groups.branches())
    position_T = groups.positions().to(device)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance, branch = position_T[query] - position_T[key], branch_T[key]
        own = (group_T[query] == group_T[key]) & ((branch == -1) | (branch == branch_T[query]))
        return own & (distance >= 0) & (distance < (groups.longest if window is None else window))

    return create_block_mask(seen, None, None, groups.num_tokens, groups.num_tokens, device=str(device))


def _alone(qkv: Qkv, mask: Tensor | None, scaling: float | None, cap: float | None) -> Tensor:
    """Return what rows that share nothing read."""
    if cap is None:
        return functional.scaled_dot_product_attention(*qkv, attn_mask=mask, is_causal=mask is None, scale=scaling)
    tokens = qkv[0].shape[2]
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=qkv[0].device).tril() if mask is None else mask
    return _masked(qkv, seen, qkv[0].shape[-1] ** -0.5 if scaling is None else scaling, cap)


def _masked(qkv: Qkv, seen: Tensor, scale: float, cap: float | None) -> Tensor:
    """Return what tokens read of those that they see; ``cap`` bounds the scores softly (Gemma 2)."""
    if cap is None:
        return functional.scaled_dot_product_attention(*qkv, attn_mask=seen, scale=scale)
    query, key, value = qkv
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / cap) * cap
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


class _AlongTree(Function):
    """Attention along the tree without a mask, on a CPU; heads of keys and values are repeated already."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Groups, scale: float) -> Tensor:
        read = torch.empty_like(query)
        total = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for span in groups.spans:
            prompt, rest = span.prompt, span.all_responses
            of_prompt = [part[:, :, prompt] for part in (query, key, value)]
            if _any(prompt):
                read[:, :, prompt], total[:, :, prompt] = _forward(*of_prompt, 0.0, True, scale=scale)
            for branch in span.responses:
                own = [part[:, :, branch] for part in (query, key, value)]
                if _any(branch):
                    read[:, :, branch], total[:, :, branch] = _forward(*own, 0.0, True, scale=scale)
            if not (_any(prompt) and _any(rest)):
                continue
            above, above_total = _forward(query[:, :, rest], *of_prompt[1:], 0.0, False, scale=scale)
            own_total = total[:, :, rest]
            both = torch.logaddexp(above_total, own_total)
            shares = [(part - both).exp().unsqueeze(-1) for part in (above_total, own_total)]
            read[:, :, rest] = above * shares[0] + read[:, :, rest] * shares[1]
            total[:, :, rest] = both
        ctx.save_for_backward(query, key, value, read, total)
        ctx.groups, ctx.scale = groups, scale
        return read

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, read, total = ctx.saved_tensors
        of_query, of_key, of_value = (torch.zeros_like(part) for part in (query, key, value))

        def add(queries: slice, keys: slice, causal: bool) -> None:
            if not (_any(queries) and _any(keys)):
                return
            asking = [part[:, :, queries] for part in (gradient, query)]
            asked = [part[:, :, keys] for part in (key, value)]
            whole = [part[:, :, queries] for part in (read, total)]
            made = _backward(*asking, *asked, *whole, 0.0, causal, scale=ctx.scale)
            for kept, part, where in zip((of_query, of_key, of_value), made, (queries, keys, keys), strict=True):
                kept[:, :, where] += part

        for span in ctx.groups.spans:
            add(span.prompt, span.prompt, True)
            add(span.all_responses, span.prompt, False)
            for branch in span.responses:
                add(branch, branch, True)
        return of_query, of_key, of_value, None, None


def _any(part: slice) -> bool:
    return bool(part.start < part.stop)
