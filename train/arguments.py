"""Derive `TrainingArguments` from our configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from posttrain.train.batching import BatchPlan
from posttrain.train.config import TrainingConfig


def training_arguments(config: TrainingConfig, plan: BatchPlan, checkpoints: Path, seed: int) -> dict[str, Any]:
    """Return the keyword arguments that every TRL config takes."""
    optimizer = config.optimizer
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
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
        "seed": seed,
        "bf16": config.dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": needs_reentrant(config)}
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
    }


def needs_reentrant(config: TrainingConfig) -> bool:
    """Return whether activation checkpointing must be reentrant: ZeRO-3 with adapters fails otherwise.

    TRL means to set this itself, but edits the dictionary after `transformers` has read it.
    """
    return config.adapter.kind != "full" and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
