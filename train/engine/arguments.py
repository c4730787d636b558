"""Derive `TrainingArguments` from our configuration."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import is_torch_tf32_available

from posttrain.models.adapters import AdapterKind
from posttrain.models.load import backbone_directory
from posttrain.models.pretrained import find_weights, stored_parameters
from posttrain.stage.engine import engine_asked_for, spreads_weights, zero_stage
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed
from posttrain.train.checkpoints.protocol import CHECKPOINTS
from posttrain.train.config.common import TrainingConfig
from posttrain.train.engine.batching import BatchPlan

LARGE_PARAMETERS = 10**9
"""From here on float32 on a GPU has to be asked for."""


def training_arguments(config: TrainingConfig, plan: BatchPlan, context: Context) -> dict[str, Any]:
    """Return the keyword arguments that every TRL config takes.

    Raises UsageError where the weights cannot be spread as they are, or would be trained needlessly slowly.
    """
    distributed = context.spec.distributed
    engine = engine_asked_for(distributed)
    if config.adapter.kind == "qlora" and spreads_weights(engine):
        raise UsageError(
            f"adapter.kind=qlora: 4-bit weights cannot be spread over processes as {engine} does; use distributed=ddp "
            "or zero2, or adapter.kind=lora"
        )
    optimizer = config.optimizer
    on_gpu = torch.cuda.is_available()
    if on_gpu and config.dtype == "float32" and not config.large_float32:
        require_fast_precision(stored_parameters(find_weights(backbone_directory(context.inputs["model"])))[0])
    return {
        "output_dir": str(context.work / CHECKPOINTS),
        "per_device_train_batch_size": plan.micro_batch_size,
        "per_device_eval_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "max_steps": plan.max_steps,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": round(optimizer.warmup_fraction * plan.max_steps),
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "max_grad_norm": optimizer.max_grad_norm,
        "seed": context.spec.seed,
        "bf16": config.dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": needs_reentrant(config.adapter.kind, distributed)}
        if config.gradient_checkpointing
        else None,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": None,
        "eval_strategy": "no" if config.eval_steps is None else "steps",
        "eval_steps": config.eval_steps,
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        # FSDP would put the whole gradient together on each process until the last micro-batch of a step
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": engine == "fsdp"}},
        "tf32": config.tf32 and is_torch_tf32_available() if on_gpu else None,
        "deepspeed": distributed.deepspeed,
        "fsdp": distributed.fsdp is not None,
        "fsdp_config": distributed.fsdp,
    }


def require_fast_precision(parameters: int) -> None:
    """Raise UsageError for more parameters than anybody means to train in float32 on a GPU."""
    if parameters > LARGE_PARAMETERS:
        raise UsageError(
            f"dtype: float32 for {parameters / 1e9:.1f} billion parameters on a GPU; set dtype=bfloat16 (hardware=gpu1 "
            "and the like do), or large_float32=true if you mean it"
        )


def needs_reentrant(adapter: AdapterKind, distributed: Distributed) -> bool:
    """Return whether activation checkpointing must be reentrant: ZeRO-3 with adapters fails otherwise.

    TRL means to set this itself, but edits the dictionary after `transformers` has read it.
    """
    return adapter != "full" and zero_stage(distributed) == 3
