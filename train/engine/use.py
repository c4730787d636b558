"""What a training stage made of its machine, beside what was planned for it."""

from __future__ import annotations

import dataclasses
import resource
import sys

import torch

from posttrain.models.load import backbone_directory
from posttrain.plan.calibration import card_of
from posttrain.plan.cards import CARDS, CPU_CORE_FLOPS
from posttrain.plan.families import read_shape
from posttrain.plan.memory import Dtype, MemoryEstimate
from posttrain.plan.model import Head, training_flops_per_token
from posttrain.plan.page import count, size
from posttrain.plan.passes import peak_flops
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError

ONE_MODEL: dict[str, Head] = {"train.sft": "lm", "train.dpo": "lm", "train.kto": "lm", "train.reward": "score"}
"""Stage types that train one model and nothing beside it, and its head."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What went through a stage's steps, and how."""

    tokens: int
    """Of all processes."""
    seconds: float
    row_tokens: float
    """Mean tokens of a sequence."""
    adapter: int | None
    """Parameters of the adapter that learned; None where all did."""
    dtype: Dtype
    tf32: bool


def describe_use(context: Context, trained: Trained, memory: MemoryEstimate | None) -> str:
    """Return one line for the log: rate, MFU where a stage trains one model, and peak memory beside the estimate."""
    if not trained.seconds:
        return "no step was trained here"
    rate = trained.tokens / trained.seconds
    parts = [f"{count(rate)} tokens/s"]
    flops, peak = _flops_per_token(context, trained), _peak(trained)
    if flops is not None and peak is not None:
        processes = context.spec.distributed.num_processes
        parts.append(f"MFU {100 * rate * flops / (peak[1] * processes):.1f} % of {processes} × {peak[0]}")
    planned = f", planned {size(memory.total)}" if memory is not None else ""
    parts.append(f"peak memory {_peak_memory()}{planned}")
    return "used: " + "; ".join(parts)


def _flops_per_token(context: Context, trained: Trained) -> float | None:
    """Return the model FLOPs of a trained token; None where several models learn, or the family is not known."""
    head = ONE_MODEL.get(context.spec.run)
    if head is None:
        return None
    try:
        shape = read_shape(backbone_directory(context.inputs["model"]))
    except UsageError:
        return None
    return training_flops_per_token(shape, round(trained.row_tokens), head=head, adapter_parameters=trained.adapter)


def _peak(trained: Trained) -> tuple[str, float] | None:
    """Return what computes and its dense FLOP/s, as the planner has them; None for a GPU that it does not know."""
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        return f"CPU of {threads} threads", threads * CPU_CORE_FLOPS
    name = card_of(torch.cuda.get_device_name())
    return None if name is None else (name, peak_flops(CARDS[name], trained.dtype, trained.tf32))


def _peak_memory() -> str:
    """Return the most that was allocated on the GPU; on CPU, of the whole process, libraries included."""
    if torch.cuda.is_available():
        return f"{size(torch.cuda.max_memory_allocated())} of tensors"
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return f"{size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes)} of the whole process"
