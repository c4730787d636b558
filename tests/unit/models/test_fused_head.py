"""The fused output layer on a CPU against TRL's, in whole models: scores, gradients, and what it is used for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PhiConfig
from trl.trainer.utils import add_fused_lm_head

from posttrain.models.adapters import make_trainable
from posttrain.models.cpu import logit_tiles
from posttrain.train.nets import fused_head
from posttrain.train.nets.fused_head import fused_on_cpu

SHAPE: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "initializer_range": 0.3}
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def build(family: str) -> Any:
    torch.manual_seed(0)
    if family == "gemma2":
        config: Any = Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0)
    elif family == "phi":  # its output layer has a bias
        config = PhiConfig(**SHAPE)
    else:
        config = LlamaConfig(**SHAPE, tie_word_embeddings=family == "tied")
    model = AutoModelForCausalLM.from_config(config)
    if family == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    if family == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    if family == "rows":
        model = make_trainable(model, "lora", 4, 8.0, 0.0, "all-linear", new_token_ids=[5, 60], where="train.sft")
    return model


def batch(mask: str = "none") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(1, 61, (4, 12), generator=generator)
    labels_BT = ids_BT.clone()
    for row, (start, end) in enumerate([(3, 12), (1, 7), (12, 12), (0, 9)]):
        labels_BT[row, :start] = -100
        labels_BT[row, end:] = -100
        ids_BT[row, max(end, 2) :] = 0
    made = {"input_ids": ids_BT, "labels": labels_BT}
    if mask == "ones":
        made["attention_mask"] = torch.ones_like(ids_BT)
    if mask == "padding":
        made["attention_mask"] = (ids_BT != 0).long()
    if mask == "positions":
        made["position_ids"] = torch.arange(12).remainder(5).expand(4, 12)
    return made


def learned(model: Any, batches: list[dict[str, Tensor]]) -> tuple[list[Any], dict[str, Tensor]]:
    """Return the outputs of micro-batches and the gradients that all of them leave."""
    found = []
    for inputs in batches:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        weights = torch.linspace(-1, 2, outputs.log_probs.numel()).view_as(outputs.log_probs)
        (outputs.log_probs * weights).sum().backward()
        found.append({name: getattr(outputs, name).detach() for name in (*OUTPUTS, "label_mask")})
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def two(model: Any) -> tuple[Any, Any]:
    """Return a model with TRL's output layer and a copy with ours."""
    theirs, ours = model, copy.deepcopy(model)
    for each in (theirs, ours):
        add_fused_lm_head(each.get_base_model() if hasattr(each, "get_base_model") else each, outputs=OUTPUTS)
    return theirs, fused_on_cpu(ours, mean_logits=True)


@pytest.mark.parametrize("mask", ["none", "ones", "padding", "positions"])
@pytest.mark.parametrize("family", ["llama", "tied", "gemma2", "phi", "lora", "rows"])
def test_scores_and_gradients_of_micro_batches_are_those_of_trls(
    family: str, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_tiles, "NARROWEST", 1)
    monkeypatch.setattr(logit_tiles, "TILE", 300)
    theirs, ours = two(build(family))
    later = {name: part.roll(1, 0) for name, part in batch(mask).items()}
    expected, found = (learned(model, [batch(mask), later]) for model in (theirs, ours))
    for one, other in zip(found[0], expected[0], strict=True):
        assert torch.equal(one.pop("is_top1"), other.pop("is_top1"))
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


def test_only_positions_with_a_label_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    score = fused_head.score_tokens

    def counting(layer: Any, states_NH: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(len(states_NH))
        return score(layer, states_NH, *rest, **more)

    monkeypatch.setattr(fused_head, "score_tokens", counting)
    _, ours = two(build("llama"))
    inputs = batch()
    ours(**inputs, fused_lm_head=True)
    assert seen == [int((inputs["labels"][:, 1:] >= 0).sum())] and 0 < seen[0] < inputs["labels"].numel() / 2


@pytest.mark.parametrize("family", ["llama", "tied", "lora"])
def test_a_batch_without_labels_gives_a_zero_with_gradients_of_zero(family: str) -> None:
    _, ours = two(build(family))
    inputs = {**batch(), "labels": torch.full((4, 12), -100)}
    outputs = ours(**inputs, fused_lm_head=True)
    assert int(outputs.label_mask.sum()) == 0 and not outputs.is_top1.any()
    outputs.log_probs.sum().backward()
    gradients = [p.grad for p in ours.parameters() if p.requires_grad]
    assert gradients and all(gradient is None or not gradient.any() for gradient in gradients)


def checkpointing(model: Any) -> Any:
    model.activation_checkpointing_enable()
    return model.train()


def bfloat16(model: Any) -> Any:
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [checkpointing, bfloat16])
def test_it_is_exact_where_the_trunk_runs_otherwise(change: Callable[[Any], Any]) -> None:
    theirs, ours = two(build("llama"))
    expected, found = (learned(change(model), [batch(), batch()]) for model in (theirs, ours))
    rough = change is bfloat16
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= (0.05 if rough else 1e-5) * gradient.norm(), name
    torch.testing.assert_close(
        found[0][0]["log_probs"], expected[0][0]["log_probs"], atol=0.05 if rough else 2e-6, rtol=2e-6
    )


def test_autocast_makes_products_of_halves_and_sums_of_singles() -> None:
    theirs, ours = two(build("llama"))
    outputs = []
    for model in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**batch(), use_cache=False, fused_lm_head=True)
        found.log_probs.sum().backward()
        outputs.append(found.log_probs.detach())
    assert outputs[1].dtype == torch.float32
    torch.testing.assert_close(outputs[1], outputs[0], atol=0.05, rtol=0.02)
    gradients = [model.lm_head.weight.grad for model in (theirs, ours)]
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() <= 0.02 * gradients[0].norm()


@torch.no_grad()
def test_calls_that_ask_for_more_are_left_to_the_model() -> None:
    theirs, ours = two(build("llama"))
    inputs = batch()
    assert torch.equal(ours(input_ids=inputs["input_ids"]).logits, theirs(input_ids=inputs["input_ids"]).logits)
    torch.testing.assert_close(ours(**inputs).loss, theirs(**inputs).loss, atol=0, rtol=0)
    embedded = {"inputs_embeds": ours.model.embed_tokens(inputs["input_ids"]), "labels": inputs["labels"]}
    torch.testing.assert_close(
        ours(**embedded, fused_lm_head=True).log_probs, theirs(**embedded, fused_lm_head=True).log_probs
    )
    assert ours.generate(inputs["input_ids"][:1], max_new_tokens=2, do_sample=False).shape == (1, 14)
