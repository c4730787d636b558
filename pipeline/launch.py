"""Command lines: how each stage process is started on this machine."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from posttrain.pipeline.config import DistributedConfig, LauncherConfig
from posttrain.pipeline.registry import StageType
from posttrain.stage.errors import UsageError
from posttrain.stage.leash import VARIABLE as LEASH

NOT_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make a stage believe that it is a rank of something else; `ACCELERATE_*` too."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command line with the environment variables that it needs besides the launcher's own."""

    arguments: list[str]
    environment: dict[str, str]

    def shell(self) -> str:
        """Return a line that a shell runs as it stands."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items() if name != LEASH]
        return " ".join([*variables, shlex.join(self.arguments)])

    def full_environment(self) -> dict[str, str]:
        """Return the environment of the process: ours without foreign launchers' traces, and the command's own."""
        ours = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED and not k.startswith("ACCELERATE_")}
        return {**ours, **self.environment}


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Builds commands for one machine."""

    device: str
    """``cpu`` or ``cuda``."""
    num_processes: int
    """Per training stage."""
    kind: str
    """``single``, ``ddp`` or ``deepspeed``."""
    max_on_device: int
    """Stages that may compute on the device at once."""
    threads_on_device: int
    """CPU threads per process of stages that compute on the device."""
    threads: int
    """CPU threads of the other stages."""
    deepspeed_config: Path

    def processes(self, stage_type: StageType) -> int:
        """Return how many processes a stage of this type runs as."""
        return self.num_processes if stage_type.accelerate else 1

    def command(self, stage_type: StageType, spec: Path) -> Command:
        """Return the command that runs the stage of a spec file."""
        target = ["-m", stage_type.module, "--spec", str(spec)]
        environment = self._environment(stage_type)
        if not stage_type.accelerate:
            return Command([sys.executable, *target], environment)
        if self.device == "cpu" and self.num_processes > 1 and self.kind == "ddp":
            environment["ACCELERATE_USE_CPU"] = "true"
        launch = [sys.executable, "-m", "accelerate.commands.launch", *self._accelerate_options()]
        return Command([*launch, *target], environment)

    def _accelerate_options(self) -> list[str]:
        """Spell out every option, or accelerate warns, or takes it from the user's own default configuration.

        On CPU, ``--cpu`` is one process whatever ``--num_processes`` says; gloo ranks need ``--multi_gpu`` without it.
        """
        if self.kind == "deepspeed":
            mode = ["--use_deepspeed", "--deepspeed_config_file", str(self.deepspeed_config)]
        elif self.num_processes > 1:
            mode = ["--multi_gpu"]
        else:
            mode = ["--cpu"] if self.device == "cpu" else []
        options = {
            "config_file": str(resources.files("posttrain.conf") / "accelerate.json"),
            "num_machines": "1",
            "num_processes": str(self.num_processes),
            "main_process_port": "0",
            "mixed_precision": "no",
            "dynamo_backend": "no",
            "num_cpu_threads_per_process": str(self.threads_on_device),
        }
        return [*mode, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _environment(self, stage_type: StageType) -> dict[str, str]:
        threads = str(self.threads_on_device if stage_type.device else self.threads)
        environment = {
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false" if stage_type.device else "true",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers obeys it too; a log is no terminal
            "PYTHONUNBUFFERED": "1",
            LEASH: "stdin",
        }
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment


def local_launcher(distributed: DistributedConfig, launcher: LauncherConfig, deepspeed_config: Path) -> Launcher:
    """Return the launcher of this machine; raise UsageError when it lacks the devices that are asked for."""
    gpus = 0 if distributed.device == "cpu" else visible_gpus()
    if distributed.device == "cuda" and not gpus:
        raise UsageError(
            "distributed.device: 'cuda', but this machine shows no NVIDIA GPU; give distributed.device=cpu"
        )
    num_processes = distributed.num_processes or (1 if distributed.kind == "single" else max(gpus, 1))
    if gpus and num_processes > gpus:
        raise UsageError(f"distributed.num_processes: {num_processes}, but there are {gpus} GPUs; give at most as many")
    cores = len(os.sched_getaffinity(0))
    max_on_device = min(
        launcher.max_parallel, launcher.max_parallel_on_device or (1 if gpus else launcher.max_parallel)
    )
    return Launcher(
        device="cuda" if gpus else "cpu",
        num_processes=num_processes,
        kind=distributed.kind,
        max_on_device=max_on_device,
        threads_on_device=launcher.threads_per_process or max(1, cores // (max_on_device * num_processes)),
        threads=launcher.threads_per_process or max(1, cores // launcher.max_parallel),
        deepspeed_config=deepspeed_config,
    )


@functools.cache
def visible_gpus() -> int:
    """Return the number of NVIDIA GPUs that a child process will see, found without loading torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([entry for entry in listed.split(",") if entry.strip() not in ("", "-1")])
    if devices := list(Path("/dev").glob("nvidia[0-9]*")):
        return len(devices)
    if (program := shutil.which("nvidia-smi")) is None:
        return 0
    answer = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return answer.stdout.count("GPU ") if answer.returncode == 0 else 0
