"""How every training stage begins, and what follows from its configuration, said once at the start."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.tokenizer import load_tokenizer, require_tokens
from posttrain.models.adapters import parameter_counts
from posttrain.models.load import backbone_directory
from posttrain.plan.families import read_shape
from posttrain.plan.memory import MemoryEstimate, estimate_memory
from posttrain.plan.model import Head
from posttrain.plan.table import describe_memory
from posttrain.stage.engine import shards_like_zero
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.train.config.common import TrainingConfig
from posttrain.train.engine.batching import BatchPlan
from posttrain.train.engine.processes import join

log = logging.getLogger(__name__)


def begin(context: Context, record_type: str) -> PreTrainedTokenizerBase:
    """Join the other processes, check that ``inputs.data`` fits ``inputs.model``, and return the model's tokenizer.

    Raises UsageError where the tokens are of other records, or were made with another tokenizer or chat template.
    """
    join(context)
    tokenizer = load_tokenizer(context.inputs["model"])
    require_tokens(context.inputs["data"], record_type, tokenizer)
    return tokenizer


def announce(plan: BatchPlan, unit: str, rows: str, model: Any, memory: MemoryEstimate | None = None) -> None:
    """Print what follows from the configuration: batches, steps, parameters, memory of one process.

    ``unit`` is what a batch consists of, ``rows`` says what the steps go over.
    """
    each = f"{plan.micro_batch_size} rows" if plan.limit is None else f"at most {plan.limit.most:,} tokens"
    log.info(
        "global batch %d %s = %s x %d processes x %d accumulation; %d steps; %s",
        plan.global_batch_size,
        unit,
        each,
        plan.world_size,
        plan.accumulation,
        plan.max_steps,
        rows,
    )
    total, trainable = parameter_counts(model)
    log.info("parameters %s, trainable %s", f"{total:,}", f"{trainable:,}")
    if memory is not None:
        log.info(describe_memory(memory))


def describe_rows(plan: BatchPlan, tokens: int) -> str:
    """Return what the steps of a stage with rows of its own go over."""
    return f"{plan.epochs:.2f} epochs of {plan.num_rows:,} rows, {tokens:,} tokens"


def estimated_memory(
    config: TrainingConfig, context: Context, plan: BatchPlan, tokens_per_row: int, head: Head
) -> MemoryEstimate | None:
    """Return the estimate for one process; None, and why, for a family whose shape is not known."""
    on_gpu = torch.cuda.is_available()
    zero = shards_like_zero(context.spec.distributed)
    try:
        shape = read_shape(backbone_directory(context.inputs["model"]))
        return estimate_memory(
            shape,
            tokens=plan.micro_batch_size * tokens_per_row
            if plan.limit is None
            else max(plan.limit.most, tokens_per_row),
            head=head,
            adapter=config.adapter.kind,
            rank=config.adapter.rank,
            target_modules=config.adapter.target_modules,
            dtype=config.dtype,
            gradient_checkpointing=config.gradient_checkpointing,
            num_processes=plan.world_size,
            zero_stage=zero,
            fresh=plan.world_size == 1 and zero is None and plan.accumulation == 1,
            kernels=on_gpu,
            own_trunk=not on_gpu and not shape.blocks,
            optimizer=config.optimizer.kind,
        )
    except UsageError as unknown_family:  # an estimate is a courtesy, not a condition
        log.info("no memory estimate: %s", unknown_family)
        return None
