"""The environment of stage processes, however they are started: variables, and the packages that they would find."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import metadata

from posttrain.pipeline.graph.graph import Stage

OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make a stage believe that it is a rank of something else; `ACCELERATE_*` too."""
OF_LAUNCHERS = re.compile(r"SLURM_|SBATCH_|SRUN_|SALLOC_|SQUEUE_|SCANCEL_|SCONTROL_|PMI|OMPI_|MV2_|TORCHELASTIC_")
"""Variables by which Slurm, MPI and torchrun talk to their own jobs, or a shell changes what they default to."""
KEPT = "SLURM_CONF"
"""Says where the cluster is, and nothing of a job."""


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which no job, and no default of Slurm's commands, is in force."""
    return {name: value for name, value in environment.items() if name == KEPT or not OF_LAUNCHERS.match(name)}


def inherited_environment(own_job: bool = False) -> dict[str, str]:
    """Return our own environment without what would make a stage believe that it is a rank of something else.

    ``own_job``: we run in a job of ours, whose variables `srun` needs, all but one: `sbatch --export` would keep from
    the ranks what we give them.
    """
    kept = {k: v for k, v in os.environ.items() if k not in OF_RANKS and not k.startswith("ACCELERATE_")}
    return {k: v for k, v in kept.items() if k != "SLURM_EXPORT_ENV"} if own_job else without_launchers(kept)


def stage_environment(stage: Stage, threads: int, on_gpu: bool) -> dict[str, str]:
    """Return the variables that every process of a stage needs, however it is started."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false" if stage.on_device else "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers obeys it too; a log is no terminal
        "PYTHONUNBUFFERED": "1",
    }
    return environment if on_gpu else environment | {"CUDA_VISIBLE_DEVICES": ""}


WATCHED = ("torch", "transformers", "trl")
"""Packages whose version is no part of a key, but can change what a stage makes."""


def changed_packages(made_with: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the watched packages that are here in another version than in a manifest: ``{name: (then, now)}``."""
    found: dict[str, tuple[str, str]] = {}
    for name in WATCHED:
        then = made_with.get(name)
        try:
            now = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if then is not None and then != now:
            found[name] = (then, now)
    return found
