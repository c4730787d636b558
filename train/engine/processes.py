"""The processes of a training stage: they join here, and what they train with is what was asked for.

Engines are those of `posttrain.stage.engine`. Every way to start the ranks ends in the same variables, RANK,
LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the rest is ours: `transformers` ignores the timeout of a CPU
process group, and a launch whose arguments do not fit trains as something else without a word.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import set_seed

from posttrain.models.processes import collective_timeout, device, require_processes
from posttrain.stage.engine import engine_asked_for
from posttrain.stage.entry import Context
from posttrain.stage.errors import PosttrainError
from posttrain.stage.spec import Distributed

log = logging.getLogger(__name__)

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def engine_in_use(model: Any) -> str:
    """Return the engine that a trainer's wrapped model runs on."""
    if hasattr(model, "zero_optimization_stage"):
        return f"zero{model.zero_optimization_stage()}"
    if isinstance(model, FSDPModule):
        return "fsdp"
    return "ddp" if isinstance(model, DistributedDataParallel) else "single"


def require_engine(model: Any, distributed: Distributed) -> None:
    """Check that a wrapped model runs on the engine and the number of processes that were asked for.

    Raises PosttrainError otherwise.
    """
    asked, used = engine_asked_for(distributed), engine_in_use(model)
    joined = dist.get_world_size() if dist.is_initialized() else 1
    if (used, joined) != (asked, distributed.num_processes):
        raise PosttrainError(
            f"the work order asks for {asked} on {distributed.num_processes} processes, but the model trains with "
            f"{used} on {joined}; start the ranks as `posttrain run --dry-run` prints it"
        )
    log.info("%s on %d processes, device %s", used, joined, device().type)


def join(context: Context) -> int:
    """Make the processes of a stage one group with the work order's timeout, and return how many they are.

    All start from the same random state, so that what is drawn for new weights is the same everywhere.
    Call it first in a stage: what `transformers` and DeepSpeed set up later finds the group and takes it. Raises
    PosttrainError when another number of processes runs than was asked for.
    """
    distributed = context.spec.distributed
    world_size = require_processes(distributed)
    if distributed.kind != "any":  # the work order decides, not what the launching shell had set for something else
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
    set_seed(context.spec.seed)
    engine = engine_asked_for(distributed)
    if not torch.cuda.is_available():
        os.environ.pop("ACCELERATE_USE_CPU", None)  # with it, ZeRO-2 is plain DDP and ZeRO-3 breaks; use_cpu stands
    if engine == "single":
        _be_alone()
        return 1
    if world_size == 1:
        _be_a_group_of_one()
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    timeout = collective_timeout(distributed)
    dist.init_process_group(_backend(engine), timeout=timeout)
    if engine.startswith("zero"):
        _tell_deepspeed(timeout)
    return world_size


def let_accelerate_shard_on_cpu() -> None:
    """Give CPU ranks the type of process that accelerate shards; FSDP on MULTI_CPU is DDP without a word."""
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _be_alone() -> None:
    """Forget a launcher's variables: a lone rank with them would train as a DDP group of one."""
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    if torch.cuda.device_count() > 1:  # transformers would spread a single process over all of them
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = listed.split(",")[0]


def _be_a_group_of_one() -> None:
    """Set what a launcher of several ranks would have set; DeepSpeed and FSDP need a group even for one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name, value in zip(RANK_VARIABLES, ("0", "0", "1", "1", "127.0.0.1", port), strict=True):
        os.environ[name] = value


def _tell_deepspeed(timeout: timedelta) -> None:
    """Make DeepSpeed take our group: `transformers` does it on GPUs only, and ZeRO-3 shards a model as it is loaded.

    Its shared-memory collectives stay out. They need a compiler at run time, and a CPU rank that waits in them for a
    dead one spins forever, whatever the timeout.
    """
    import deepspeed

    warnings.filterwarnings(
        "ignore", "`torch.distributed.*` is deprecated", FutureWarning
    )  # of functions that it calls
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(_backend(""), auto_mpi_discovery=False, verbose=False, timeout=timeout)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the random states of the CPU and of this process's GPU back afterwards, and no other GPU's."""
    with torch.random.fork_rng([device()] if torch.cuda.is_available() else [], device_type="cuda"):
        yield


def _backend(engine: str) -> str:
    if not torch.cuda.is_available():
        return "gloo"
    return "cuda:nccl,cpu:gloo" if engine == "fsdp" else "nccl"  # offloaded shards are reduced on the CPU
