"""GRPO's and RLOO's losses and metrics beside TRL's trainers, and what they cost in synchronisations."""

from __future__ import annotations

import copy
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import trl
from counted_reads import CountedReads, as_on_a_gpu
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.train.config.grpo import LossType
from posttrain.train.engine.metrics import RatioSums
from posttrain.train.maths.group_losses import GroupOptions
from posttrain.train.methods.group_episodes import collate_groups
from posttrain.train.methods.group_trainer import GroupTrainer
from posttrain.train.nets.fused_head import with_fused_head
from posttrain.train.rollouts.episodes import Episode

TEMPERATURE, ACCUMULATION, MINI_BATCHES, STEP, ROLLOUT, MOST = 0.8, 2, 4, 20, 90, 16
TEXTS = [([5, 6, 7], [9, 10, 2]), ([20], [22, 23, 24, 25, 26, 2]), ([7, 30], [2]), ([7, 30], [12, 2])]


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 1}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.3))


def scored(model: Any) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies of responses by the plain logits, each text alone."""
    logps, entropies = [], []
    for prompt, response in TEXTS:
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        logits = logits.log_softmax(-1)
        logps.append(logits[torch.arange(len(response)), response])
        entropies.append(-(logits.exp() * logits).sum(-1))
    return pad_sequence(logps, batch_first=True), pad_sequence(entropies, batch_first=True)


def episodes_of(model: Any) -> list[Episode]:
    """Return the texts as responses of a policy that has moved since, with a reference further away."""
    logps = scored(model)[0].detach()
    rng = np.random.default_rng(3)
    made = []
    for number, (prompt, response) in enumerate(TEXTS):
        own = logps[number, : len(response)].numpy()
        old, reference = (own + rng.normal(0, by, len(response)).astype(np.float32) for by in (0.3, 0.6))
        advantages = np.full(len(response), (1.5, -0.7, 0.0, -1.2)[number], np.float32)
        made.append(
            Episode(number, number, prompt, response, old, True, reference_logps=reference, advantages=advantages)
        )
    return made


def ours(options: GroupOptions) -> Any:
    """Return our trainer, as far as a loss needs it."""
    trainer = object.__new__(GroupTrainer)
    trainer.options, trainer.balance, trainer.handed_out = options, 0.0, 1
    trainer.sums, trainer._moved = RatioSums(torch.device("cpu")), torch.zeros(2, dtype=torch.float64)
    trainer.plan = SimpleNamespace(world_size=1, accumulation=ACCUMULATION)
    trainer.rollouts = SimpleNamespace(mini_batches=MINI_BATCHES, max_new_tokens=MOST)
    return trainer


def theirs(options: GroupOptions, model: Any, episodes: list[Episode]) -> tuple[Tensor, dict[str, list[float]]]:
    """Return TRL's loss of a micro-batch, and what it logs."""
    old, reference = (
        pad_sequence([torch.from_numpy(getattr(e, name)) for e in episodes], batch_first=True)
        for name in ("logps", "reference_logps")
    )
    mask = pad_sequence([torch.ones(len(e.response_ids)) for e in episodes], batch_first=True)
    prompts = torch.zeros(len(episodes), 1)
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (*scored(model), None),
        _metrics={"train": metrics},
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        args=SimpleNamespace(
            **{"delta": options.delta, "steps_per_generation": ACCUMULATION * MINI_BATCHES},
            **{"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "use_bias_correction_kl": True},
            **{"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0},
        ),
        importance_sampling_level="sequence" if options.sequence else "token",
        **{"model": model, "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "use_vllm": False},
        **{"beta": options.beta, "loss_type": options.name, "off_policy_mask_threshold": options.off_policy_threshold},
        **{"epsilon_low": options.clip_low, "epsilon_high": options.clip_high, "max_completion_length": MOST},
        **{"current_gradient_accumulation_steps": ACCUMULATION, "_entropy_bonus_enabled": False},
        get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=trl.GRPOTrainer.get_gamma_weights,
    )
    inputs = {
        **{"prompt_ids": prompts, "prompt_mask": prompts, "completion_ids": mask, "completion_mask": mask},
        "advantages": torch.tensor([float(e.advantages[0]) for e in episodes]),
        "num_items_in_batch": torch.tensor(float(ROLLOUT)),
        **{"old_per_token_logps": old, "old_logps": old.sum(1), "ref_per_token_logps": reference},
    }
    if options.name == "rloo":
        return trl.RLOOTrainer._compute_loss(trainer, model, inputs) / ACCUMULATION, metrics
    loss = trl.GRPOTrainer._compute_loss(trainer, model, inputs)
    if options.name == "bnpo":  # TRL divides by the tokens of the micro-batch, and by the micro-batches
        loss = loss * mask.sum() * ACCUMULATION / STEP
    return loss, metrics


NAMES = get_args(LossType)
CASES = [
    *(GroupOptions(name, 0.2, 0.3, sequence=name == "luspo") for name in NAMES),
    *(GroupOptions(name, 0.2, 0.3, sequence=True, beta=0.1) for name in NAMES),
    *(GroupOptions(name, 0.2, 0.3, delta=1.35, off_policy_threshold=0.05, beta=0.05) for name in NAMES),
    GroupOptions("rloo", 0.2, 0.3),
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: f"{options.name}-{options.sequence}-{options.beta}")
def test_a_micro_batch_has_the_loss_gradients_and_metrics_of_trls(options: GroupOptions) -> None:
    one = tiny()
    other = copy.deepcopy(one)
    episodes = episodes_of(other)
    with_fused_head(one, "train.grpo", temperature=TEMPERATURE)
    batch = collate_groups(episodes, 0, STEP, ROLLOUT)
    if not options.beta:
        del batch["reference_logps"]
    expected, logged = theirs(options, other, episodes)
    trainer = ours(options)
    found = trainer.compute_loss(one, batch)
    exponent = 5 if options.name == "vespo" else 1  # of sums over responses: rounding of the output layer grows
    torch.testing.assert_close(found, expected, atol=exponent * 1e-6, rtol=1e-6)
    expected.backward(), found.backward()
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        largest = max(1.0, float(its.grad.abs().max()))
        torch.testing.assert_close(mine.grad / largest, its.grad / largest, atol=1e-5, rtol=0)
    named = {"clip_ratio/region_mean": "policy/clipfrac", "kl": "policy/kl", "entropy": "policy/entropy"}
    left_out = ("clip_ratio/low_min", "clip_ratio/high_max")
    wanted = {named.get(name, name): values[-1] for name, values in logged.items() if name not in left_out}
    noted = trainer.sums.take("train")
    assert {name: noted[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert set(noted) - set(wanted) == {"policy/approxkl", "policy/ratio", "policy/rollout_difference"}


def test_clipping_and_masking_are_at_work_in_these_cases() -> None:
    model = tiny()
    batch, shares = collate_groups(episodes_of(model), 0, STEP, ROLLOUT), {}
    with_fused_head(model, "train.grpo", temperature=TEMPERATURE)
    for threshold in (None, 0.05):
        trainer = ours(GroupOptions("grpo", 0.2, 0.3, off_policy_threshold=threshold))
        shares[threshold] = trainer.compute_loss(model, batch).item()
        assert 0 < trainer.sums.take("train")["policy/clipfrac"] < 1
    assert shares[None] != shares[0.05]


@pytest.mark.parametrize("name", [*NAMES, "rloo"])
def test_a_micro_batch_reads_no_more_than_its_model_does(name: str) -> None:
    model = tiny()
    batch = collate_groups(episodes_of(model), 0, STEP, ROLLOUT)
    with_fused_head(model, "train.grpo", temperature=TEMPERATURE)
    as_on_a_gpu(model)
    trainer = ours(GroupOptions(name, 0.2, 0.3, beta=0.1, off_policy_threshold=0.1))
    with CountedReads() as counted:
        trainer.compute_loss(model, batch).backward()
    assert counted.seen <= 1  # transformers asks once whether positions begin anew within a row


def test_the_count_sees_what_trls_losses_read() -> None:
    model = tiny()
    with CountedReads() as counted:
        theirs(GroupOptions("dapo", 0.2, 0.3, beta=0.1), model, episodes_of(model))
    assert counted.seen > 5
