"""The trunk of Llama-like models for training on CPUs, in a few functions with gradients of their own.

It computes what transformers' modules compute, from the same weights, with fewer passes over the activations, fewer of
them kept for the backward pass, and nothing after the last attention for tokens whose states nobody asks for. Where it
would not be exactly valid, the trunk itself is called.

Letters of array shapes: B rows, T positions, N tokens of all rows, E features, H heads, D features of a head, h half of
them, I features inside the MLP, S tokens whose states are asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers import LlamaModel, Qwen2Model, Qwen3Model

from posttrain.models.cpu.linear import add_product, embed, is_plain, is_unwatched, products
from posttrain.models.tree.attention import SHARED, attend_along
from posttrain.models.tree.layout import Groups, lay_end_to_end

FAMILIES = (LlamaModel, Qwen2Model, Qwen3Model)


def states_at(trunk: Any, ids_BT: Tensor, chosen_BT: Tensor, share: bool = True) -> Tensor:
    """Return a trunk's last hidden states at chosen positions ``SE``.

    Rows are padded on the right, so that causal attention alone keeps padding out. With ``share`` a trunk that
    `is_known` computes once what rows begin alike with.
    """
    if is_known(trunk):
        return chosen_states(trunk, ids_BT, chosen_BT, share)
    states_SE: Tensor = trunk(input_ids=ids_BT, use_cache=False).last_hidden_state[chosen_BT]
    return states_SE


def is_known(trunk: Any) -> bool:
    """Return whether `chosen_states` computes exactly what a trunk does."""
    config = trunk.config
    return (
        type(trunk) in FAMILIES
        and config._attn_implementation in ("sdpa", SHARED)
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        # transformers' norms round to single precision, whatever the weights have
        and all(weight.dtype == torch.float32 for weight in trunk.parameters())
        and all(_is_untouched(module) for module in trunk.modules())
    )


def _is_untouched(module: Any) -> bool:
    """Return whether a module is what its architecture defines, called as it is, without dropout or checkpointing."""
    if isinstance(module, nn.Linear):
        return is_plain(module)
    own = type(module).__module__.startswith(("transformers.models.", "torch.nn.modules.", "transformers.activations"))
    random = module.training and getattr(module, "attention_dropout", 0)
    return own and is_unwatched(module) and not random and not getattr(module, "gradient_checkpointing", False)


def chosen_states(trunk: Any, ids_BT: Tensor, chosen_BT: Tensor, share: bool = True) -> Tensor:
    """Do as `states_at`, for a trunk that `is_known`.

    What comes after the last chosen token of a row, padding above all, is not computed: rows lie end to end unless they
    are all as long and share nothing.
    """
    ends_BT = chosen_BT * torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device)
    lengths = ends_BT.amax(1).clamp(min=1).tolist()
    ids_BT, chosen_BT = (part_BT[:, : max(lengths)] for part_BT in (ids_BT, chosen_BT))
    ids_1T, place_BT, groups = lay_end_to_end(ids_BT, lengths, share)
    if ids_1T.numel() < ids_BT.numel():
        return chosen_shared_states(trunk, ids_1T, groups, place_BT[chosen_BT])
    positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
    return _states(trunk, ids_BT, positions_1T, chosen_BT.flatten().nonzero().squeeze(1), None)


def chosen_shared_states(trunk: Any, ids_1T: Tensor, groups: Groups, chosen_S: Tensor) -> Tensor:
    """Return the last hidden states ``SE`` at places of a row of shared prompts, for a trunk that `is_known`."""
    return _states(trunk, ids_1T, groups.positions()[None], chosen_S, groups)


def _states(trunk: Any, ids_BT: Tensor, positions_1T: Tensor, chosen_S: Tensor, groups: Groups | None) -> Tensor:
    hidden_NE = embed(ids_BT.flatten(), trunk.embed_tokens)
    cos_1TD, sin_1TD = trunk.rotary_emb(hidden_NE, positions_1T)
    turn = (cos_1TD.transpose(0, 1), sin_1TD.transpose(0, 1)[..., : sin_1TD.shape[-1] // 2])
    for number, layer in enumerate(trunk.layers):
        normed_NE = _norm(hidden_NE, layer.input_layernorm)
        heads_NE = _attend(layer.self_attn, normed_NE, ids_BT.shape[0], turn, groups)
        if number == len(trunk.layers) - 1:
            hidden_NE, heads_NE = hidden_NE[chosen_S], heads_NE[chosen_S]
        hidden_NE = add_product(hidden_NE, heads_NE, layer.self_attn.o_proj)
        states_NE, mlp = _norm(hidden_NE, layer.post_attention_layernorm), layer.mlp
        gated_NI: Tensor = _Gate.apply(*products(states_NE, mlp.gate_proj, mlp.up_proj))  # type: ignore[no-untyped-call]
        hidden_NE = add_product(hidden_NE, gated_NI, mlp.down_proj)
    return _norm(hidden_NE, trunk.norm)


def _attend(attention: Any, states_NE: Tensor, rows: int, turn: tuple[Tensor, Tensor], groups: Groups | None) -> Tensor:
    """Return what the heads of an attention read, one behind the other; along the tree of ``groups`` where given."""
    q_BTHD, k_BTHD, v_BTHD = (
        part_NM.view(rows, len(states_NE) // rows, -1, attention.head_dim)
        for part_NM in products(states_NE, attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        q_BTHD, k_BTHD = _norm(q_BTHD, attention.q_norm), _norm(k_BTHD, attention.k_norm)
    q_BTHD, k_BTHD = (_Rotation.apply(part_BTHD, *turn) for part_BTHD in (q_BTHD, k_BTHD))  # type: ignore[no-untyped-call]
    if groups is not None:
        k_BTHD, v_BTHD = (part.repeat_interleave(attention.num_key_value_groups, 2) for part in (k_BTHD, v_BTHD))
        qkv = (q_BTHD.transpose(1, 2), k_BTHD.transpose(1, 2), v_BTHD.transpose(1, 2))
        return attend_along(groups, qkv, attention.scaling).transpose(1, 2).reshape(len(states_NE), -1)
    out_BHTD = functional.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BTHD.transpose(1, 2),
        v_BTHD.transpose(1, 2),
        is_causal=True,
        scale=attention.scaling,
        enable_gqa=attention.num_key_value_groups > 1,
    )
    return out_BHTD.transpose(1, 2).reshape(len(states_NE), -1)


def _norm(states: Tensor, module: Any) -> Tensor:
    normed: Tensor = _RmsNorm.apply(states, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(Function):
    """``weight · x / rms(x)`` over the last dimension (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight_E: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        inverse = norm.square_().div_(len(weight_E)).add_(epsilon).rsqrt_()
        inverse.masked_fill_(inverse == 0, torch.nan)  # the square overflowed: a ruined model must not look like zeros
        unit: Tensor = states * inverse
        ctx.save_for_backward(unit, inverse, weight_E)
        return unit * weight_E

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        unit, inverse, weight_E = ctx.saved_tensors
        product = gradient * unit
        of_weight_E = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        along = (product @ weight_E).div_(len(weight_E)).unsqueeze(-1)
        return (gradient * weight_E).addcmul_(unit, along, value=-1).mul_(inverse), of_weight_E, None


class _Rotation(Function):
    """States turned by their positions (Su et al. 2021); the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, states_BTHD: Tensor, cos_T1D: Tensor, sin_T1h: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1D, sin_T1h)
        return _turned(states_BTHD, cos_T1D, sin_T1h)

    @staticmethod
    def backward(ctx: Any, gradient_BTHD: Tensor) -> tuple[Tensor, None, None]:
        cos_T1D, sin_T1h = ctx.saved_tensors
        return _turned(gradient_BTHD, cos_T1D, -sin_T1h), None, None


def _turned(states_BTHD: Tensor, cos_T1D: Tensor, sin_T1h: Tensor) -> Tensor:
    turned_BTHD = states_BTHD * cos_T1D
    half = sin_T1h.shape[-1]
    turned_BTHD[..., :half].addcmul_(states_BTHD[..., half:], sin_T1h, value=-1)
    turned_BTHD[..., half:].addcmul_(states_BTHD[..., :half], sin_T1h)
    return turned_BTHD


class _Gate(Function):
    """``silu(gate) · value`` (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gates_NI: Tensor, values_NI: Tensor) -> Tensor:
        ctx.save_for_backward(gates_NI, values_NI)
        return functional.silu(gates_NI).mul_(values_NI)

    @staticmethod
    def backward(ctx: Any, gradient_NI: Tensor) -> tuple[Tensor, Tensor]:
        gates_NI, values_NI = ctx.saved_tensors
        of_values_NI = functional.silu(gates_NI).mul_(gradient_NI)
        of_gates_NI: Tensor = torch.ops.aten.silu_backward(gradient_NI * values_NI, gates_NI)
        return of_gates_NI, of_values_NI
