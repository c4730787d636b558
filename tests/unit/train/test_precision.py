"""Weights that are cast once for a rollout: the same numbers, and the same parameters afterwards."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.train.rollouts.precision import cast_once


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_computed_is_what_autocast_computes(tied: bool) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=tied, **shape)).eval()
    ids = torch.randint(0, 64, (3, 9))
    before = dict(model.named_parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        with cast_once(model, torch.bfloat16):
            assert model.model.layers[0].mlp.up_proj.weight.dtype == model.lm_head.weight.dtype == torch.bfloat16
            assert model.model.embed_tokens.weight.dtype == torch.float32
            found = model(ids).logits
    assert torch.equal(found, expected)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_an_exception_leaves_the_parameters_as_they_were() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3))
    weight = layer[0].weight
    with pytest.raises(KeyboardInterrupt), cast_once(layer, torch.bfloat16):
        raise KeyboardInterrupt
    assert layer[0].weight is weight
