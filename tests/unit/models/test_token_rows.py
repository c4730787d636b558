"""Tokens that were added for a template are trained by an adapter: their rows, in all that reads the embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM
from trl.trainer.utils import add_fused_lm_head

from posttrain.models.adapters import make_trainable, merged
from posttrain.models.token_log_probs import head_gives_logits, response_log_probs
from posttrain.models.token_rows import trained_token_ids
from posttrain.stage.errors import UsageError

NEW, LAST = [37, 38], 40
IDS_BT = torch.arange(30, LAST)[None]
SIZES: dict[str, Any] = {"vocab_size": LAST, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 39, "bos_token_id": 1, "eos_token_id": 38}


def build(family: str) -> Any:
    torch.manual_seed(0)
    if family == "scaled":  # its embedding multiplies what it looks up, and its logits are capped
        return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, final_logit_softcapping=3.0))
    if family == "biased":  # its output layer has a bias, and a matrix of its own
        model = PhiForCausalLM(PhiConfig(**SIZES))
        nn.init.normal_(model.lm_head.bias)
        return model
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=family == "tied"))


def adapted(model: Any, kind: Any = "lora", targets: Any = "all-linear", **more: Any) -> Any:
    options = {"new_token_ids": NEW, "where": "train.sft", **more}
    return make_trainable(model, kind, 4, 8.0, 0.0, targets, **options).eval()


def trained(model: Any, steps: int = 3) -> Any:
    """The model after steps on all of its tokens."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        model(IDS_BT, labels=IDS_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS_BT, use_cache=False).logits


FAMILIES = ["tied", "untied", "scaled", "biased"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_of_new_tokens_alone_are_trained_and_merged(family: str) -> None:
    model = build(family)
    before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    first = logits(model)
    policy = adapted(model)
    torch.testing.assert_close(logits(policy), first, atol=1e-6, rtol=1e-6)
    moved = logits(trained(policy))
    assert (moved - first).abs().max() > 0.1
    with policy.disable_adapter():
        torch.testing.assert_close(logits(policy), first, atol=0, rtol=0)
    alone = merged(policy)
    torch.testing.assert_close(logits(alone), moved, atol=1e-5, rtol=1e-5)
    after = [alone.get_input_embeddings().weight, alone.get_output_embeddings().weight]
    assert (after[0] is after[1]) == (family in ("tied", "scaled"))
    for old_VE, new_VE in zip(before, after, strict=True):
        assert [row for row in range(LAST) if not torch.equal(old_VE[row], new_VE[row])] == NEW


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reader_of_the_output_layer_sees_the_trained_rows(family: str) -> None:
    policy = trained(adapted(build(family)))
    logps_TV = logits(policy)[0, :-1].log_softmax(-1)
    expected = logps_TV.gather(-1, IDS_BT[0, 1:, None]).squeeze(-1)
    prompt, response = IDS_BT[0, :1].tolist(), IDS_BT[0, 1:].tolist()
    assert head_gives_logits(policy)
    ours = torch.from_numpy(response_log_probs(policy, [prompt], [response], [[0]])[0])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    inner = policy.get_base_model()
    gradients = {}
    for fused in (False, True):
        if fused:
            add_fused_lm_head(inner)
            loss = -policy(input_ids=IDS_BT, labels=IDS_BT, fused_lm_head=True).log_probs.mean()
        else:
            loss = policy(IDS_BT, labels=IDS_BT).loss
        loss.backward()
        gradients[fused] = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        policy.zero_grad()
    assert gradients[True].keys() == gradients[False].keys()
    rows = [name for name in gradients[True] if "trainable_tokens" in name]
    assert len(rows) == (1 if family in ("tied", "scaled") else 2)
    assert all(gradients[True][name].abs().min(-1).values.gt(0).all() for name in rows)
    for name, gradient in gradients[True].items():
        torch.testing.assert_close(gradient, gradients[False][name], atol=1e-6, rtol=1e-4)


def test_new_tokens_stay_frozen_where_that_is_said() -> None:
    policy = adapted(build("tied"), new_tokens=False)
    assert not any("trainable_tokens" in name for name, _ in policy.named_parameters())
    assert trained_token_ids(adapted(build("tied"), new_token_ids=[])) == []
    with pytest.raises(
        UsageError, match=r"train.sft.adapter.new_tokens: false, but .*set train.sft.adapter.new_tokens"
    ):
        adapted(adapted(build("tied")), new_tokens=False)


@pytest.mark.parametrize(("family", "engine"), [("tied", "zero3"), ("untied", "zero3"), ("tied", "fsdp")])
@pytest.mark.parametrize("fresh", [True, False])
def test_embeddings_in_parts_are_refused(family: str, engine: str, fresh: bool) -> None:
    policy = build(family) if fresh else adapted(build(family))
    with pytest.raises(UsageError, match=rf"new_tokens: true, but {engine} keeps .*distributed=ddp or zero2"):
        adapted(policy, engine=engine)
    assert trained_token_ids(adapted(build("untied"), engine="fsdp")) == NEW


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], r".*\.(q_proj|embed_tokens)"])
def test_a_module_is_not_adapted_twice(targets: Any) -> None:
    with pytest.raises(UsageError, match=r"target_modules: names (lm_head|model.embed_tokens)"):
        adapted(build("untied"), targets=targets)


def test_an_output_layer_that_is_no_plain_matrix_is_refused() -> None:
    class Quantised(nn.Linear):
        pass

    model = build("untied")
    model.lm_head = Quantised(16, LAST, bias=False)
    with pytest.raises(UsageError, match="but Quantised of llama is not a plain matrix"):
        adapted(model)
