"""Go on from a checkpoint on another number of processes.

    single, ddp      weights and optimizer are whole in the checkpoint: nothing to do
    fsdp             torch.distributed.checkpoint reads for any number of processes: nothing to do
    zero1 … zero3    converted to DeepSpeed's universal format, in a folder beside the checkpoint

The order of samples and the global batch do not depend on the number of processes (`posttrain.train.engine.batching`);
random states of processes do, and are drawn anew.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from posttrain.stage.errors import UsageError
from posttrain.stage.machine import usable_cores
from posttrain.train.checkpoints.protocol import (
    checkpoint_problems,
    commit_staged,
    read_commit,
    staging_directory,
    universal_path,
)

log = logging.getLogger(__name__)


def for_processes(checkpoint: Path, engine: str, world_size: int) -> Path:
    """Return the checkpoint in a form that ``engine`` on ``world_size`` processes can read; one process calls this.

    Raises UsageError when it was written by an engine with another format.
    """
    written = read_commit(checkpoint)
    if _format(written["engine"]) != _format(engine):
        raise UsageError(
            f"{checkpoint}: written by {written['engine']} on {written['world_size']} processes, and {engine} reads "
            f"another format; go on with distributed={written['engine']}, or delete {checkpoint.parent} to start again"
        )
    if written["world_size"] == world_size:
        return checkpoint
    log.info("%s was written by %d processes; %d go on", checkpoint.name, written["world_size"], world_size)
    return _universal(checkpoint) if engine.startswith("zero") else checkpoint


def is_universal(checkpoint: Path) -> bool:
    """Return whether a checkpoint is in DeepSpeed's universal format."""
    return (checkpoint / "latest_universal").is_file()


def seed_rank(checkpoint: Path, seed: int, rank: int, step: int) -> None:
    """Draw the random state of a rank that has none of its own in a checkpoint from another number of processes."""
    drawn = int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])
    set_seed(drawn)
    log.info("%s: random state of rank %d drawn from seed %d, rank and step %d", checkpoint.name, rank, seed, step)


def separate_steps(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter a step counter of its own.

    DeepSpeed 0.19 sets one tensor for all that it reads from a universal ZeRO-3 checkpoint, and AdamW would count it up
    once for each.
    """
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()


def _format(engine: str) -> str:
    return "whole" if engine in ("single", "ddp") else engine


def _universal(checkpoint: Path) -> Path:
    """Convert a DeepSpeed checkpoint, or return the conversion that stands from an earlier attempt."""
    final = universal_path(checkpoint)
    if final.exists() and not checkpoint_problems(final):
        return final
    from deepspeed.checkpoint import ds_to_universal

    staged = staging_directory(checkpoint.parent) / final.name
    staged.mkdir(parents=True)
    (state,) = checkpoint.glob("global_step*")
    workers = max(1, usable_cores() // 2)
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(state),
            output_folder=str(staged / state.name),
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    if read_commit(checkpoint)["engine"] == "zero3":
        _keep_weight_decay(staged / state.name / "zero" / "optimizer_state.pt")
    for path in checkpoint.iterdir():
        if path.is_file():
            shutil.copy2(path, staged / path.name)
    facts = {name: value for name, value in read_commit(checkpoint).items() if name != "files"}
    return commit_staged(staged, final, facts)


def _keep_weight_decay(optimizer_state: Path) -> None:
    """Take the weight decay out of a converted ZeRO-3 checkpoint.

    DeepSpeed 0.19 sets the hyperparameters of the first parameter group for all, but biases and norms have no decay.
    """
    state = torch.load(optimizer_state, weights_only=False)  # its hash was checked before it was converted
    for group in state["optimizer_state_dict"]["param_groups"]:
        group.pop("weight_decay")
    torch.save(state, optimizer_state)
