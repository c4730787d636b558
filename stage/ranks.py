"""Where the ranks of a stage meet; and ranks that Slurm started: one task each, told in the words that torch knows."""

from __future__ import annotations

import os
import socket

VARIABLE = "POSTTRAIN_RANKS"
"""Environment variable by which a job says that the tasks of its `srun` are the ranks of a training stage."""
_TORCH_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


def adopt_slurm_rank() -> None:
    """Take rank and world size from Slurm; do nothing in a process that something else started."""
    if os.environ.get(VARIABLE) != "slurm":
        return
    os.environ |= {name: os.environ[slurm_name] for name, slurm_name in _TORCH_NAMES.items()}
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["SLURM_NTASKS_PER_NODE"]


def free_port() -> int:
    """Return a free port of this machine, for the ranks of which it has the first."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
