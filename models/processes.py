"""The processes of a stage: how many there are, which device is whose, and how those that share work out join.

Every way to start them ends in the same variables, RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from posttrain.stage.entry import Context
from posttrain.stage.errors import PosttrainError
from posttrain.stage.spec import Distributed

WATCHDOG_MARGIN_SECONDS = 60.0
"""A collective operation fails this much after the watchdog should have ended the stage with a stack dump."""


@dataclasses.dataclass(frozen=True)
class Rank:
    """One of the processes that share the work of a stage out, each with a whole model."""

    number: int = 0
    of: int = 1


def require_processes(distributed: Distributed) -> int:
    """Return how many processes run; raise PosttrainError when another number was asked for."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != distributed.num_processes:
        raise PosttrainError(
            f"{world_size} processes are running, but the launcher asked for {distributed.num_processes}; "
            "check the command in the first line of this log"
        )
    return world_size


def collective_timeout(distributed: Distributed) -> timedelta:
    """Return how long an operation of all processes may wait for one of them."""
    return timedelta(seconds=distributed.timeout_seconds + WATCHDOG_MARGIN_SECONDS)


def join_to_share(context: Context) -> Rank:
    """Return which process this is, once all are there.

    Call it first in a stage: the first process holds the stage's lease by then, so that no other touches its work
    before. Raises PosttrainError when another number of processes runs than was asked for.
    """
    world_size = require_processes(context.spec.distributed)
    if world_size == 1:
        return Rank()
    dist.init_process_group("gloo", timeout=collective_timeout(context.spec.distributed))
    return Rank(dist.get_rank(), world_size)


def device() -> torch.device:
    """Return the device of this process; raise PosttrainError where the node has fewer GPUs than processes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= visible > 1:
        raise PosttrainError(f"local rank {local_rank}, but this node shows {visible} GPUs; start one process per GPU")
    return torch.device("cuda", local_rank % visible)
