"""Run a trainer to its end: announce, resume, train, evaluate, save what the artifact holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from posttrain.models.adapters import parameter_counts
from posttrain.models.load import BASE_FILE, is_adapter, read_base
from posttrain.plan.memory import MemoryEstimate
from posttrain.stage import heartbeat
from posttrain.stage.artifact import LOGS, read_manifest
from posttrain.stage.engine import engine_asked_for
from posttrain.stage.entry import Context
from posttrain.stage.errors import PosttrainError, StoppedError
from posttrain.stage.files import write_json_atomic
from posttrain.train.checkpoints.elastic import for_processes
from posttrain.train.checkpoints.protocol import CHECKPOINTS, newest_valid_checkpoint, read_commit
from posttrain.train.checkpoints.whole_weights import save_whole_model
from posttrain.train.config.common import Dtype, RowsConfig, TrainingConfig
from posttrain.train.engine.batching import BatchPlan, by_tokens, plan_batches
from posttrain.train.engine.best import best_checkpoint, require_held_out
from posttrain.train.engine.profiling import TRACE, ProfileSteps
from posttrain.train.engine.trainer import GO_ON, StageTrainer
from posttrain.train.engine.use import Trained, describe_use
from posttrain.train.rows.columns import Numbers, lengths_of

log = logging.getLogger(__name__)

SEQUENCES = {"train.dpo": 2, "train.reward": 2}
"""Sequences of a row where there are several; a reward model's group is taken as a pair."""


def plan_steps(
    config: TrainingConfig, num_rows: int, num_processes: int, held_out: int = 0, where: str = ""
) -> BatchPlan:
    """Return how a stage's rows are laid out in global batches, micro-batches and steps.

    ``held_out`` is the number of rows that the best weights can be chosen by, ``where`` the stage's configuration path.
    """
    require_held_out(config.best.metric, held_out, where)
    return plan_batches(
        num_rows,
        config.global_batch_size,
        config.micro_batch_size,
        num_processes,
        config.epochs,
        config.max_steps,
    )


def by_config(
    plan: BatchPlan, config: RowsConfig, rows: Dataset, seed: int, sequences: Numbers | int | None = 1
) -> BatchPlan:
    """Return a plan with the micro-batches of `config.micro_batch_tokens`, where that is given.

    ``sequences`` are those of each row, or of all alike, where they are padded; None where rows lie end to end.
    """
    most, lengths = config.micro_batch_tokens, lengths_of(rows)
    if most is None:
        return plan
    each = None if sequences is None else np.broadcast_to(np.asarray(sequences, np.int64), lengths.shape)
    planned = by_tokens(plan, most, lengths, each, seed)
    if longer := int((lengths * (1 if each is None else each) > most).sum()):
        log.info("micro_batch_tokens=%d: %d rows are longer, and stand alone", most, longer)
    return planned


def fit(
    trainer: StageTrainer, context: Context, config: TrainingConfig, memory: MemoryEstimate | None = None
) -> dict[str, float]:
    """Train from the newest valid checkpoint, or from the start, to the last step; returns the final metrics.

    Under ``config.best`` the weights are then those of the best evaluation, and the last step may come early.

    What the steps made of the machine is logged, beside the estimate ``memory``.
    Raises StoppedError when a signal ended the training early; its state is saved.
    """
    checkpoint = _agree_on_checkpoint(context)
    trainer.best.metric, trainer.best.patience = config.best.metric, config.best.patience
    if config.profile_steps is not None and context.main_process:
        trainer.add_callback(ProfileSteps(config.profile_steps, context.output / LOGS / TRACE))
    if checkpoint is not None:
        log.info("resuming from %s, the newest valid checkpoint", checkpoint.name)
        trainer.load_state(checkpoint)
        if trainer.best.exhausted:  # it had ended
            trainer.args.max_steps = read_commit(checkpoint)["step"]
    else:
        trainer.tracker.rewind(0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step, last = trainer.state.global_step, trainer.plan.max_steps
    if trainer.stop.stopped:
        raise StoppedError(f"stopped on request at step {step} of {last}; {GO_ON}")
    if step != last and not trainer.best.exhausted:
        raise PosttrainError(f"training ended at step {step} of {last}; this is a bug in the data order")
    log.info(describe_use(context, _trained(trainer, context.spec.run, step), memory))
    metrics = {"steps": step, "tokens": trainer.tokens_seen}
    if trainer.eval_dataset is not None:
        evaluation = _evaluate_best(trainer, context)
        metrics |= {name: value for name, value in evaluation.items() if not name.endswith(("_runtime", "_per_second"))}
    metrics.pop("epoch", None)
    trainer.stop.release()
    return metrics


def _evaluate_best(trainer: StageTrainer, context: Context) -> dict[str, float]:
    """Return the metrics of the weights that are kept, and load these where they are not the last."""
    evaluation: dict[str, float] = trainer.evaluate()
    best, last = trainer.best, trainer.state.global_step
    best.note(evaluation, last)
    if best.step in (None, last):
        return evaluation
    value, at_last = best.value, evaluation[f"eval_{best.metric}"]
    log.info("keeping the weights of step %d: eval_%s %s, %s at the last step", best.step, best.metric, value, at_last)
    trainer.load_weights(best_checkpoint(context.work / CHECKPOINTS, best.step))
    return {**trainer.evaluate(), "best_step": best.step}


def _trained(trainer: StageTrainer, run: str, steps: int) -> Trained:
    model = trainer.accelerator.unwrap_model(trainer.model)
    sequences = trainer.plan.global_batch_size * SEQUENCES.get(run, 1) * max(steps, 1)
    return Trained(
        tokens=trainer.step_tokens,
        seconds=trainer.step_seconds,
        row_tokens=trainer.tokens_seen / sequences,
        adapter=parameter_counts(model)[1] if isinstance(model, PeftModel) else None,
        dtype="bfloat16" if trainer.args.bf16 else "float32",
        tf32=bool(trainer.args.tf32),
    )


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
    model: Any,
    context: Context,
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a trained model as an artifact's files: safetensors, configuration, tokenizer and its chat template.

    ``dtype`` is the precision of the files. An adapter is written alone, with `base.json` naming the artifact that
    holds its backbone; ``extra`` is added there.
    All ranks must call this: sharded weights are gathered.
    """
    heartbeat.beat("saving the model")
    rounded_to = None if dtype == "float32" else getattr(torch, dtype)
    save_whole_model(model, context.output, context.main_process, rounded_to=rounded_to)
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
