"""Derive `TrainingArguments` from our configuration."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_tf32_available

from posttrain.models.adapters import AdapterKind
from posttrain.models.load import backbone_directory
from posttrain.models.pretrained import find_weights, stored_parameters
from posttrain.stage.engine import engine_asked_for, spreads_weights, zero_stage
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed
from posttrain.train.checkpoints.protocol import CHECKPOINTS
from posttrain.train.config.common import OptimizerConfig, TrainingConfig
from posttrain.train.engine.batching import BatchPlan
from posttrain.train.engine.optimizers import MUON

LARGE_PARAMETERS = 10**9
"""From here on float32 on a GPU has to be asked for."""
_NAMES = {"adafactor": "adafactor", "adamw_8bit": "adamw_bnb_8bit"}
"""Optimizers by the names of `transformers`."""


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
    require_known_ways(config, engine, context.spec.run)
    optimizer = config.optimizer
    on_gpu = torch.cuda.is_available()
    if on_gpu and config.dtype == "float32" and not config.large_float32:
        require_fast_precision(stored_parameters(find_weights(backbone_directory(context.inputs["model"])))[0])
    return {
        "output_dir": str(context.work / CHECKPOINTS),
        **layout(plan),
        "max_steps": plan.max_steps,
        "learning_rate": optimizer.learning_rate,
        **({"optim": _NAMES[optimizer.kind]} if optimizer.kind in _NAMES else {}),
        "optim_args": MUON if optimizer.kind == "muon" else None,
        "lr_scheduler_type": optimizer.schedule,
        "lr_scheduler_kwargs": schedule_options(optimizer, plan.max_steps),
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
        "eval_strategy": "steps" if config.best.every or config.eval_steps else "no",
        "eval_steps": config.best.every or config.eval_steps,
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


def layout(plan: BatchPlan) -> dict[str, int]:
    """Return the arguments that say how a global batch is laid out."""
    return {
        "per_device_train_batch_size": plan.micro_batch_size,
        "per_device_eval_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
    }


def lay_out(arguments: TrainingArguments, plan: BatchPlan) -> None:
    """Give arguments another layout, in place: one that was not known before the model was."""
    for name, value in layout(plan).items():
        setattr(arguments, name, value)


def schedule_options(optimizer: OptimizerConfig, steps: int) -> dict[str, Any]:
    """Return what a schedule over so many steps takes beside the warm-up."""
    if optimizer.schedule != "warmup_stable_decay":
        return {}
    return {"num_decay_steps": max(round(optimizer.decay_fraction * steps), 1), "decay_type": "linear"}


def require_known_ways(config: TrainingConfig, engine: str, where: str) -> None:
    """Raise UsageError for knobs that do not work under an engine, or that were never run under it.

    ``experimental`` lets the latter pass.
    """
    kind, adapter, parts = config.optimizer.kind, config.adapter, engine not in ("single", "ddp")
    if parts and kind in ("adafactor", "muon"):
        raise UsageError(
            f"{where}.optimizer.kind={kind}: it needs whole matrices, which {engine} keeps in parts; use "
            "distributed=ddp, or optimizer.kind=adamw"
        )
    if parts and config.best.metric is not None:
        raise UsageError(
            f"{where}.best.metric={config.best.metric}: the best weights cannot be loaded again under {engine}; use "
            "distributed=ddp, or evaluate checkpoints of a run with eval_steps"
        )
    if kind == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise UsageError(f"{where}.optimizer.kind=adamw_8bit: bitsandbytes is missing; pip install 'posttrain[qlora]'")
    never_run = {
        "optimizer.kind=adamw_8bit": kind == "adamw_8bit",
        "adapter.dora=true": adapter.dora and adapter.kind != "full" and (parts or adapter.kind == "qlora"),
        "neftune_alpha": getattr(config, "neftune_alpha", None) is not None and parts,
    }
    for knob, holds in never_run.items():
        if holds and not config.experimental:
            raise UsageError(
                f"{where}.{knob} was never run under {engine} with adapter.kind={adapter.kind}; set "
                f"{where}.experimental=true to try it all the same"
            )


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
