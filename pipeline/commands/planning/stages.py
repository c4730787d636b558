"""From a stage of the graph to what its cost follows from: the models that it moves, how often, and beside what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.pipeline.commands.planning.rows import Given, Rows, drawn_by, longest_row, record_type_of, rows_of
from posttrain.pipeline.graph.graph import Stage
from posttrain.plan.families import read_shape
from posttrain.plan.footprint import Rollouts, Setting, Training
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.model import Head, ModelShape
from posttrain.plan.passes import Pass
from posttrain.plan.work import Work
from posttrain.stage.engine import shards_like_zero
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.spec import Distributed

SEQUENCES_PER_ROW = {"train.sft": 1, "train.reward": 2, "train.dpo": 2, "train.kto": 1}
"""Sequences that one row puts through the model; a reward model's group is taken as a pair where nothing tells more."""
WITH_ROLLOUTS = ("train.ppo", "train.rloo", "train.grpo")
SHARED = 0.5
"""Share of a row's tokens that is its prompt, which its responses share, where no rows are here: an assumption."""
UNKNOWN_LENGTH = 0.5
"""Mean tokens of a row over the most that it may have, where nothing tells: an assumption."""


def offloads(distributed: Distributed) -> bool:
    """Return whether an engine keeps weights and their states in the memory of the CPU."""
    zero = (distributed.deepspeed or {}).get("zero_optimization", {})
    by_zero = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    return by_zero or bool((distributed.fsdp or {}).get("cpu_offload"))


def work_of(stage: Stage, stages: Mapping[str, Stage], distributed: Distributed, given: Given) -> Work | None:
    """Return what a stage will do; None for one that moves no model. Rows that nobody tells of are no passes."""
    run = stage.type.run
    if run in SEQUENCES_PER_ROW:
        return _trained(stage, stages, distributed, given)
    if run in WITH_ROLLOUTS:
        return _with_rollouts(stage, stages, distributed, given)
    if run in ("train.reference", "evaluate.reward"):
        return _scored(stage, stages, distributed, given)
    if run in ("evaluate.policy", "evaluate.drift", "evaluate.best_of_n", "sample.rank", "sample.generate"):
        return _sampled(stage, stages, distributed, given)
    return None


def base_shape(stage: Stage, stages: Mapping[str, Stage]) -> ModelShape:
    """Return the shape of the base model that a stage's model descends from.

    Raises UsageError when nothing here states it.
    """
    while stage.type.run != "train.base":
        stage = stages[stage.inputs["model"]]
    config: Any = stage.config
    if config.path is not None:
        return read_shape(Path(config.path))
    if config.hub_name is not None:
        if config.hub_name in KNOWN_SHAPES:
            return KNOWN_SHAPES[config.hub_name]
        hint = did_you_mean(config.hub_name, KNOWN_SHAPES)
        raise UsageError(
            f"train.base.hub_name: {config.hub_name!r} has no known shape; give train.base.path=FOLDER{hint}"
        )
    made = config.architecture
    return ModelShape(
        vocab_size=made.vocab_size,
        hidden_size=made.hidden_size,
        intermediate_size=made.intermediate_size,
        num_layers=made.num_layers,
        num_heads=made.num_heads,
        num_kv_heads=made.num_kv_heads,
        head_dim=made.hidden_size // made.num_heads,
        tied_embeddings=True,
    )


def _setting(config: Any, rows: int, distributed: Distributed) -> Setting:
    return Setting(
        micro_batch=rows,
        checkpointing=config.gradient_checkpointing,
        adapter=config.adapter.kind,
        dtype=config.dtype,
        zero=shards_like_zero(distributed),
        offload=offloads(distributed),
    )


def _share(config: Any, distributed: Distributed, row_tokens: int) -> tuple[int, int]:
    """Return the rows of a global batch that a process has, and those that it takes at once, all of the longest."""
    share = max(1, config.global_batch_size // distributed.num_processes)
    if limit := getattr(config, "micro_batch_tokens", None):
        return share, min(share, max(1, limit // row_tokens))
    most = min(share, config.micro_batch_size)
    return share, max(size for size in range(1, most + 1) if share % size == 0)


def critic_of(stage: Stage, stages: Mapping[str, Stage]) -> ModelShape | None:
    """Return the shape of a model that learns beside the policy; None where there is none, or it is part of that."""
    if stage.type.run != "train.ppo" or stage.config.critic.kind == "shared":
        return None
    rewards = _of_ensemble(stage, "reward") if stage.config.critic.kind == "reward_model" else []
    return base_shape(stages[rewards[0]] if rewards else stage, stages)


def _trained(stage: Stage, stages: Mapping[str, Stage], distributed: Distributed, given: Given) -> Work:
    config, run = stage.config, stage.type.run
    data = stages[stage.inputs["data"]]
    rows = rows_of(data, stages, given)
    packed = run == "train.sft" and config.packing
    limit = config.pack_length if packed else longest_row(data, stages)
    each = SEQUENCES_PER_ROW[run]
    if run == "train.reward" and rows is not None:
        each = rows.responses
    head: Head = "score" if run == "train.reward" else "lm"
    row_tokens = round(limit * (each - (each - 1) * _prompt_share(config, rows)))
    share, micro = _share(config, distributed, row_tokens)
    training = Training(
        base_shape(stage, stages),
        head,
        row_tokens=row_tokens,
        processes=distributed.num_processes,
        rank=config.adapter.rank,
        target_modules=config.adapter.target_modules,
        optimizer=config.optimizer.kind,
    )
    mean = limit if packed else _mean(rows, limit)
    steps = config.max_steps
    if steps is None and rows is not None:
        number = rows.train * _mean(rows, limit) / limit if packed else rows.train
        steps = math.ceil(config.epochs * number / config.global_batch_size)
    passes: tuple[Pass, ...] = ()
    if steps is not None:
        usual = Pass("training", "train", training.shape, 0.0, round(mean), head, config.dtype)
        trained = dataclasses.replace(
            usual,
            tokens=steps * config.global_batch_size * each * mean,
            adapter=training.adapter_parameters(config.adapter.kind),
            recomputed=config.gradient_checkpointing,
        )
        times = 1 + (steps // config.eval_steps if config.eval_steps else 0)
        tokens = times * (rows.held_out if rows else 0) * each * _mean(rows, limit)
        passes = (trained, dataclasses.replace(usual, what="held out", kind="forward", tokens=tokens))
    setting, tf32 = _setting(config, micro, distributed), config.tf32
    return Work(stage.name, run, training.shape, distributed, passes, steps, training, setting, share, tf32)


def _prompt_share(config: Any, rows: Rows | None) -> float:
    """Return the share of a row's tokens that is computed once for all its responses: of rows here, or assumed."""
    if getattr(config, "share_prompts", "never") == "never":
        return 0.0
    return SHARED if rows is None or rows.prompt_share is None else rows.prompt_share


def _with_rollouts(stage: Stage, stages: Mapping[str, Stage], distributed: Distributed, given: Given) -> Work:
    config, run = stage.config, stage.type.run
    data = stages[stage.inputs["data"]]
    rows, limit = rows_of(data, stages, given), longest_row(data, stages)
    shape = base_shape(stage, stages)
    rewards = _of_ensemble(stage, "reward")
    reward = base_shape(stages[rewards[0]], stages) if rewards else None
    verifier = base_shape(stages[stage.inputs["verifier"]], stages) if "verifier" in stage.inputs else None
    is_ppo = run == "train.ppo"
    critic = critic_of(stage, stages)
    with_reference = is_ppo or run == "train.rloo" or config.beta > 0
    row_tokens = limit + config.max_new_tokens
    share, micro = _share(config, distributed, row_tokens)
    training = Training(
        shape,
        "lm",
        row_tokens=row_tokens,
        processes=distributed.num_processes,
        rank=config.adapter.rank,
        target_modules=config.adapter.target_modules,
        optimizer=config.optimizer.kind,
        rollouts=Rollouts(
            config.max_new_tokens, config.rollout_batch, with_reference, reward, critic, len(rewards), verifier
        ),
    )
    passes_over = config.ppo_epochs if is_ppo else config.num_iterations
    steps, phases = config.max_steps, None
    if steps is not None:
        phases = steps / (passes_over * config.mini_batches)
    elif rows is not None:
        phases = math.ceil(config.epochs * rows.train * config.samples_per_prompt / config.rollout_batch_size)
        steps = round(phases * passes_over * config.mini_batches)
    passes: tuple[Pass, ...] = ()
    if phases is not None:
        responses = phases * config.rollout_batch_size
        length = round(_mean(rows, limit) + config.max_new_tokens)
        whole = Pass("", "forward", shape, responses * length, length, "lm", config.dtype)
        decoded = dataclasses.replace(
            whole,
            what="sampling",
            kind="decode",
            tokens=responses * config.max_new_tokens,
            batch=min(config.rollout_batch, math.ceil(config.rollout_batch_size / distributed.num_processes)),
        )
        prompts = dataclasses.replace(whole, what="prompts", tokens=responses * (length - config.max_new_tokens))
        update = {"kind": "train", "tokens": passes_over * whole.tokens, "recomputed": config.gradient_checkpointing}
        low_rank = training.adapter_parameters(config.adapter.kind)
        frozen = [dataclasses.replace(whole, what="reference")] if with_reference else []
        for what, judge, models in (("reward", reward, len(rewards)), ("verifier", verifier, 1)):
            if judge is not None:
                judged = dataclasses.replace(whole, what=what, shape=judge, head="score")
                frozen.append(dataclasses.replace(judged, tokens=models * judged.tokens))
        updates = [dataclasses.replace(whole, what="policy", adapter=low_rank, **update)]
        if critic is not None:
            of_critic = dataclasses.replace(whole, what="values", shape=critic, head="score")
            frozen.append(of_critic)
            updates.append(dataclasses.replace(of_critic, what="critic", **update))
        passes = (prompts, decoded, *frozen, *updates)
    setting = _setting(config, micro, distributed)
    return Work(stage.name, run, shape, distributed, passes, steps, training, setting, share, config.tf32)


def _of_ensemble(stage: Stage, name: str) -> list[str]:
    """Return the stages that make an input of which there may be several: that of the name, and ``NAME_`` anything."""
    return [made for key, made in sorted(stage.inputs.items()) if key == name or key.startswith(f"{name}_")]


def _scored(stage: Stage, stages: Mapping[str, Stage], distributed: Distributed, given: Given) -> Work:
    """Return the work of a stage that puts every response of its data through a model once."""
    data = stages[stage.inputs["data"]]
    rows, limit = rows_of(data, stages, given), longest_row(data, stages)
    head: Head = "score" if stage.type.run == "evaluate.reward" else "lm"
    shape = base_shape(stage, stages)
    if rows is None:
        return Work(stage.name, stage.type.run, shape, distributed, ())
    number = rows.held_out if head == "score" else rows.train + rows.held_out
    unpaired = record_type_of(data, stages) == "unpaired"
    tokens = number * (1 if unpaired else rows.responses) * _mean(rows, limit)
    if head == "score":  # as they are, and each with four probes
        tokens += min(number, stage.config.probed_groups) * 5 * rows.responses * _mean(rows, limit)
    tokens *= len(_of_ensemble(stage, "model"))
    scored = Pass("scoring", "forward", shape, tokens, round(_mean(rows, limit)), head, stage.config.dtype)
    return Work(stage.name, stage.type.run, shape, distributed, (scored,))


def _sampled(stage: Stage, stages: Mapping[str, Stage], distributed: Distributed, given: Given) -> Work:
    """Return the work of a stage that draws responses and perhaps scores them."""
    config, run = stage.config, stage.type.run
    shape = base_shape(stage, stages)
    source = stage.inputs.get("items") or stage.inputs.get("prompts")
    rows = rows_of(stages[source], stages, given) if source else None
    passes: list[Pass] = []
    if source and rows is None:
        return Work(stage.name, run, shape, distributed, ())
    if rows is not None:
        number = rows.held_out if "items" in stage.inputs else rows.train + rows.held_out
        number = min(number, getattr(config, "max_items", None) or number)
        samples, longest = drawn_by(stage)
        drawn = number * samples
        prompt = _mean(rows, longest_prompt(rows))
        length = round(prompt + longest)
        whole = Pass("scoring", "forward", shape, drawn * length, length, "lm", config.dtype)
        passes += [
            dataclasses.replace(whole, what="prompts", tokens=number * prompt),
            dataclasses.replace(
                whole,
                what="sampling",
                kind="decode",
                tokens=drawn * longest,
                batch=max(1, round(min(config.batch_size, drawn / distributed.num_processes))),
            ),
        ]
        models = ["policy", "reference"] if run == "evaluate.drift" else []
        models += ["reward"] * len(_of_ensemble(stage, "reward_model"))
        passes += [dataclasses.replace(whole, what=model) for model in models]
    if "data" in stage.inputs:
        data = stages[stage.inputs["data"]]
        held, limit = rows_of(data, stages, given), longest_row(data, stages)
        if held is not None:
            mean = _mean(held, limit)
            passes.append(Pass("held out", "forward", shape, held.held_out * mean, round(mean), "lm", config.dtype))
    return Work(stage.name, run, shape, distributed, tuple(passes))


def longest_prompt(rows: Rows) -> int:
    """Return the tokens that a prompt is taken to have where nothing tells."""
    return 512 if rows.mean_tokens is None else round(rows.mean_tokens)


def _mean(rows: Rows | None, limit: int) -> float:
    """Return the mean tokens of a row that may have at most so many."""
    if rows is None or rows.mean_tokens is None:
        return limit * UNKNOWN_LENGTH
    return min(rows.mean_tokens, limit)
