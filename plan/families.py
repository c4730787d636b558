"""From a Hugging Face `config.json` to the sizes of the model: one builder a family.

Only the text model counts: the towers of models that read pictures too are left out, and so are layers that predict
further tokens (MTP).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.plan.blocks import Block, Experts, Mlp
from posttrain.plan.mixers import Attention, GatedDelta, LatentAttention, StateSpace
from posttrain.plan.model import ModelShape
from posttrain.stage.errors import UsageError, did_you_mean

Config = Mapping[str, Any]

_WINDOW = "sliding_attention", "chunked_attention"
"""Kinds of layers, as `layer_types` has them, that see a part of the sequence only."""


def shape_from_config(config: Config, where: str) -> ModelShape:
    """Return the shape that a Hugging Face configuration states; ``where`` names it in messages.

    Raises UsageError when the family is not one that we know, or a size is missing.
    """
    family = str(config.get("model_type"))
    text = config
    if isinstance(config.get("text_config"), Mapping):  # of a model that reads pictures too
        text = {"model_type": f"{family}_text", **config["text_config"]}
        family = str(text["model_type"])
    if family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise UsageError(f"{where}: model_type {family!r} cannot be planned{did_you_mean(family, _FAMILIES)} ({known})")
    build, defaults = _FAMILIES[family]
    given = {name: value for name, value in text.items() if value is not None or name in _MEANT_NULL}
    try:
        return build({**defaults, **given})
    except KeyError as missing:
        raise UsageError(
            f"{where}: no {missing.args[0]}, which a {family} model needs; give its whole config"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{where}: a size of this {family} model is none ({error}); mend it") from None


def read_shape(directory: Path) -> ModelShape:
    """Return the shape of the model in a local Hugging Face folder, or in a `config.json`.

    Raises UsageError when there is no `config.json`, or one of a family that we do not know.
    """
    path = directory if directory.suffix == ".json" else directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; give a local Hugging Face model folder") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a JSON object; give a local Hugging Face model folder")
    return shape_from_config(config, str(path))


def _usual(config: Config, **more: Any) -> ModelShape:
    """Return the sizes that all families state alike."""
    heads = config["num_attention_heads"]
    bias = bool(config.get("attention_bias", False))
    made = ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
    return dataclasses.replace(made, **more)


def _windows(config: Config, is_full: Callable[[int], bool] = lambda layer: False) -> list[int | None]:
    """Return each layer's window: as `layer_types` says, or else as the family's own pattern does."""
    layers = config["num_hidden_layers"]
    window = config.get("sliding_window") or config.get("attention_chunk_size")
    if types := config.get("layer_types"):
        return [window if kind in _WINDOW else None for kind in types]
    return [None if is_full(layer) else window for layer in range(layers)]


def _attention(shape: ModelShape, window: int | None = None, **more: Any) -> Attention:
    made = Attention(shape.hidden_size, shape.num_heads, shape.num_kv_heads, shape.head_dim, window)
    biases = {"qkv_bias": shape.qkv_bias, "output_bias": shape.output_bias}
    return dataclasses.replace(made, **{**biases, **more})


def _llama(config: Config) -> ModelShape:
    return _usual(config)


def _windowed(shape: ModelShape, windows: list[int | None], around: int = 2, **attention: Any) -> ModelShape:
    """Return a shape whose layers differ in their windows alone; ``around`` norms stand around attention and MLP."""
    mlp = Mlp(shape.hidden_size, shape.intermediate_size, bias=shape.mlp_bias)
    blocks = [Block((_attention(shape, window, **attention),), mlp, around * shape.hidden_size) for window in windows]
    return dataclasses.replace(shape, blocks=tuple(blocks))


def _mistral(config: Config) -> ModelShape:
    shape = _usual(config)
    return _windowed(shape, _windows(config)) if config.get("sliding_window") else shape


def _qwen2(config: Config) -> ModelShape:
    shape = _usual(config, qkv_bias=True)
    if not config.get("use_sliding_window"):
        return shape
    return _windowed(shape, _windows(config, lambda layer: layer < config.get("max_window_layers", 28)))


def _qwen3(config: Config) -> ModelShape:
    return _usual(config, qk_norm=True)


def _gemma2(config: Config) -> ModelShape:
    return _windowed(_usual(config), _windows(config, lambda layer: layer % 2 == 1), around=4)


def _gemma3(config: Config) -> ModelShape:
    shape, every = _usual(config), config["sliding_window_pattern"]
    windows = _windows(config, lambda layer: (layer + 1) % every == 0)
    return _windowed(shape, windows, around=4, norms=2 * shape.head_dim)


def _olmo2(config: Config) -> ModelShape:
    shape = _usual(config)
    return _windowed(shape, [None] * shape.num_layers, norms=shape.query_size + shape.kv_size)


def _phi3(config: Config) -> ModelShape:
    shape = _usual(config)
    mlp = Mlp(shape.hidden_size, shape.intermediate_size, fused=True)
    windows = _windows(config)
    blocks = [Block((_attention(shape, window, fused=True),), mlp, 2 * shape.hidden_size) for window in windows]
    return dataclasses.replace(shape, blocks=tuple(blocks))


def _mixture(shape: ModelShape, attentions: list[Attention], experts: Experts, dense: Mlp, sparse: Any) -> ModelShape:
    """Return a shape with experts in the layers that ``sparse(layer)`` names, and an MLP in the others."""
    blocks = [
        Block((attention,), experts if sparse(layer) else dense, 2 * shape.hidden_size)
        for layer, attention in enumerate(attentions)
    ]
    return dataclasses.replace(shape, intermediate_size=experts.width(), blocks=tuple(blocks))


def _mixtral(config: Config) -> ModelShape:
    shape = _usual(config)
    experts = Experts(
        shape.hidden_size, shape.intermediate_size, config["num_local_experts"], config["num_experts_per_tok"]
    )
    attentions = [_attention(shape, window) for window in _windows(config)]
    return _mixture(shape, attentions, experts, Mlp(shape.hidden_size, shape.intermediate_size), lambda layer: True)


def _is_sparse(config: Config) -> Callable[[int], bool]:
    step, dense = config["decoder_sparse_step"], config.get("mlp_only_layers") or []
    return lambda layer: layer not in dense and (layer + 1) % step == 0


def _num_experts(config: Config) -> int:
    count: int = config.get("num_local_experts") or config["num_experts"]  # as transformers, or the model, calls it
    return count


def _qwen3_moe(config: Config) -> ModelShape:
    shape = _usual(config)
    experts = Experts(
        shape.hidden_size, config["moe_intermediate_size"], _num_experts(config), config["num_experts_per_tok"]
    )
    attention = _attention(shape, norms=2 * shape.head_dim)
    dense = Mlp(shape.hidden_size, shape.intermediate_size)
    return _mixture(shape, [attention] * shape.num_layers, experts, dense, _is_sparse(config))


def _qwen3_next(config: Config) -> ModelShape:
    shape = _usual(config)
    every = config["full_attention_interval"]
    types = config.get("layer_types") or [
        "full_attention" if (layer + 1) % every == 0 else "linear_attention" for layer in range(shape.num_layers)
    ]
    full = _attention(shape, norms=2 * shape.head_dim, gated=True)
    linear = GatedDelta(
        shape.hidden_size,
        config["linear_num_key_heads"],
        config["linear_num_value_heads"],
        config["linear_key_head_dim"],
        config["linear_value_head_dim"],
        config["linear_conv_kernel_dim"],
    )
    experts = Experts(
        shape.hidden_size,
        config["moe_intermediate_size"],
        _num_experts(config),
        config["num_experts_per_tok"],
        shared=config["shared_expert_intermediate_size"],
        shared_gate=True,
    )
    dense, sparse = Mlp(shape.hidden_size, shape.intermediate_size), _is_sparse(config)
    blocks = [
        Block(
            (full if kind == "full_attention" else linear,), experts if sparse(layer) else dense, 2 * shape.hidden_size
        )
        for layer, kind in enumerate(types)
    ]
    return dataclasses.replace(shape, intermediate_size=experts.width(), blocks=tuple(blocks))


def _llama4(config: Config) -> ModelShape:
    shape = _usual(config)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    step, rope_free = config["interleave_moe_layer_step"], config.get("no_rope_layers")
    if rope_free:  # 0 marks a layer without rotary positions, which sees the whole sequence
        windows = [config["attention_chunk_size"] if rotates else None for rotates in rope_free]
    else:
        windows = _windows(config, lambda layer: (layer + 1) % config["no_rope_layer_interval"] == 0)
    experts = Experts(
        hidden,
        inner,
        config["num_local_experts"],
        config["num_experts_per_tok"],
        shared=inner,
        linear_router=True,
        name="feed_forward",
    )
    chosen = config.get("moe_layers") or range(step - 1, shape.num_layers, step)
    attentions = [_attention(shape, window) for window in windows]
    dense = Mlp(hidden, config["intermediate_size_mlp"], name="feed_forward")
    return _mixture(shape, attentions, experts, dense, lambda layer: layer in chosen)


def _gpt_oss(config: Config) -> ModelShape:
    shape = _usual(config, qkv_bias=True, output_bias=True)
    experts = Experts(
        shape.hidden_size,
        shape.intermediate_size,
        config["num_local_experts"],
        config["num_experts_per_tok"],
        bias=True,
    )
    windows = _windows(config, lambda layer: layer % 2 == 1)
    attentions = [_attention(shape, window, sinks=True) for window in windows]
    return _mixture(shape, attentions, experts, Mlp(shape.hidden_size, shape.intermediate_size), lambda layer: True)


def _deepseek_v3(config: Config) -> ModelShape:
    shape = _usual(config, head_dim=config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    latent = LatentAttention(
        shape.hidden_size,
        shape.num_heads,
        config.get("q_lora_rank"),
        config["kv_lora_rank"],
        config["qk_rope_head_dim"],
        config["qk_nope_head_dim"],
        config["v_head_dim"],
    )
    inner = config["moe_intermediate_size"]
    experts = Experts(
        shape.hidden_size,
        inner,
        config["n_routed_experts"],
        config["num_experts_per_tok"],
        shared=inner * (config.get("n_shared_experts") or 0),
        shared_name="shared_experts",
    )
    dense, first = Mlp(shape.hidden_size, shape.intermediate_size), config["first_k_dense_replace"]
    blocks = [
        Block((latent,), experts if layer >= first else dense, 2 * shape.hidden_size)
        for layer in range(shape.num_layers)
    ]
    return dataclasses.replace(shape, intermediate_size=experts.width(), blocks=tuple(blocks))


def _falcon_h1(config: Config) -> ModelShape:
    shape = _usual(config)
    width = config.get("mamba_d_ssm") or config["mamba_expand"] * shape.hidden_size
    heads = config["mamba_n_heads"]
    mamba = StateSpace(
        shape.hidden_size,
        heads,
        width // heads,
        config["mamba_d_state"],
        config["mamba_n_groups"],
        config["mamba_d_conv"],
        gate_norm=bool(config["mamba_rms_norm"]),
        conv_bias=bool(config["mamba_conv_bias"]),
        bias=bool(config["mamba_proj_bias"]),
    )
    mlp = Mlp(shape.hidden_size, shape.intermediate_size, bias=shape.mlp_bias, name="feed_forward")
    block = Block((_attention(shape), mamba), mlp, 2 * shape.hidden_size)
    return dataclasses.replace(shape, blocks=(block,) * shape.num_layers)


def _mamba2(config: Config) -> ModelShape:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inner = config["expand"] * hidden
    heads = inner // config["head_dim"]
    mamba = StateSpace(
        hidden,
        heads,
        config["head_dim"],
        config["state_size"],
        config["n_groups"],
        config["conv_kernel"],
        gate_norm=True,
        conv_bias=bool(config["use_conv_bias"]),
        bias=bool(config["use_bias"]),
    )
    return ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        intermediate_size=0,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=config["head_dim"],
        tied_embeddings=bool(config["tie_word_embeddings"]),
        blocks=(Block((mamba,), None, hidden),) * layers,
    )


_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
_LLAMA4 = {
    "attention_chunk_size": 8192,
    "interleave_moe_layer_step": 1,
    "no_rope_layer_interval": 4,
    "num_experts_per_tok": 1,
}
_MAMBA = {"mamba_expand": 2, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_rms_norm": False, "mamba_conv_bias": True}
_MAMBA2 = {"expand": 2, "conv_kernel": 4, "n_groups": 8, "state_size": 128, "head_dim": 64, "use_conv_bias": True}

_FAMILIES: dict[str, tuple[Callable[[Config], ModelShape], dict[str, Any]]] = {
    "llama": (_llama, {}),
    "mistral": (_mistral, {}),
    "qwen2": (_qwen2, {}),
    "qwen3": (_qwen3, {}),
    "smollm3": (_llama, {"tie_word_embeddings": True}),
    "granite": (_llama, {}),
    "gemma2": (_gemma2, {"head_dim": 256, "sliding_window": 4096, "tie_word_embeddings": True}),
    "gemma3_text": (_gemma3, _GEMMA3),
    "phi3": (_phi3, {}),
    "olmo2": (_olmo2, {}),
    "mixtral": (_mixtral, {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": (_qwen3_moe, {"decoder_sparse_step": 1}),
    "qwen3_next": (
        _qwen3_next,
        {"decoder_sparse_step": 1, "full_attention_interval": 4, "linear_conv_kernel_dim": 4},
    ),
    "llama4_text": (_llama4, _LLAMA4),
    "gpt_oss": (_gpt_oss, {"sliding_window": 128}),
    "deepseek_v3": (_deepseek_v3, {"first_k_dense_replace": 3}),
    "falcon_h1": (_falcon_h1, {**_MAMBA, "mamba_proj_bias": False}),
    "mamba2": (_mamba2, {**_MAMBA2, "use_bias": False, "tie_word_embeddings": False}),
}
"""Family → how its sizes follow from its configuration, and the defaults that configurations leave out."""
FAMILIES = tuple(_FAMILIES)
_MEANT_NULL = ("sliding_window", "q_lora_rank")
"""Keys whose null means that there is none, rather than the family's default."""
