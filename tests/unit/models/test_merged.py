"""A merged adapter gives weights that train on."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.models.adapters import merged


def test_a_merged_model_is_trainable_in_every_weight() -> None:
    shape = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(shape)
    assert merged(model) is model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert not all(parameter.requires_grad for parameter in adapted.parameters())
    assert all(parameter.requires_grad for parameter in merged(adapted).parameters())
