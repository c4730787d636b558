"""Engines: how the weights of a training stage are spread over its processes.

``single``, ``ddp``, ``zero1`` to ``zero3`` (DeepSpeed) and ``fsdp``, as a work order asks for them. In a stage that was
started by hand the options of `accelerate launch` decide, which it leaves in environment variables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from posttrain.stage.spec import Distributed


def zero_stage(distributed: Distributed) -> int | None:
    """Return the stage of DeepSpeed's ZeRO, also where accelerate set it for a stage started by hand."""
    settings = distributed.deepspeed
    if settings is None and (file := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")):
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    if settings is not None:
        return int(settings.get("zero_optimization", {}).get("stage", 0))
    by_hand = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    return int(by_hand) if by_hand else None


def engine_asked_for(distributed: Distributed) -> str:
    """Return the engine of a work order; in a stage started by hand, that of `accelerate launch`'s own options."""
    kind = distributed.kind
    if kind == "any":
        by_hand = [name for name in ("deepspeed", "fsdp") if _is_set(f"ACCELERATE_USE_{name.upper()}")]
        kind = by_hand[0] if by_hand else "ddp"
    if kind == "deepspeed":
        return f"zero{zero_stage(distributed)}"
    return "single" if kind == "ddp" and distributed.num_processes == 1 else kind


def spreads_weights(engine: str) -> bool:
    """Return whether an engine keeps the weights in parts, one on each process."""
    return engine in ("zero3", "fsdp")


def shards_like_zero(distributed: Distributed) -> int | None:
    """Return the stage of ZeRO that shards what an engine shards; None where every process holds everything."""
    engine = engine_asked_for(distributed)
    return 3 if engine == "fsdp" else zero_stage(distributed)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")
