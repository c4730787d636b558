"""Optimizers, schedules and adapters that are not the usual ones: what they do, and that their state goes on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, LlamaConfig, get_scheduler
from transformers.integrations.neftune import neftune_post_forward_hook

from posttrain.models.adapters import make_trainable
from posttrain.models.cpu.llama_layers import states_at
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build
from posttrain.train.config.common import OptimizerConfig
from posttrain.train.config.ppo import PpoConfig
from posttrain.train.config.sft import SftConfig
from posttrain.train.engine.arguments import require_known_ways, schedule_options
from posttrain.train.engine.optimizers import muon

IDS = torch.tensor([[3, 9, 27, 14, 5, 2]])


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 1}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.3))


def of_muon(model: Any) -> Any:
    decayed = {name for name, _ in model.named_parameters() if "norm" not in name}
    return muon(model, decayed, 0.01, 0.1, {"betas": (0.9, 0.99), "eps": 1e-8})


def step(model: Any, optimizer: Any, schedule: Any = None) -> None:
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if schedule is not None:
        schedule.step()


def test_muon_moves_matrices_along_orthogonal_directions_and_the_rest_as_adamw_does() -> None:
    model = tiny()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    muon(model, set(), 0.01, 0.0, {"betas": (0.9, 0.99), "eps": 1e-8}).step()
    moves = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    lengths = torch.linalg.svdvals(moves["model.layers.0.mlp.up_proj.weight"])
    assert lengths.min() > 0.4 * lengths.max()  # the iteration brings them near one another, not onto one
    changed = moves["model.norm.weight"]
    torch.testing.assert_close(changed.abs(), torch.full_like(changed, 0.01), atol=1e-4, rtol=0)  # Adam's first step
    rows = moves["lm_head.weight"].abs()
    torch.testing.assert_close(rows, torch.full_like(rows, 0.01), atol=1e-3, rtol=0)


def test_muon_and_its_schedule_go_on_where_a_checkpoint_stood() -> None:
    def halved(optimizer: Any) -> LambdaLR:
        return LambdaLR(optimizer, lambda number: 0.5**number)

    whole = tiny()
    optimizer = of_muon(whole)
    schedule = halved(optimizer)
    for _ in range(2):
        step(whole, optimizer, schedule)
    kept = [copy.deepcopy(part.state_dict()) for part in (whole, optimizer, schedule)]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025] * 3
    resumed = tiny()
    resumed.load_state_dict(kept[0])
    again = of_muon(resumed)
    late = halved(again)
    again.load_state_dict(kept[1])
    late.load_state_dict(kept[2])
    for model, moved, rates in ((whole, optimizer, schedule), (resumed, again, late)):
        for _ in range(2):
            step(model, moved, rates)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(again.state) == len(list(resumed.parameters()))


def test_a_rate_stays_and_falls_at_the_end() -> None:
    config = build(OptimizerConfig, {"schedule": "warmup_stable_decay", "decay_fraction": 0.25}, "x")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler("warmup_stable_decay", optimizer, 2, 20, schedule_options(config, 20))
    rates = [schedule.lr_lambdas[0](number) for number in range(21)]
    assert rates == pytest.approx([0, 0.5, *[1.0] * 13, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-6)
    assert schedule_options(build(OptimizerConfig, {}, "x"), 20) == {}


def adapted(**options: bool) -> Any:
    model = make_trainable(tiny(), "lora", 4, 8.0, 0.0, "all-linear", where="train.sft", **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def change(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=IDS).logits
    with model.disable_adapter():
        return logits - model(input_ids=IDS).logits


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank() -> None:
    plain, stable = adapted(), adapted(rslora=True)
    (layer, other) = (
        m.model.model.layers[0].mlp.up_proj.scaling["default"] for m in (plain.base_model, stable.base_model)
    )
    assert (layer, other) == (8 / 4, 8 / 2)
    assert change(stable).norm() > change(plain).norm()


def test_dora_trains_lengths_apart_from_directions() -> None:
    model = adapted(dora=True)
    lengths = {name: p for name, p in model.named_parameters() if "magnitude" in name and p.requires_grad}
    assert len(lengths) == 7
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lengths.values())


@pytest.mark.parametrize("form", ["rslora", "dora"])
def test_an_adapter_goes_on_in_its_own_form_alone(form: str) -> None:
    model = adapted(**{form: True})
    assert make_trainable(model, "lora", 4, 8.0, 0.0, "all-linear", where="train.dpo", **{form: True}) is model
    with pytest.raises(
        UsageError, match=rf"train.dpo.adapter.{form}: false, but with the model's adapter, .* it is true"
    ):
        make_trainable(model, "lora", 4, 8.0, 0.0, "all-linear", where="train.dpo")


def test_noise_on_embeddings_reaches_the_states_that_training_computes() -> None:
    model = tiny()
    chosen = torch.ones_like(IDS, dtype=torch.bool)
    quiet = states_at(model.model, IDS, chosen)
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    embeddings.register_forward_hook(neftune_post_forward_hook)
    assert not torch.allclose(states_at(model.model.train(), IDS, chosen), quiet)
    torch.testing.assert_close(states_at(model.model.eval(), IDS, chosen), quiet, atol=1e-5, rtol=1e-5)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"optimizer": {"kind": "muon"}}, "zero2", "optimizer.kind=muon: it needs whole matrices, which zero2 keeps"),
    ({"optimizer": {"kind": "adafactor"}}, "fsdp", "optimizer.kind=adafactor: it needs whole matrices"),
    ({"best": {"metric": "loss", "every": 2}}, "zero3", "best.metric=loss: the best weights cannot be loaded again"),
    ({"adapter": {"kind": "lora", "dora": True}}, "zero3", "adapter.dora=true was never run under zero3"),
    ({"neftune_alpha": 5}, "fsdp", "neftune_alpha was never run under fsdp with adapter.kind=full"),
]


@pytest.mark.parametrize(("knobs", "engine", "said"), REFUSED)
def test_what_does_not_work_or_was_never_run_is_refused(knobs: dict[str, Any], engine: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        require_known_ways(build(SftConfig, knobs, "train.sft"), engine, "train.sft")
    assert f"train.sft.{said}" in str(refused.value)
    for way in ("single", "ddp"):
        require_known_ways(build(SftConfig, knobs, "train.sft"), way, "train.sft")
    if "never run" in said:
        require_known_ways(build(SftConfig, {**knobs, "experimental": True}, "train.sft"), engine, "train.sft")


@pytest.mark.parametrize(
    ("schema", "knobs", "said"),
    [
        (SftConfig, {"best": {"metric": "loss"}}, "best.metric=loss needs evaluations to choose from; set best.every"),
        (SftConfig, {"best": {"patience": 2}}, "best.every and best.patience are for best.metric"),
        (SftConfig, {"best": {"metric": "margin", "every": 1}}, "best.metric=margin: this stage takes one of loss, to"),
        (SftConfig, {"best": {"metric": "loss", "every": 2}, "eval_steps": 3}, "eval_steps=3: best.every=2 says when"),
        (
            SftConfig,
            {"save_dtype": "bfloat16", "adapter": {"kind": "lora"}},
            "save_dtype=bfloat16: adapter.kind=lora sav",
        ),
        (PpoConfig, {"best": {"metric": "loss", "every": 2}}, "this stage takes no metric: nothing is held out here"),
        (PpoConfig, {"optimizer": {"kind": "muon"}}, "optimizer.kind=muon: not for stages that learn from their own"),
        (
            SftConfig,
            {"optimizer": {"schedule": "warmup_stable_decay", "decay_fraction": 1, "warmup_fraction": 0.1}},
            "are more than all steps together",
        ),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(schema: Any, knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(schema, knobs, "train.x")
    assert said in str(refused.value)
