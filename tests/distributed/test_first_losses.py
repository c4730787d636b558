"""The first loss of every stage under every engine, in float32 and in bfloat16, where it is known beforehand.

At the start a policy is its reference, so DPO's loss is ln 2 and KTO's a half; a rollout's tokens have the
log-probabilities that training finds for them, so PPO's rollout difference is nothing but rounding.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import build_prompts, build_reward_model
from forked_ranks import distributed, logs_of, start_ranks, train, wait_for, work_order
from rank_bench import KNOBS, Bench, losses

KINDS = ["single", "ddp", "zero2", "zero3", "fsdp2"]
DTYPES = ["float32", "bfloat16"]
IN_CI = {("single", "bfloat16"), ("zero2", "bfloat16"), ("fsdp2", "bfloat16"), ("ddp", "float32")}
EVERYWHERE = [
    pytest.param(kind, dtype, marks=[] if (kind, dtype) in IN_CI else pytest.mark.slow)
    for kind in KINDS
    for dtype in DTYPES
]
STEPS = {"max_steps": 2, "global_batch_size": 8, "micro_batch_size": 2}
PPO: dict[str, Any] = {
    "rollout_batch_size": 8,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "ppo_epochs": 2,
    "max_new_tokens": 12,
    "max_steps": 2,
    "log_steps": 1,
    "optimizer": {"learning_rate": 1e-3},
}


def processes(kind: str) -> int:
    return 1 if kind == "single" else 2


def first(bench: Bench, stage: str, kind: str, dtype: str) -> float:
    """Return the loss of the first step of a stage."""
    artifact = bench.train(stage, kind, processes(kind), tag=dtype, dtype=dtype, **STEPS)
    return losses(artifact)[0]


def seen(stage: str, kind: str, dtype: str, value: float) -> None:
    """Leave a figure for the table that `pytest -s` prints."""
    print(f"\nFIRST {stage} {kind} {dtype} {value:.7g}")


def against_reference(bench: Bench, stage: str, data: Path, kind: str, dtype: str) -> float:
    """Return the first loss of a stage that starts from its reference, which has the same precision."""
    inputs = {"model": bench.model, "data": data}
    reference = bench.artifact(f"{stage}_reference_{dtype}")
    if not reference.exists():
        train("reference", reference, inputs, distributed("single", 1), dtype=dtype)
    output = bench.artifact(f"{stage}_{kind}_{dtype}")
    how = distributed(kind, processes(kind))
    train(stage, output, {**inputs, "reference": reference}, how, **{**KNOBS, **STEPS, "dtype": dtype})
    seen(stage, kind, dtype, losses(output)[0])
    return losses(output)[0]


@pytest.mark.parametrize(("kind", "dtype"), EVERYWHERE)
def test_dpo_starts_at_ln_2(bench: Bench, kind: str, dtype: str) -> None:
    found = against_reference(bench, "dpo", bench.comparisons, kind, dtype)
    assert found == pytest.approx(math.log(2), abs=1e-6 if dtype == "float32" else 1e-3)


@pytest.mark.parametrize(
    ("kind", "dtype"), [pytest.param(kind, dtype, marks=pytest.mark.slow) for kind in KINDS for dtype in DTYPES]
)
def test_kto_starts_at_a_half(bench: Bench, kind: str, dtype: str) -> None:
    found = against_reference(bench, "kto", bench.unpaired, kind, dtype)
    assert found == pytest.approx(0.5, abs=1e-6 if dtype == "float32" else 1e-3)


@pytest.mark.parametrize(("kind", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_other_losses_start_where_one_process_in_float32_does(bench: Bench, stage: str, kind: str, dtype: str) -> None:
    found = first(bench, stage, kind, dtype)
    seen(stage, kind, dtype, found)
    assert found == pytest.approx(first(bench, stage, "single", "float32"), abs=1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(("kind", "dtype"), EVERYWHERE)
def test_ppo_finds_the_log_probabilities_of_its_rollout(bench: Bench, kind: str, dtype: str) -> None:
    prompts, reward = bench.root / "prompts", bench.root / "reward"
    if not prompts.exists():
        prompts.symlink_to(build_prompts(bench.root, bench.model))
        reward.symlink_to(build_reward_model(bench.root, bench.model))
    inputs = {"model": bench.model, "data": prompts.resolve(), "reward": reward.resolve()}
    output = bench.artifact(f"ppo_{kind}_{dtype}")
    train("ppo", output, inputs, distributed(kind, processes(kind)), **PPO, dtype=dtype)
    difference = losses(output, "policy/rollout_difference")[0]
    seen("ppo", kind, dtype, difference)
    assert difference < (1e-5 if dtype == "float32" else 0.02)
    assert abs(losses(output, "objective/kl")[0]) < (1e-4 if dtype == "float32" else 0.05)


HELD = "held.json"


def note_what_is_held() -> None:
    """Have each rank note what gradients it holds, and in which dtype, before the last micro-batch of a step."""
    from posttrain.train.engine.trainer import StageTrainer

    step = StageTrainer.training_step

    def noting(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, model, inputs, *args, **kwargs)
        self.micro = getattr(self, "micro", 0) + 1
        if self.micro % self.plan.accumulation:
            held, dtypes, whole = 0, set(), sum(p.numel() for p in self.model.parameters())
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    local = getattr(parameter.grad, "to_local", lambda grad=parameter.grad: grad)()
                    held += local.numel()
                    dtypes.add(str(local.dtype))
            for module in self.model.modules():
                state = getattr(module, "_get_fsdp_state", lambda: None)()
                group = getattr(state, "_fsdp_param_group", None)
                for one in group.fsdp_params if group is not None else ():
                    if one.unsharded_accumulated_grad is not None:
                        held += one.unsharded_accumulated_grad.numel()
            facts = {"held": held, "whole": whole, "dtypes": sorted(dtypes)}
            Path(os.environ["HELD"] + os.environ["RANK"]).write_text(json.dumps(facts))
        return loss

    StageTrainer.training_step = noting  # type: ignore[method-assign]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fsdp_accumulates_shards_in_float32(bench: Bench, dtype: str) -> None:
    """A whole float32 gradient on every process would be 32 GB of a model of eight billion parameters."""
    output = bench.artifact(f"held_{dtype}")
    knobs = {**KNOBS, **STEPS, "dtype": dtype}
    spec = work_order("sft", output, bench.inputs("sft"), distributed("fsdp2", 2), **knobs)

    def prepare() -> None:
        os.environ["HELD"] = str(output.with_name(f"{output.name}.{HELD}"))
        note_what_is_held()

    codes = wait_for(start_ranks("sft", spec, 2, prepare))
    assert codes == [0, 0], logs_of(spec)[-3000:]
    for rank in (0, 1):
        facts = json.loads(Path(f"{output.with_name(f'{output.name}.{HELD}')}{rank}").read_text())
        assert facts["dtypes"] == ["torch.float32"]
        assert 0 < facts["held"] <= facts["whole"] * 0.6


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_cpu_offload", "zero3_nvme_offload"])
def test_deepspeed_adds_micro_batches_up_in_float32(name: str) -> None:
    asked = distributed(name, 2).deepspeed
    assert asked is not None and asked["data_types"] == {"grad_accum_dtype": "fp32"}


def test_deepspeed_moves_float_inputs_and_does_not_round_them(bench: Bench) -> None:
    """A reference log-probability of −467.11 would be −468 in bfloat16."""
    output = bench.artifact("moved")
    spec = work_order(
        "dpo", output, bench.inputs("dpo"), distributed("zero2", 2), **{**KNOBS, **STEPS, "dtype": "bfloat16"}
    )

    def prepare() -> None:
        from posttrain.train.methods.dpo_trainer import DpoTrainer

        compute = DpoTrainer.compute_loss

        def looking(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            assert inputs["ref_chosen_logps"].dtype == torch.float32, inputs["ref_chosen_logps"].dtype
            return compute(self, model, inputs, *args, **kwargs)

        DpoTrainer.compute_loss = looking  # type: ignore[method-assign]

    codes = wait_for(start_ranks("dpo", spec, 2, prepare))
    assert codes == [0, 0], logs_of(spec)[-3000:]
