"""Knobs of the Slurm launcher: what a job asks for, what its script does first, and what is tried again.

Whatever reaches a batch script is held to a pattern here or quoted there (`posttrain.pipeline.slurm.script`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from posttrain.stage.schema import schema

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@%+=/\[\]*-]+$", coerce_numbers_to_str=True)]
"""A value of an `#SBATCH` line: no spaces, quotes or line ends."""
Expression = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@%+=/\[\]*|&!()~^{}#-]+$", coerce_numbers_to_str=True)]
"""A value of any long option: `Word`, and the signs of ``a100|h100``, ``(a&b)`` or ``nvcr.io#nvidia/pytorch:24.01``."""
Gpus = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+:\d+$")]
"""A number of GPUs of a type, such as ``a100:8``."""
Text = Annotated[str, Field(coerce_numbers_to_str=True)]
"""Any text; a number is its digits."""
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""
OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
"""A long option of sbatch or srun, without its dashes."""
TimeLimit = Annotated[str, StringConstraints(pattern=r"^(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2})$")]
"""A time as sbatch takes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours:minutes:seconds.

Numbers are refused: YAML reads an unquoted ``24:00:00`` as one of seconds.
"""


@schema
class SlurmResources:
    """What the job of a stage asks for; what is None is left to the cluster."""

    partition: Word | None = None
    """Queue that the job goes into."""
    account: Word | None = None
    """Who pays."""
    qos: Word | None = None
    """Quality of service."""
    nodes: int = Field(default=1, ge=1)
    """Machines of the job."""
    gpus_per_node: Annotated[int, Field(ge=0)] | Gpus = 0
    """GPUs of each machine: a number, or one of a type, such as ``a100:8``."""
    gpus_by: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """Option of sbatch that asks for them; ``gres`` (``--gres=gpu:a100:8``) on clusters that know only that."""
    processes_per_node: int | None = Field(default=None, ge=1)
    """Ranks on each node; None is one per GPU, and one without GPUs."""
    cpus_per_process: int | None = Field(default=None, ge=1)
    """Cores of each rank."""
    memory_per_node: Word | None = None
    """As sbatch takes it, such as ``200G``; ``0`` is all of the node's."""
    time_limit: TimeLimit | None = None
    """Longest that the job runs before it has to start again."""
    options: dict[OptionName, Expression | int | bool] = Field(default_factory=dict)
    """Further long options of sbatch, such as ``{constraint: "a100|h100", reservation: maint, exclusive: true}``."""

    @property
    def gpus(self) -> int:
        """Number of GPUs of each machine, of whatever type."""
        return int(str(self.gpus_per_node).rpartition(":")[2])


@schema
class Retries:
    """How often a job starts again by itself, by what ended it. A user's error is never tried again."""

    preempted: int = Field(default=100, ge=0)
    """Someone with more priority needed the nodes."""
    time_limit: int = Field(default=100, ge=0)
    """The job's time was nearly over; it saved first."""
    interrupted: int = Field(default=30, ge=0)
    """The whole job was killed: a lost node, a reboot, or preemption without grace."""
    process_lost: int = Field(default=3, ge=0)
    """A process was killed, or its peers could not reach it any more."""
    hung: int = Field(default=3, ge=0)
    """A process stood still for longer than `distributed.timeout_seconds`."""
    lease_held: int = Field(default=20, ge=0)
    """Another pipeline was making the same artifact."""
    out_of_memory: int = Field(default=0, ge=0)
    """Memory of the node or of a GPU did not suffice."""
    failed: int = Field(default=0, ge=0)
    """Anything else, which is most likely a bug."""
    without_progress: int = Field(default=3, ge=1)
    """Attempts in a row that end where they began before the job is given up, unless others were the cause."""


@schema
class SlurmConfig:
    """How stages become jobs."""

    data: SlurmResources = Field(default_factory=SlurmResources)
    """For the stages of `data/`: no accelerator."""
    sample: SlurmResources = Field(default_factory=SlurmResources)
    """For the stages of `sample/`: a process for each GPU, unless ``distributed: single``."""
    train: SlurmResources = Field(default_factory=SlurmResources)
    """For the stages of `train/`; `train.base`, and a stage with ``distributed: single``, take one process of it."""
    evaluate: SlurmResources = Field(default_factory=SlurmResources)
    """For the stages of `evaluate/`; those that sample have a process for each GPU, unless ``distributed: single``."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines at the start of every batch script, such as ``module load cuda``; one that fails ends the job."""
    environment: dict[Name, Text] = Field(default_factory=dict)
    """Variables for every process, such as ``NCCL_SOCKET_IFNAME``."""
    srun_options: dict[OptionName, Expression | int | bool] = Field(default_factory=dict)
    """Further long options of srun, such as ``{cpu-bind: cores}``, or Pyxis's ``{container-image: /train.sqsh}``."""
    container: list[Text] = Field(default_factory=list)
    """Words before the ranks' Python, such as ``[apptainer, exec, --nv, /images/train.sif]``."""
    python: Text | None = None
    """The ranks' Python, where a container has another than the one that submits, which is None."""
    array_limit: int | None = Field(default=None, ge=1)
    """Most elements of a sweep's job array that run at once; None is as many as the cluster lets."""
    signal_seconds: int = Field(default=180, ge=1, le=65535)
    """How long before the time limit a stage is asked to save. Slurm rounds to a minute, so leave it one to spare."""
    wait: bool = False
    """Stay until every job has ended, and exit as a local run would."""
    retries: Retries = Field(default_factory=Retries)
    """How often a job starts again by itself."""
