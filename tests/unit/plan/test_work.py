"""What stages cost: passes, seconds, memory beside a policy, what fits, and the longest way through a graph."""

import dataclasses
from typing import Any

import pytest

from posttrain.plan.cards import CARDS, Card
from posttrain.plan.disk import Writes
from posttrain.plan.footprint import Rollouts, Setting, Training
from posttrain.plan.graph import critical_path
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import count_adapter, count_parameters, forward_flops_per_token, kv_bytes
from posttrain.plan.passes import ON_GPU, Pass, peak_flops
from posttrain.plan.table import describe_ways
from posttrain.plan.ways import largest_micro_batch, slowdown, ways
from posttrain.plan.work import Machine, StagePlan, Work, plan_work
from posttrain.stage.spec import Distributed

GIB = 1 << 30
LLAMA = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"]
SMALL = KNOWN_SHAPES["HuggingFaceTB/SmolLM2-135M"]
PARAMETERS = 8_030_261_248
SCORE = PARAMETERS - 128_256 * 4096 + 4096
FULL = Setting(1, True, "full", "bfloat16", 3)


def _ppo(setting: Setting, processes: int = 8, **changed: Any) -> Any:
    rollouts = dataclasses.replace(Rollouts(256, 64, True, LLAMA, LLAMA), **changed)
    return Training(LLAMA, "lm", 1024, processes, rollouts=rollouts).memory(setting)


def test_ppo_holds_four_models_and_their_states() -> None:
    """36 bytes a parameter of four equal models: 16 for each of two that learn, 2 for each frozen one."""
    alone = _ppo(dataclasses.replace(FULL, zero=0), processes=1)
    states = 16 * (PARAMETERS + SCORE)
    assert alone.weights + alone.gradients + alone.optimizer == states
    assert alone.frozen == 2 * (PARAMETERS + SCORE)
    assert alone.cache == 64 * kv_bytes(LLAMA, 1024)


def test_what_samples_is_whole_where_what_learns_is_in_parts() -> None:
    spread, whole = _ppo(FULL), _ppo(dataclasses.replace(FULL, zero=2))
    both = PARAMETERS + SCORE
    assert whole.frozen == 2 * both
    assert spread.frozen == 2 * (both + both // 8), "policy and critic while they sample, an eighth of what scores"
    adapter = _ppo(dataclasses.replace(FULL, adapter="lora"), critic=None)
    assert adapter.frozen == 2 * (PARAMETERS + both // 8), "its backbone is frozen as well"


def test_an_adapter_needs_no_reference_and_a_shared_critic_no_model() -> None:
    adapter = dataclasses.replace(FULL, adapter="lora", zero=None)
    assert _ppo(adapter).frozen == 2 * SCORE
    assert _ppo(adapter, reward=None).frozen == 0
    with_critic, without = _ppo(adapter), _ppo(adapter, critic=None)
    assert with_critic.trainable - without.trainable == SCORE


def test_sampling_and_updates_follow_each_other() -> None:
    made = _ppo(FULL)
    states = made.weights + made.gradients + made.optimizer + made.frozen
    assert made.total == states + max(made.activations + made.head, made.cache)
    crowded = _ppo(FULL, batch=4096)
    assert crowded.total == states + crowded.cache


def test_gradients_take_the_place_of_activations_in_the_only_micro_batch_of_a_step() -> None:
    setting = dataclasses.replace(FULL, zero=None, micro_batch=16)
    one, several = (dataclasses.replace(_sft(1), share=share).memory(setting) for share in (16, 32))
    states = one.weights + one.optimizer
    assert one.total == states + max(one.activations + one.head, one.gradients)
    assert several.total == states + several.gradients + several.activations + several.head


@pytest.mark.parametrize("rollouts", [None, Rollouts(256, 64, True)])
def test_on_a_cpu_a_trunk_learns_that_keeps_less(rollouts: Rollouts | None) -> None:
    setting = dataclasses.replace(FULL, dtype="float32", zero=None, checkpointing=False)
    there, here = (
        Training(LLAMA, "lm", 1024, 1, rollouts=rollouts, on_cpu=on_cpu).memory(setting).activations
        for on_cpu in (False, True)
    )
    assert there - here == 1024 * 32 * (8 * 4096 + 4 * 14336)


def test_on_a_cpu_the_head_keeps_a_store_of_logits_in_place_of_a_tile() -> None:
    setting = dataclasses.replace(FULL, dtype="float32")
    there, here = (dataclasses.replace(_sft(), on_cpu=on_cpu).memory(setting).head for on_cpu in (False, True))
    assert here - there == 4 * (2**26 - 4096 * 32768)


def test_logits_of_rollouts_are_kept_for_every_chosen_token() -> None:
    made = _ppo(dataclasses.replace(FULL, micro_batch=2))
    assert made.head == 2 * 256 * 128_256 * 2 + 4 * 4096 * 128_256


def test_offload_leaves_what_is_gathered() -> None:
    kept = {"tokens": 0, "dtype": "bfloat16", "num_processes": 8, "zero_stage": 3}
    there, away = (estimate_memory(LLAMA, offload=offload, **kept) for offload in (False, True))  # type: ignore[arg-type]
    assert there.weights == 2 * PARAMETERS // 8 + 4 * 128_256 * 4096
    assert (away.weights, away.gradients, away.optimizer) == (4 * 128_256 * 4096, 0, 0)


def _sft(processes: int = 8) -> Training:
    return Training(LLAMA, "lm", 4096, processes)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    limit = 70 * GIB
    largest = largest_micro_batch(_sft(), FULL, limit, 64)
    sizes = [_sft().memory(dataclasses.replace(FULL, micro_batch=size)).total for size in (largest, 2 * largest)]
    assert 1 < largest < 64 and sizes[0] <= limit < sizes[1]
    assert largest_micro_batch(_sft(), FULL, 1 * GIB, 64) == 0


def test_ways_out_fit_are_ranked_and_say_what_to_set() -> None:
    asked = Setting(8, False, "full", "bfloat16", None)
    limit = 70 * GIB
    found = ways(_sft(), asked, limit, 16, "train.sft")
    assert found and all(way.total == _sft().memory(way.setting).total <= limit for way in found)
    assert [way.same_results for way in found] == sorted((way.same_results for way in found), reverse=True)
    same = [way.slowdown for way in found if way.same_results]
    assert same == sorted(same) and same[0] == slowdown(found[0].setting)
    best = found[0]
    assert best.setting.zero in (2, 3) and any(change.startswith("distributed=zero") for change in best.changes)
    assert not any(way.setting.adapter == "qlora" and way.setting.zero == 3 for way in found)
    lora = next(way for way in found if way.setting.adapter == "lora")
    assert "adapter=lora" in lora.changes and not lora.same_results


def test_flops_and_seconds_of_passes() -> None:
    training = Pass("x", "train", LLAMA, 1e6, 2048, dtype="bfloat16", recomputed=True)
    forward = dataclasses.replace(training, kind="forward", recomputed=False)
    assert training.flops() == pytest.approx(3 * forward.flops())
    assert training.hardware_flops() == pytest.approx(4 * forward.flops())
    assert training.flops(causal=False) > training.flops()
    assert training.seconds(CARDS["h100"], 8, 0.5, 0.5) == pytest.approx(4 * forward.flops() / (8 * 989.4e12 * 0.5))
    adapter = dataclasses.replace(training, adapter=count_adapter(LLAMA, 16))
    assert adapter.flops() < training.flops() * 0.7


def test_decoding_reads_the_weights_once_a_step() -> None:
    card = Card("x", 1e18, 1e12, 1, 1, 1)
    decoded = Pass("x", "decode", LLAMA, 640, 1024, dtype="bfloat16", batch=64)
    read = 2 * (PARAMETERS - 128_256 * 4096) + 64 * kv_bytes(LLAMA, 1024)
    assert decoded.seconds(card, 1, 1, 1) == pytest.approx(10 * read / 1e12)
    assert decoded.seconds(card, 2, 1, 1) == pytest.approx(5 * read / 1e12)
    fast = Card("x", 1e18, 1e18, 1, 1, 1)
    assert decoded.seconds(fast, 1, 1, 1) == pytest.approx(10 * 32 * 4e-4)  # kernels are started one by one
    slow = Card("x", 1e12, 1e18, 1, 1, 1)
    steps = 10 * 64 * forward_flops_per_token(LLAMA, 1024) / 1e12
    assert decoded.seconds(slow, 1, 1, 1) == pytest.approx(steps)


def test_float32_is_slow_on_a_gpu_alone() -> None:
    h100, cpu = CARDS["h100"], Card("cpu", 1e11, 1, 1, 1, 1)
    assert (
        peak_flops(h100, "bfloat16", False)
        == 2 * peak_flops(h100, "float32", True)
        == 15 * peak_flops(h100, "float32", False)
    )
    assert peak_flops(cpu, "float32", False) == peak_flops(cpu, "bfloat16", False) == 1e11


def _plan(setting: Setting = FULL, card: str = "h100", processes: int = 8) -> StagePlan:
    training = _sft(processes)
    trained = Pass("training", "train", LLAMA, 1e9, 2048, dtype="bfloat16", recomputed=setting.checkpointing)
    distributed = Distributed("deepspeed", processes)
    work = Work(
        "sft",
        "train.sft",
        LLAMA,
        distributed,
        (trained,),
        100,
        training,
        setting,
        16,
        writes=Writes(PARAMETERS, 2, PARAMETERS, 2, 12 * PARAMETERS, kept=2),
    )
    return plan_work(work, Machine(CARDS[card], 2.0, ON_GPU))


def test_a_stage_costs_its_cards_for_its_time() -> None:
    plan = _plan()
    assert plan.seconds is not None and plan.seconds.low < plan.seconds.expected < plan.seconds.high
    values = {item.name: item.value for item in plan.figures}
    flops = 4 / 3 * values["FLOPs"]
    assert values["FLOPs done"] == pytest.approx(flops)
    assert values["time"] == pytest.approx(flops / (8 * 989.4e12 * 0.35))
    assert values["cost"] == pytest.approx(8 * values["time"] / 3600 * 2.0)
    assert values["energy"] == pytest.approx(8 * values["time"] / 3600 * 0.7)
    assert values["disk"] == 3 * 14 * PARAMETERS + 2 * PARAMETERS
    assert values["memory of a process"] == plan.memory.total if plan.memory else False


def test_what_does_not_fit_says_what_would() -> None:
    small = _plan(dataclasses.replace(FULL, zero=None, checkpointing=False))
    assert not small.fits and small.largest == 0
    first, *lines = describe_ways(small)
    assert "does not fit; ways out" in first and lines[0].strip().startswith("distributed=")
    hopeless = _plan(card="l4", processes=1, setting=dataclasses.replace(FULL, zero=None))
    assert [way for way in hopeless.ways if way.same_results and not way.setting.offload] == []
    faster = describe_ways(_plan())
    assert faster and "gradient_checkpointing=false" in faster[0]


def test_the_longest_way_through_a_graph() -> None:
    needs = {"data": [], "base": ["data"], "reward": ["base"], "dpo": ["base"], "ppo": ["base", "reward"], "end": []}
    seconds = {"base": 5.0, "reward": 2.0, "dpo": 6.5, "ppo": 4.0}
    assert critical_path(seconds, needs) == (["base", "dpo"], 11.5)
    assert critical_path({**seconds, "ppo": 4.6}, needs) == (["base", "reward", "ppo"], pytest.approx(11.6))
    assert critical_path({}, {}) == ([], 0.0)


def test_a_model_of_experts_trains_what_it_meets() -> None:
    mixtral = KNOWN_SHAPES["mistralai/Mixtral-8x7B-v0.1"]
    dense = Pass("x", "train", mixtral, 1.0, 0)
    assert dense.flops() == pytest.approx(6 * (12_879_925_248 - 32000 * 4096))
    assert count_parameters(SMALL) == 134_515_008
