"""From a stage to its batch script and to the `srun` line that starts its ranks."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jinja2

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.config.slurm import SlurmResources
from posttrain.pipeline.graph.environment import stage_environment
from posttrain.pipeline.graph.graph import Stage
from posttrain.stage.errors import UsageError
from posttrain.stage.ranks import VARIABLE as RANKS
from posttrain.stage.spec import Distributed

TEMPLATE = "stage.sbatch.j2"


@dataclasses.dataclass(frozen=True)
class SlurmLauncher:
    """How stages run on a cluster: as many ranks as their job has processes, each a task of `srun`."""

    config: PipelineConfig

    def distributed(self, stage: Stage) -> Distributed:
        """Return how the processes of a stage work together; raise UsageError where job and distribution differ."""
        wanted = stage.distributed
        resources = resources_of(stage)
        processes = resources.nodes * processes_per_node(resources)
        if wanted.num_machines > 1:
            raise UsageError(
                f"distributed.num_machines: {wanted.num_machines}, but Slurm starts the ranks; give "
                f"launcher.slurm.train.nodes={wanted.num_machines} instead"
            )
        if wanted.num_processes not in (None, processes) and not stage.type.shares:
            raise UsageError(
                f"distributed.num_processes: {wanted.num_processes}, but the job of {stage.name} has {processes} "
                "(nodes x processes_per_node of launcher.slurm.train); leave it null"
            )
        return Distributed(wanted.kind, processes, wanted.deepspeed, wanted.fsdp, wanted.timeout_seconds)

    def srun(self, stage: Stage, spec: Path) -> list[str]:
        """Return the command that starts a stage's processes inside its job."""
        resources = resources_of(stage)
        per_node = processes_per_node(resources)
        options: dict[str, str | int | bool] = {
            "nodes": resources.nodes,
            "ntasks": resources.nodes * per_node,
            "ntasks-per-node": per_node,
            "cpus-per-task": resources.cpus_per_process or 1,
            "kill-on-bad-exit": 1,
            "unbuffered": True,
            **self.config.launcher.slurm.srun_options,
        }
        slurm = self.config.launcher.slurm
        program = [*slurm.container, slurm.python or sys.executable]
        return ["srun", *long_options(options), *program, "-m", stage.type.module, "--spec", str(spec)]

    def environment(self, stage: Stage) -> dict[str, str]:
        """Return the variables of a stage's processes besides those of the job."""
        resources = resources_of(stage)
        threads = self.config.launcher.threads_per_process or resources.cpus_per_process or 1
        environment = stage_environment(stage, threads, on_gpu=resources.gpus > 0)
        return environment | ({RANKS: "slurm"} if self.distributed(stage).num_processes > 1 else {})


def resources_of(stage: Stage) -> SlurmResources:
    """Return what a stage's job asks for, cut down to what its processes can use."""
    asked = stage.slurm
    if (stage.type.accelerate or stage.type.shares) and stage.distributed.kind != "single":
        return asked
    wanted = stage.on_device and asked.gpus > 0
    one = re.sub(r"\d+$", "1", str(asked.gpus_per_node))  # of the same type
    gpus = (one if ":" in one else 1) if wanted else 0
    return dataclasses.replace(asked, nodes=1, gpus_per_node=gpus, processes_per_node=1)


def processes_per_node(resources: SlurmResources) -> int:
    """Return the ranks on each node."""
    return resources.processes_per_node or max(resources.gpus, 1)


def long_options(options: Mapping[str, str | int | bool]) -> list[str]:
    """Return options as Slurm's commands take them; true is a bare flag, false is left out."""
    return [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not False
    ]


def batch_script(config: PipelineConfig, stage: Stage, run: str, orders: Path, log: Path, elements: int) -> str:
    """Return the text of a stage's batch script.

    ``orders`` is the file that says which runs the job serves, ``log`` takes what the job prints before its stage does,
    and ``elements`` is the size of the job array (1: no array).
    """
    slurm = config.launcher.slurm
    limit = f"%{slurm.array_limit}" if slurm.array_limit else ""
    resources = resources_of(stage)
    options: dict[str, str | int | bool | None] = {
        "job-name": f"{run}/{stage.name}",
        "output": str(log).replace("%", "%%") + ("-%A_%a.out" if elements > 1 else "-%j.out"),
        "open-mode": "append",
        "array": f"0-{elements - 1}{limit}" if elements > 1 else None,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "nodes": resources.nodes,
        "ntasks-per-node": processes_per_node(resources),
        "cpus-per-task": resources.cpus_per_process,
        **_gpu_options(resources),
        "mem": resources.memory_per_node,
        "time": resources.time_limit,
        "signal": f"B:USR1@{slurm.signal_seconds}",
        "requeue": True,
        **_further_options(resources),
    }
    command = [sys.executable, "-m", "posttrain.pipeline.slurm.job", str(orders)]
    return _template().render(
        title=f"{stage.type.run} of run {run}",
        directives=[_quoted(line) for line in long_options({k: v for k, v in options.items() if v is not None})],
        setup=slurm.setup,
        environment={name: shlex.quote(value) for name, value in slurm.environment.items()},
        command=shlex.join(command),
    )


def _gpu_options(resources: SlurmResources) -> dict[str, str | int | None]:
    if resources.gpus_by == "gres":
        return {"gres": f"gpu:{resources.gpus_per_node}" if resources.gpus else None}
    return {"gpus-per-node": resources.gpus_per_node if resources.gpus else None}


def _further_options(resources: SlurmResources) -> dict[str, str | int | bool]:
    """Return a user's own options, which win; generic resources besides GPUs are asked for in one breath with them."""
    gpus = _gpu_options(resources).get("gres")
    further = dict(resources.options)
    if gpus and "gres" in further and "gpu" not in str(further["gres"]):
        further["gres"] = f"{gpus},{further['gres']}"
    return further


def _quoted(option: str) -> str:
    """Return an option as an `#SBATCH` line takes it: blanks would end it, and ``#`` begin a comment."""
    name, equals, value = option.partition("=")
    if "\n" in value or '"' in value:
        raise UsageError(f"root: {value!r}: a path with quotes or line ends cannot stand in a batch script; move it")
    return f'{name}="{value}"' if equals and re.search(r"[\s#]", value) else option


def _template() -> jinja2.Template:
    text = (files("posttrain.slurm") / TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text)
