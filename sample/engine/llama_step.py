"""The forward of Llama-like models in plain functions, for the many small steps of sampling.

It computes what transformers' modules compute, from the same weights, without what a module call, a mask per layer and
repeated heads cost: on small models that is most of a step. `llama_forward` gives None where it is not exactly valid.

Letters of array shapes: B rows, T tokens of a forward, C columns that it attends to, E features, H heads, K key heads,
G heads per key head, D features of a head, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from posttrain.sample.engine.kv_cache import RowCache

Forward = Callable[[RowCache, Tensor, Tensor, Tensor, int], Tensor]
"""Cache, ids (B, T), mask (B, C), positions (B, T) and how many last tokens to give the logits of: (B, last, V)."""

FAMILIES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def llama_forward(model: PreTrainedModel) -> Forward | None:
    """Return the forward of a model, or None where a module was replaced, wrapped, quantised or hooked."""
    config: Any = model.config
    plain = (
        type(model) in FAMILIES
        and config._attn_implementation == "sdpa"
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and all(_untouched(module) for module in model.modules())
    )
    return _LlamaForward(model) if plain else None


def _untouched(module: nn.Module) -> bool:
    """Return whether a module is what its architecture defines, called as it is."""
    own = type(module).__module__.startswith(("transformers.models.", "torch.nn.modules.", "transformers.activations"))
    return own and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class _LlamaForward:
    """A model's weights by layer: the tensors themselves, so changed values are seen, but not replaced tensors."""

    def __init__(self, model: Any) -> None:
        self.decoder, self.head = model.model, _Linear(model.lm_head)
        self.norm = _Norm(model.model.norm)
        self.layers = [_Layer(layer) for layer in model.model.layers]

    def __call__(self, cache: RowCache, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor, last: int) -> Tensor:
        hidden_BTE = self.decoder.embed_tokens(ids_BT)
        cos_BT1D, sin_BT1D = (part.unsqueeze(2) for part in self.decoder.rotary_emb(hidden_BTE, positions_BT))
        half = sin_BT1D.shape[-1] // 2
        turn = (cos_BT1D, torch.cat([-sin_BT1D[..., :half], sin_BT1D[..., half:]], -1))
        mask_B1TC = attention_mask(mask_BC, ids_BT.shape[1], hidden_BTE.dtype)
        for number, layer in enumerate(self.layers):
            hidden_BTE = hidden_BTE + layer.attend(layer.before_attention(hidden_BTE), turn, mask_B1TC, cache, number)
            states_BTE = layer.before_mlp(hidden_BTE)
            hidden_BTE = hidden_BTE + layer.down(functional.silu(layer.gate(states_BTE)) * layer.up(states_BTE))
        return self.head(self.norm(hidden_BTE[:, -last:]))


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before_attention, self.before_mlp = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.q, self.k, self.v, self.o = (
            _Linear(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        )
        self.gate, self.up, self.down = (_Linear(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        named = dict(attention.named_children())
        self.norms = (_Norm(named["q_norm"]), _Norm(named["k_norm"])) if "q_norm" in named else None
        self.head_dim, self.scaling, self.groups = attention.head_dim, attention.scaling, attention.num_key_value_groups

    def attend(
        self, states_BTE: Tensor, turn: tuple[Tensor, Tensor], mask_B1TC: Tensor, cache: RowCache, number: int
    ) -> Tensor:
        """Return what attention adds to the hidden states; keys and values go to layer ``number`` of the cache."""
        rows, tokens, _ = states_BTE.shape
        q_BTHD, k_BTKD, v_BTKD = (
            part(states_BTE).view(rows, tokens, -1, self.head_dim) for part in (self.q, self.k, self.v)
        )
        if self.norms is not None:
            q_BTHD, k_BTKD = self.norms[0](q_BTHD), self.norms[1](k_BTKD)
        q_BHTD = _rotated(q_BTHD, *turn).transpose(1, 2)
        k_BKCD, v_BKCD = cache.update(_rotated(k_BTKD, *turn).transpose(1, 2), v_BTKD.transpose(1, 2), number)
        if tokens == 1:  # the heads of one key head as its queries, so that keys need not be repeated
            q_BHTD = q_BHTD.reshape(rows, -1, self.groups, self.head_dim)
        elif self.groups > 1:
            k_BKCD, v_BKCD = (part.repeat_interleave(self.groups, 1) for part in (k_BKCD, v_BKCD))
        out_BHTD = functional.scaled_dot_product_attention(q_BHTD, k_BKCD, v_BKCD, mask_B1TC, scale=self.scaling)
        if tokens > 1:
            out_BHTD = out_BHTD.transpose(1, 2)
        return self.o(out_BHTD.reshape(rows, tokens, -1))


class _Linear:
    def __init__(self, module: Any) -> None:
        self.weight, self.bias = module.weight, module.bias

    def __call__(self, states: Tensor) -> Tensor:
        return functional.linear(states, self.weight, self.bias)


class _Norm:
    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = module.weight, module.variance_epsilon

    def __call__(self, states: Tensor) -> Tensor:
        return functional.rms_norm(states, self.weight.shape, self.weight, self.epsilon)


def attention_mask(mask_BC: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores of the last ``tokens`` columns' queries: 0, or minus infinity."""
    columns = mask_BC.shape[1]
    causal_TC = torch.ones(tokens, columns, dtype=torch.bool, device=mask_BC.device).tril(columns - tokens)
    hidden_B1TC = ~(mask_BC.bool()[:, None, None] & causal_TC)
    # A row of padding sees nothing: the lowest finite number, unlike infinity, keeps its softmax finite.
    return torch.zeros(hidden_B1TC.shape, dtype=dtype, device=mask_BC.device).masked_fill_(
        hidden_B1TC, torch.finfo(dtype).min
    )


def _rotated(states_BTHD: Tensor, cos_BT1D: Tensor, signed_sin_BT1D: Tensor) -> Tensor:
    """Return states rotated by position (Su et al. 2021), where the sine of the first half is negated."""
    return torch.addcmul(states_BTHD * cos_BT1D, states_BTHD.roll(states_BTHD.shape[-1] // 2, -1), signed_sin_BT1D)
