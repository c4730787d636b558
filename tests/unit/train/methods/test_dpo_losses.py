"""Losses, gradients and metrics of preference pairs beside TRL's trainer, and what they cost in synchronisations."""

from __future__ import annotations

import copy
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from counted_reads import CountedReads, as_on_a_gpu
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build
from posttrain.train.config.dpo import DIVERGENCES, LOSSES, DpoConfig
from posttrain.train.dpo import sharing_beside_experts
from posttrain.train.engine.batching import plan_batches
from posttrain.train.engine.metrics import RatioSums
from posttrain.train.maths.pair_losses import PAIR_LOSSES, PairOptions
from posttrain.train.methods.dpo_trainer import DpoTrainer
from posttrain.train.nets.fused_head import with_fused_head
from posttrain.train.nets.policy import balance_coefficient
from posttrain.train.rows.collate import collate_pairs
from posttrain.train.rows.dataset import FILLER

ROWS = [
    {"prompt_ids": [5, 6, 7, 8], "chosen_ids": [9, 10, 2], "rejected_ids": [11, 2], "ref": (-11.0, -9.5)},
    {"prompt_ids": [20], "chosen_ids": [21, 2], "rejected_ids": [22, 23, 24, 25, 26, 2], "ref": (-8.0, -26.0)},
    {"prompt_ids": [7, 30, 9], "chosen_ids": [2], "rejected_ids": [12, 2], "ref": (-5.0, -7.0)},
]
PAIRS: list[dict[str, Any]] = [
    {**row, "row": number, "ref_chosen_logps": row["ref"][0], "ref_rejected_logps": row["ref"][1]}
    for number, row in enumerate(ROWS)
]


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 1}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.3))


def ours(knobs: dict[str, Any]) -> Any:
    """Return our trainer, as far as a loss needs it."""
    config = build(DpoConfig, {"beta": 0.3, **knobs}, "train.dpo")
    options = config.options()
    trainer = object.__new__(DpoTrainer)
    trainer.weight_of, trainer.weighted, trainer.balance = config.weight_of(), options.pop("use_weighting"), 0.0
    trainer.options = PairOptions(config.beta, config.label_smoothing, **options)
    trainer.sums = RatioSums(torch.device("cpu"))
    trainer.plan = plan_batches(len(PAIRS), len(PAIRS), len(PAIRS), 1, 1.0, None)
    return trainer


def theirs(knobs: dict[str, Any], model: Any) -> Any:
    """Return TRL's trainer, as far as a loss needs it."""
    config = build(DpoConfig, {"beta": 0.3, **knobs}, "train.dpo")
    given = {"f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "use_weighting": False}
    options = {**given, "discopop_tau": 0.05, **config.loss_options}
    return SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        model=model,
        args=SimpleNamespace(discopop_tau=options.pop("discopop_tau")),
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        loss_types=config.loss,
        loss_weights=config.loss_weights or [1.0] * len(config.loss),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **options,
    )


CASES: list[dict[str, Any]] = [
    *({"loss": [name], "label_smoothing": 0.1 if name in ("exo_pair", "robust", "aot") else 0.0} for name in LOSSES),
    *({"loss_options": {"f_divergence_type": name}} for name in DIVERGENCES[1:]),
    {"loss_options": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0}},
    {"loss": ["discopop"], "loss_options": {"discopop_tau": 0.5}},
    {"loss": ["sigmoid", "sft"], "loss_weights": [0.5, 2.0]},
    {"loss": ["sigmoid", "ipo"], "loss_weights": [0.5, 2.0], "loss_options": {"use_weighting": True}},
]


@pytest.mark.parametrize("knobs", CASES, ids=lambda knobs: "-".join(map(str, knobs.get("loss", knobs.values()))))
def test_a_micro_batch_has_the_loss_gradients_and_metrics_of_trls(knobs: dict[str, Any]) -> None:
    one = tiny()
    other = copy.deepcopy(one)
    add_fused_lm_head(other, outputs=("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs"))
    weighted = knobs.get("loss_options", {}).get("use_weighting")
    with_fused_head(one, "train.dpo", *(["log_sum_sq_probs"] if weighted else []), "mean_logits", "is_top1")
    batch = collate_pairs(PAIRS, 0)
    reference = theirs(knobs, other)
    expected = trl.DPOTrainer._compute_loss(reference, other, DataCollatorForPreference(0)(PAIRS), False)
    trainer = ours(knobs)
    found = trainer.compute_loss(one, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    expected.backward(), found.backward()
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        largest = max(1.0, float(its.grad.abs().max()))
        torch.testing.assert_close(mine.grad / largest, its.grad / largest, atol=5e-6, rtol=0)
    logged = {name: values[-1] for name, values in reference._metrics["train"].items() if name != "num_tokens"}
    assert trainer.sums.take("train") == pytest.approx(logged, abs=1e-5)


def test_the_experts_of_a_mixture_are_balanced_as_by_trl() -> None:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    one = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, num_attention_heads=4, router_aux_loss_coef=0.5))
    other = copy.deepcopy(one)
    add_fused_lm_head(other, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    with_fused_head(one, "train.dpo", "mean_logits", "is_top1")
    reference, trainer = theirs({}, other), ours({})
    reference.aux_loss_enabled, reference.router_aux_loss_coef = True, 0.5
    trainer.balance = balance_coefficient(one)
    expected = trl.DPOTrainer._compute_loss(reference, other, DataCollatorForPreference(0)(PAIRS), False)
    found = trainer.compute_loss(one, collate_pairs(PAIRS, 0, with_mask=True))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert trainer.sums.take("train")["aux_loss"] == pytest.approx(reference._metrics["train"]["aux_loss"][0], abs=1e-6)
    assert [sharing_beside_experts(one, wanted) for wanted in ("auto", "never")] == ["never", "never"]
    with pytest.raises(UsageError, match="share_prompts=always: mixtral balances its experts"):
        sharing_beside_experts(one, "always")
    assert sharing_beside_experts(tiny(), "auto") == "auto"


def test_a_micro_batch_reads_no_more_than_its_model_does() -> None:
    model = tiny()
    with_fused_head(model, "train.dpo", "mean_logits", "is_top1")
    as_on_a_gpu(model)
    batch, trainer = collate_pairs(PAIRS, 0), ours({})
    with CountedReads() as counted:
        trainer.compute_loss(model, batch).backward()
    assert counted.seen <= 1  # transformers asks once whether positions begin anew within a row
    add_fused_lm_head(other := tiny(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    batch = DataCollatorForPreference(0)(PAIRS)
    with CountedReads() as counted:
        trl.DPOTrainer._compute_loss(theirs({}, other), other, batch, False)
    assert counted.seen > 10  # the count does see them


def test_fillers_of_a_held_out_batch_count_nowhere() -> None:
    model = tiny().eval()
    with_fused_head(model, "train.dpo", "mean_logits", "is_top1")
    whole, filled = ours({"loss": ["sigmoid", "aot", "sft"]}), ours({"loss": ["sigmoid", "aot", "sft"]})
    whole.compute_loss(model, collate_pairs(PAIRS, 0))
    filled.compute_loss(model, collate_pairs([*PAIRS, {**PAIRS[1], "row": FILLER}], 0))
    filled.compute_loss(model, collate_pairs([{**PAIRS[0], "row": FILLER}], 0))  # of nothing else
    expected = whole.sums.take("eval")
    assert expected["loss"] > 0
    assert filled.sums.take("eval") == pytest.approx(expected, abs=1e-5)


def test_every_loss_that_may_be_named_is_there() -> None:
    assert set(LOSSES) == set(PAIR_LOSSES)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"loss": ["sigmoidal"]}, "loss=sigmoidal: there is no such loss; did you mean 'sigmoid'"),
        ({"loss": ["ipo", "ipo"]}, "a loss is there twice"),
        ({"loss": ["exo_pair"]}, "loss=exo_pair takes the logarithm of label_smoothing; set it above 0"),
        ({"loss": ["aot"], "loss_options": {"use_weighting": True}}, "use_weighting weighs pairs, which aot and"),
        ({"loss": ["aot"], "loss_options": {"f_divergence_type": "js_divergence"}}, "=js_divergence has no aot;"),
        ({"loss_options": {"f_divergence_type": "kl"}}, "f_divergence_type=kl: not a divergence; there are reverse_kl"),
        ({"loss_options": {"use_weighting": 1}}, "use_weighting=1: must be true or false"),
        ({"loss_options": {"discopop_tau": 0}}, "discopop_tau=0: must be above 0"),
        ({"loss_options": {"f_alpha_divergence_coef": "half"}}, "f_alpha_divergence_coef=half: must be a number"),
    ],
)
def test_losses_that_cannot_be_computed_are_refused_before_a_model_loads(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(DpoConfig, knobs, "train.dpo")
    assert said in str(refused.value)
