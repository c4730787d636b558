"""The environment of stage processes, however they are started: variables, and the packages that they would find."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata

from posttrain.pipeline.graph.graph import Stage

NOT_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make a stage believe that it is a rank of something else; `ACCELERATE_*` too."""


def inherited_environment() -> dict[str, str]:
    """Return our own environment without what would make a stage believe that it is a rank of something else."""
    return {k: v for k, v in os.environ.items() if k not in NOT_INHERITED and not k.startswith("ACCELERATE_")}


def stage_environment(stage: Stage, threads: int, on_gpu: bool) -> dict[str, str]:
    """Return the variables that every process of a stage needs, however it is started."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false" if stage.type.device else "true",
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
