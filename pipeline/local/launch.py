"""Command lines: how each stage process is started on this machine."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.environment import inherited_environment, stage_environment
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.local.devices import Devices
from posttrain.pipeline.local.machines import ALONE, Place
from posttrain.stage.errors import UsageError
from posttrain.stage.leash import VARIABLE as LEASH
from posttrain.stage.machine import usable_cores
from posttrain.stage.spec import Distributed


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
        return {**inherited_environment(), **self.environment}


@dataclasses.dataclass(frozen=True)
class LocalLauncher:
    """Starts stages on this machine; those that train, or run on several processes, through `accelerate launch`."""

    gpus: tuple[str, ...]
    """GPUs that stages may use, as CUDA knows them; none is the CPU."""
    max_parallel: int
    max_on_device: int
    """Stages that may compute on the device at once."""
    threads: int | None
    """CPU threads per process; None shares the cores."""
    place: Place = ALONE
    """Which of the machines of the run this one is."""

    def distributed(self, stage: Stage) -> Distributed:
        """Return how the processes of a stage work together here."""
        wanted = stage.distributed
        on_each = 1 if wanted.kind == "single" else max(len(self.gpus), 1)
        num_processes = wanted.num_processes or on_each * wanted.num_machines
        return Distributed(wanted.kind, num_processes, wanted.deepspeed, wanted.fsdp, wanted.timeout_seconds)

    def devices(self) -> Devices:
        """Return the GPUs to lend to stages; only where more stages were asked for than there are GPUs they share."""
        return Devices(self.gpus, max(1, math.ceil(self.max_on_device / max(len(self.gpus), 1))))

    def devices_of(self, stage: Stage) -> int:
        """Return how many GPUs of this machine a stage computes on: one for each of its processes here."""
        return self._processes_here(stage) if self.gpus and stage.on_device else 0

    def command(self, stage: Stage, arguments: list[str], lent: Sequence[str] = (), port: int | None = None) -> Command:
        """Return the command that runs a stage with ``--spec FILE``, or with all it needs as ``key=value``.

        ``lent`` are its own GPUs; without, it sees them all. ``port`` is where the ranks of several machines meet, on
        the first of them; None is the port at which the machines do.
        """
        target = ["-m", stage.type.module, *arguments]
        num_processes = self.distributed(stage).num_processes
        threads = self._threads(stage, self._processes_here(stage))
        environment = stage_environment(stage, threads, on_gpu=bool(self.gpus)) | {LEASH: "stdin"}
        if lent:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(lent)
        if num_processes == 1 and not stage.type.accelerate:
            return Command([sys.executable, *target], environment)
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        options = self._accelerate_options(num_processes, threads)
        if stage.distributed.num_machines > 1:
            options = [*options, *self._among_machines(port or self.place.port)]
        return Command([*launch, *options, *target], environment)

    def _processes_here(self, stage: Stage) -> int:
        return self.distributed(stage).num_processes // stage.distributed.num_machines

    def _among_machines(self, port: int) -> list[str]:
        """Return options of `accelerate launch`, of which the last of a name counts."""
        options = {
            "num_machines": str(self.place.of),
            "machine_rank": str(self.place.rank),
            "main_process_ip": self.place.address,
            "main_process_port": str(port),
            "rdzv_backend": "static",
        }
        return ["--same_network", *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _accelerate_options(self, num_processes: int, threads: int) -> list[str]:
        """Spell out every option, or accelerate warns, or takes it from the user's own default configuration.

        DeepSpeed and FSDP come from the work order, so that a stage is the same however its ranks were started. On
        CPU, ``--cpu`` is one process whatever ``--num_processes`` says; gloo ranks need ``--multi_gpu`` without it.
        """
        alone = ["--cpu"] if not self.gpus else []
        options = {
            "config_file": str(resources.files("posttrain.conf") / "accelerate.json"),
            "num_machines": "1",
            "num_processes": str(num_processes),
            "main_process_port": "0",
            "mixed_precision": "no",
            "dynamo_backend": "no",
            "num_cpu_threads_per_process": str(threads),
        }
        mode = ["--multi_gpu"] if num_processes > 1 else alone
        return [*mode, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _threads(self, stage: Stage, num_processes: int) -> int:
        at_once = self.max_on_device if stage.on_device else self.max_parallel
        return self.threads or max(1, usable_cores() // (at_once * num_processes))


def local_launcher(config: PipelineConfig, stages: list[Stage]) -> LocalLauncher:
    """Return the launcher of this machine; raise UsageError when it lacks the devices that are asked for."""
    limits = config.launcher
    gpus = () if config.distributed.device == "cpu" else visible_gpus()
    for stage in stages:
        if stage.distributed.device == "cuda" and not gpus:
            raise UsageError(
                "distributed.device: 'cuda', but this machine shows no NVIDIA GPU; give distributed.device=cpu"
            )
        machines = stage.distributed.num_machines
        if gpus and (stage.distributed.num_processes or 1) > len(gpus) * machines:
            on_each = " on each machine" * (machines > 1)
            raise UsageError(
                f"distributed.num_processes: {stage.distributed.num_processes}, but there are {len(gpus)} GPUs"
                f"{on_each}; give at most as many"
            )
    on_device = limits.max_parallel_on_device or len(gpus) or limits.max_parallel
    return LocalLauncher(gpus, limits.max_parallel, min(limits.max_parallel, on_device), limits.threads_per_process)


@functools.cache
def visible_gpus() -> tuple[str, ...]:
    """Return the NVIDIA GPUs that a child process will see, by the names that it may be given; torch is not loaded.

    UUIDs and names of MIG instances are as they stand in ``CUDA_VISIBLE_DEVICES``; without it, GPUs have numbers.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(dict.fromkeys(name for entry in listed.split(",") if (name := entry.strip()) not in ("", "-1")))
    if devices := list(Path("/dev").glob("nvidia[0-9]*")):
        return _numbers(len(devices))
    if (program := shutil.which("nvidia-smi")) is None:
        return ()
    answer = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return _numbers(answer.stdout.count("GPU ") if answer.returncode == 0 else 0)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))
