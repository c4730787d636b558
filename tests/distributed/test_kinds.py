"""Every kind of distributed training reaches what one process reaches, and what it saves stands alone.

The tolerance is for float32 sums in another order: 1e-5 on losses near 6, and on weights 1e-5, a hundredth of a step of
Adam, which turns a rounding difference of a tiny gradient into much of a step.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from forked_ranks import distributed, logs_of, start_ranks, wait_for, work_order
from rank_bench import Bench, losses, weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.models.load import load_policy
from posttrain.stage.artifact import read_manifest
from posttrain.stage.outcome import read_outcome

KINDS = ["ddp", "zero2", "zero3", "fsdp2"]


def lora(kind: str) -> dict[str, Any]:
    """An adapter that trains the rows of new tokens, too, but where an engine keeps them in parts."""
    return {"adapter": {"kind": "lora", "rank": 4, "new_tokens": kind != "zero3"}}


def same_training(bench: Bench, stage: str, kind: str, processes: int = 2) -> None:
    alone, together = bench.train(stage, "single", 1), bench.train(stage, kind, processes)
    assert len(losses(alone)) == 6
    assert losses(together) == pytest.approx(losses(alone), abs=1e-5)
    assert losses(together, "grad_norm") == pytest.approx(losses(alone, "grad_norm"), rel=1e-4)
    assert losses(together, "eval_loss") == pytest.approx(losses(alone, "eval_loss"), abs=1e-5)
    expected, got = weights(alone), weights(together)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=0)


TRAINED: list[Any] = [(stage, kind) for stage in ("sft", "reward", "dpo") for kind in KINDS]
TRAINED += [pytest.param("kto", kind, marks=[] if kind == "fsdp2" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize(("stage", "kind"), TRAINED)
def test_two_ranks_train_what_one_process_trains(bench: Bench, stage: str, kind: str) -> None:
    same_training(bench, stage, kind)
    artifact = bench.train(stage, kind)
    head = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    loaded, report = head.from_pretrained(artifact, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    stored = weights(artifact)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, stored[name]), name
    if stage == "reward":
        alone = bench.train(stage, "single", 1)
        for fact in ("reward_mean", "reward_std"):
            assert getattr(loaded.config, fact) == pytest.approx(read_manifest(alone).facts[fact], abs=1e-5)


@pytest.mark.parametrize(("kind", "processes"), [("zero1", 2), ("zero3", 1), ("fsdp2", 1)])
def test_other_kinds_and_groups_of_one(bench: Bench, kind: str, processes: int) -> None:
    same_training(bench, "sft", kind, processes)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_zero3_with_offload(bench: Bench, stage: str) -> None:
    same_training(bench, stage, "zero3_cpu_offload")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_trained_on_with_every_kind(bench: Bench, kind: str) -> None:
    adapter = "lora" if kind != "zero3" else "lora_alone"
    alone = bench.train("sft", "single", 1, tag=adapter, **lora(kind))
    together = bench.train("sft", kind, tag=adapter, **lora(kind))
    expected, got = weights(alone), weights(together)
    assert sorted(path.name for path in together.glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert got.keys() == expected.keys()
    assert any("trainable_tokens" in name for name in got) == (kind != "zero3")
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=0)
    for stage, tag in (
        ("dpo", adapter),
        ("kto", adapter),
        ("reward", adapter),
        ("dpo", "merged"),
        ("reward", "merged"),
    ):
        knobs = {} if tag == "merged" else lora(kind)
        one = bench.train(stage, "single", 1, model=alone, tag=tag, **knobs)
        two = bench.train(stage, kind, model=alone, tag=tag, **knobs)
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_bfloat16_stores_float32_weights(bench: Bench, kind: str, adapter: str) -> None:
    """DeepSpeed computes in bfloat16 throughout, the others in mixed precision: near, not equal."""
    knobs: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": True}
    knobs |= lora(kind) if adapter == "lora" else {}
    tag = f"bf16_{adapter}" + "_alone" * (adapter == "lora" and kind == "zero3")
    alone, together = (bench.train("sft", *how, tag=tag, **knobs) for how in (("single", 1), (kind, 2)))
    assert losses(together) == pytest.approx(losses(alone), abs=5e-3)
    assert {tensor.dtype for tensor in weights(together).values()} == {torch.float32}
    assert load_policy(together, dtype="float32").dtype == torch.float32


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("ddp", "zero3") else pytest.mark.slow) for kind in KINDS]
)
def test_a_loss_that_is_not_finite_stops_every_kind(bench: Bench, kind: str) -> None:
    output = bench.artifact(f"nan_{kind}")
    knobs = {"global_batch_size": 8, "micro_batch_size": 2, "max_steps": 30, "save_steps": 1}
    how = distributed(kind, 2)
    spec = work_order("sft", output, bench.inputs("sft"), how, optimizer={"learning_rate": 1e20}, **knobs)
    codes = wait_for(start_ranks("sft", spec, 2))
    assert 1 in codes, logs_of(spec)
    outcome = read_outcome(output.with_name(f"{output.name}.outcome.json"))
    assert outcome is not None and ("not finite" in outcome.message or "gradient norm" in outcome.message)
    assert "demo/" in outcome.message
    failed = int(outcome.message.split("step ")[1].split(":")[0])
    saved = output.with_name(f"{output.name}.work") / "checkpoints"
    assert all(int(path.name.rpartition("-")[2]) < failed for path in saved.glob("checkpoint-*"))


def test_a_rank_ends_when_the_artifact_already_stands(bench: Bench) -> None:
    artifact = bench.train("sft", "ddp")
    spec = artifact.with_name(f"{artifact.name}.spec.json")
    assert wait_for(start_ranks("sft", spec, 2), timeout=40) == [0, 0]


def test_another_number_of_processes_than_asked_for_is_an_error(bench: Bench) -> None:
    output = bench.artifact("too_few")
    spec = work_order("sft", output, bench.inputs("sft"), distributed("ddp", 2))
    assert wait_for(start_ranks("sft", spec, 1)) == [1]
    outcome = json.loads(output.with_name("too_few.outcome.json").read_text())
    assert outcome["message"].startswith("1 processes are running, but the launcher asked for 2")


def test_quantised_weights_are_not_spread(bench: Bench) -> None:
    output = bench.artifact("qlora_zero3")
    spec = work_order("sft", output, bench.inputs("sft"), distributed("zero3", 1), adapter={"kind": "qlora"})
    assert wait_for(start_ranks("sft", spec, 1)) == [2]
    assert "4-bit weights cannot be spread" in output.with_name("qlora_zero3.outcome.json").read_text()
