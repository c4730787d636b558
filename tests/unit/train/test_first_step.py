"""What is tried before the first step: packs that leak, responses that see each other, and logits that are more than
the output layer's product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trl.trainer.utils import add_fused_lm_head

from posttrain.models.shared_prompts import share_prompts, with_shared_rewards
from posttrain.models.token_log_probs import head_gives_logits, response_log_probs
from posttrain.models.tree.layout import lay_out
from posttrain.stage.errors import UsageError
from posttrain.train.engine.first_step import require_fused_log_probs, require_separate_rows, require_shared_rewards
from posttrain.train.nets.fused_head import with_fused_head
from posttrain.train.nets.sharing import made_to_share

SHAPE: dict[str, Any] = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.1}
HEADS: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_experts": 0, "mlp_only_layers": [0, 1]}
DELTA = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SEPARATE = {
    "llama": HEADS,
    "qwen3": {**HEADS, "head_dim": 8},
    "mistral": {**HEADS, "sliding_window": 4},
    "gemma3_text": {**HEADS, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
}
LEAKING = {
    "lfm2": {**HEADS, "layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "qwen3_next": {**HEADS, **DELTA, **EXPERTS},
    "mamba": {"state_size": 8},
    "falcon_h1": {**HEADS, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "recurrent_gemma": {**HEADS, "head_dim": 8, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    "opt": {"ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32},
}


def build(family: str, **knobs: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SHAPE, **knobs})
    return AutoModelForCausalLM.from_config(config).eval()


def pack() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    positions = [*range(9), *range(6), *range(7)]
    return torch.randint(5, 200, (1, len(positions))), torch.tensor([positions])


@pytest.mark.parametrize("family", SEPARATE)
def test_rows_that_keep_apart_pass(family: str) -> None:
    require_separate_rows(build(family, **SEPARATE[family]), *pack(), "train.sft")


@pytest.mark.parametrize("family", LEAKING)
def test_rows_that_reach_into_each_other_are_refused_by_name(family: str) -> None:
    with pytest.raises(UsageError, match=rf"train.sft.packing: {family} lets the rows of a pack reach into each other"):
        require_separate_rows(build(family, **LEAKING[family]), *pack(), "train.sft")


@pytest.mark.parametrize("leaks", [False, True])
def test_responses_that_reach_into_each_other_are_refused_by_name(leaks: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, **HEADS, num_labels=1, pad_token_id=0)
    model = with_shared_rewards(share_prompts(LlamaForSequenceClassification(config).eval(), on_gpu=False))
    ids, groups = lay_out([([5], [[6, 7]]), ([7, 8, 9], [[10, 11, 12], [], [13]])])
    if leaks:
        layer = model.model.layers[0]
        layer.register_forward_hook(lambda _module, _inputs, states: states + 0.5 * states.roll(1, 1))
        with pytest.raises(UsageError, match=r"train\.reward\.share_prompts: llama does not keep apart the responses"):
            require_shared_rewards(model, ids, groups, "train.reward")
    else:
        require_shared_rewards(model, ids, groups, "train.reward")


def test_prompts_are_shared_where_the_model_can_or_where_it_must(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    llama, mamba = build("llama", **HEADS), build("mamba", **LEAKING["mamba"])
    assert made_to_share(llama, "auto", "auto", "train.reward")
    assert not made_to_share(llama, "never", "auto", "train.reward")
    assert not made_to_share(mamba, "auto", "auto", "train.reward")
    assert "prompts are computed with each response: mamba carries a state from token to token" in caplog.messages
    with pytest.raises(UsageError, match=r"train\.reward\.share_prompts=always: mamba carries a state"):
        made_to_share(mamba, "always", "auto", "train.reward")


class DoubledLlama(LlamaForCausalLM):
    """A family that does to its logits what no configuration key tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 2
        return outputs


def test_logits_that_are_more_than_the_output_layers_product_are_refused_by_name() -> None:
    ids, _ = pack()
    plain, doubled = build("llama", **HEADS), DoubledLlama(LlamaConfig(**SHAPE, **HEADS)).eval()
    for model in (plain, doubled):
        add_fused_lm_head(model)
    require_fused_log_probs(plain, ids, "train.dpo")
    assert head_gives_logits(plain) and not head_gives_logits(doubled)
    with pytest.raises(UsageError, match=r"train.dpo: the logits of llama are more than its output layer's product"):
        require_fused_log_probs(doubled, ids, "train.dpo")


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_an_adapter_on_the_output_layer_would_not_be_trained_and_is_refused(targets: list[str]) -> None:
    model = get_peft_model(build("llama", **HEADS, tie_word_embeddings=False), LoraConfig(target_modules=targets))
    if "lm_head" in targets:
        with pytest.raises(UsageError, match=r"train\.kto\.adapter\.target_modules: an adapter on the output layer"):
            with_fused_head(model, "train.kto")
    else:
        require_fused_log_probs(with_fused_head(model, "train.kto"), pack()[0], "train.kto")


SCALED: dict[str, dict[str, Any]] = {
    "falcon_h1": {**LEAKING["falcon_h1"], "lm_head_multiplier": 0.25},
    "recurrent_gemma": {**LEAKING["recurrent_gemma"], "logits_soft_cap": 0.5},
    "hyperclovax": {**HEADS, "logits_scaling": 3.0},
    "granite": {**HEADS, "logits_scaling": 3.0},
    "cohere": {**HEADS, "logit_scale": 0.3},
    "gemma2": {**HEADS, "head_dim": 8, "final_logit_softcapping": 0.5},
}


@pytest.mark.parametrize("family", SCALED)
def test_scales_and_caps_of_the_families_are_known(family: str) -> None:
    model = build(family, **{**SCALED[family], "initializer_range": 0.3})
    assert head_gives_logits(model)
    prompt, response = [5, 6, 7], [8, 9, 10, 11]
    found = response_log_probs(model, [prompt], [response], [[0]])[0]
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, 2:-1].detach()
    expected = logits.log_softmax(-1)[torch.arange(4), torch.tensor(response)]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


def test_a_family_unknown_is_scored_by_its_own_logits() -> None:
    model = DoubledLlama(LlamaConfig(**SHAPE, **HEADS)).eval()
    found = response_log_probs(model, [[5, 6, 7]], [[8, 9]], [[0]])[0]
    logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:-1].detach()
    expected = logits.log_softmax(-1)[torch.arange(2), torch.tensor([8, 9])]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)
