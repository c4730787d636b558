"""Run a trainer to its end: announce, resume, train, evaluate, save what the artifact holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import Head, read_shape
from posttrain.plan.table import describe_memory
from posttrain.sample.models import BASE_FILE, backbone_directory, is_adapter, read_base
from posttrain.stage import heartbeat
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context
from posttrain.stage.errors import PosttrainError, StoppedError, UsageError
from posttrain.stage.files import write_json_atomic
from posttrain.train.adapters import count_parameters
from posttrain.train.batching import BatchPlan, plan_batches
from posttrain.train.checkpoint import CHECKPOINTS, newest_valid_checkpoint
from posttrain.train.config import TrainingConfig
from posttrain.train.elastic import for_processes
from posttrain.train.processes import engine_asked_for, zero_stage
from posttrain.train.sharded_save import save_whole_model
from posttrain.train.trainer import GO_ON, StageTrainer

log = logging.getLogger(__name__)


def plan_steps(config: TrainingConfig, num_rows: int, context: Context) -> BatchPlan:
    """Return how a stage's rows are laid out in global batches, micro-batches and steps."""
    return plan_batches(
        num_rows,
        config.global_batch_size,
        config.micro_batch_size,
        context.spec.distributed.num_processes,
        config.epochs,
        config.max_steps,
    )


def announce(
    trainer: StageTrainer, config: TrainingConfig, context: Context, sequences_per_row: int, head: Head
) -> None:
    """Print what follows from the configuration: batches, steps, tokens, parameters, memory of one process."""
    plan, lengths = trainer.plan, trainer.train_dataset["length"]
    log.info(
        "global batch %d = %d rows x %d processes x %d accumulation; %d steps = %.2f epochs of %s rows, %s tokens",
        plan.global_batch_size,
        plan.micro_batch_size,
        plan.world_size,
        plan.accumulation,
        plan.max_steps,
        plan.epochs,
        f"{plan.num_rows:,}",
        f"{sum(lengths):,}",
    )
    total, trainable = count_parameters(trainer.model)
    log.info("parameters %s, trainable %s", f"{total:,}", f"{trainable:,}")
    try:
        memory = estimate_memory(
            read_shape(backbone_directory(context.inputs["model"])),
            tokens=plan.micro_batch_size * sequences_per_row * max(lengths),
            head=head,
            adapter=config.adapter.kind,
            rank=config.adapter.rank,
            target_modules=config.adapter.target_modules,
            dtype=config.dtype,
            gradient_checkpointing=config.gradient_checkpointing,
            num_processes=plan.world_size,
            zero_stage=zero_stage(context.spec.distributed),
        )
        log.info(describe_memory(memory))
    except UsageError as unknown_family:  # an estimate is a courtesy, not a condition
        log.info("no memory estimate: %s", unknown_family)


def fit(trainer: StageTrainer, context: Context) -> dict[str, float]:
    """Train from the newest valid checkpoint, or from the start, to the last step; returns the final metrics.

    Raises StoppedError when a signal ended the training early; its state is saved.
    """
    checkpoint = _agree_on_checkpoint(context)
    if checkpoint is not None:
        log.info("resuming from %s, the newest valid checkpoint", checkpoint.name)
        trainer.load_state(checkpoint)
    else:
        trainer.tracker.rewind(0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step, last = trainer.state.global_step, trainer.plan.max_steps
    if trainer.stop.stopped:
        raise StoppedError(f"stopped on request at step {step} of {last}; {GO_ON}")
    if step != last:
        raise PosttrainError(f"training ended at step {step} of {last}; this is a bug in the data order")
    metrics = {"steps": step, "tokens": trainer.tokens_seen}
    if trainer.eval_dataset is not None:
        evaluation = trainer.evaluate()
        metrics |= {name: value for name, value in evaluation.items() if not name.endswith(("_runtime", "_per_second"))}
    metrics.pop("epoch", None)
    trainer.stop.release()
    return metrics


def _agree_on_checkpoint(context: Context) -> Path | None:
    """Return the checkpoint that the first rank found, on every rank; raise what kept it from being used."""
    found: list[Path | PosttrainError | None] = [_find_checkpoint(context) if context.main_process else None]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    if isinstance(found[0], PosttrainError):
        raise found[0]
    return found[0]


def _find_checkpoint(context: Context) -> Path | PosttrainError | None:
    checkpoint = newest_valid_checkpoint(context.work / CHECKPOINTS)
    if checkpoint is None:
        return None
    asked = context.spec.distributed
    try:
        return for_processes(checkpoint, engine_asked_for(asked), asked.num_processes)
    except PosttrainError as error:
        return error


def save_model(
    model: Any, context: Context, tokenizer: PreTrainedTokenizerBase, extra: dict[str, Any] | None = None
) -> None:
    """Write a trained model as an artifact's files: safetensors, configuration, tokenizer and its chat template.

    An adapter is written alone, with `base.json` naming the artifact that holds its backbone; ``extra`` is added there.
    All ranks must call this: sharded weights are gathered.
    """
    heartbeat.beat("saving the model")
    save_whole_model(model, context.output, context.main_process)
    if not context.main_process:
        return
    tokenizer.save_pretrained(str(context.output))
    (context.output / "README.md").unlink(missing_ok=True)
    if isinstance(model, PeftModel):
        write_json_atomic(context.output / BASE_FILE, _base_of(context.inputs["model"]) | (extra or {}))


def _base_of(model: Path) -> dict[str, Any]:
    if is_adapter(model):
        base = read_base(model)
        return {"base": base["base"], "digest": base["digest"]}
    return {"base": model.name, "digest": read_manifest(model).digest}
