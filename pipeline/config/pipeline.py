"""The configuration of a whole pipeline: its graph, the knobs of its stages, and how it is launched."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.pipeline.config.hardware import HardwareConfig
from posttrain.pipeline.config.slurm import SlurmConfig
from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.schema import schema


@schema
class DistributedConfig:
    """How one training stage is spread over processes."""

    kind: Literal["single", "ddp", "deepspeed", "fsdp"] = "single"
    """One process; a copy on each (DDP); or weights in parts, as DeepSpeed or FSDP2 spread them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes the NVIDIA GPUs where there are any."""
    num_processes: int | None = Field(default=None, ge=1)
    """Processes per training stage, on all machines together; None is one per GPU, and one on CPU per machine."""
    num_machines: int = Field(default=1, ge=1)
    """Machines on which the same command was given, without a scheduler of jobs; all see the folder ``root``."""
    machine_rank: int | None = Field(default=None, ge=0)
    """Which of them this one is, from 0; None is what NODE_RANK says, or another such variable."""
    main_address: str | None = None
    """Where the others reach machine 0; None is what MASTER_ADDR says."""
    main_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of machine 0 for that; None is what MASTER_PORT says, or 29500."""
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's own configuration, for ``kind: deepspeed``."""
    fsdp: dict[str, Any] | None = None
    """`fsdp_config` of `transformers.TrainingArguments`, for ``kind: fsdp``."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """How long a process may stand still before all of them are ended, with a stack dump of each."""

    @model_validator(mode="after")
    def _kinds_agree(self) -> DistributedConfig:
        for name in ("deepspeed", "fsdp"):
            if (self.kind == name) != (getattr(self, name) is not None):
                raise ValueError(f"give {name} a configuration with kind={name}, and only then")
        if self.kind == "single" and self.num_processes not in (None, 1):
            raise ValueError(f"num_processes={self.num_processes} needs distributed=ddp; kind=single is one process")
        if self.kind == "single" and self.num_machines > 1:
            raise ValueError(f"num_machines={self.num_machines} needs distributed=ddp, or another that spreads ranks")
        if (self.num_processes or self.num_machines) % self.num_machines:
            raise ValueError(
                f"num_processes={self.num_processes} is no multiple of num_machines={self.num_machines}; "
                "every machine has as many"
            )
        return self


@schema
class StageNode:
    """One stage of the graph."""

    run: str
    """Stage type, such as ``train.sft``."""
    if_given: Any = True
    """Leave the stage out where this is null: a recipe's value that users may give, such as ``${paths.items}``."""
    inputs: dict[str, str | None] = Field(default_factory=dict)
    """Input name → the stage that makes it; null takes away what a graph shape gave."""
    overrides: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Knobs that differ from those of the stage type's node."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Of what is drawn in this stage; None is the pipeline's. Stages before it stay shared."""
    distributed: DistributedConfig | None = None
    """How this stage is spread over processes; None is as the pipeline's other training stages."""
    slurm: dict[str, Any] = Field(default_factory=dict)
    """What this stage's job asks for that differs from `launcher.slurm`, such as ``{nodes: 2}``."""


@schema
class DataNodes:
    """Knobs of the data stages, by stage type; each is checked by the stage's own schema."""

    demo: dict[str, Any] = Field(default_factory=dict)
    """Generated data of the demo."""
    spoil: dict[str, Any] = Field(default_factory=dict)
    """What is planted into the demo's demonstrations."""
    openings: dict[str, Any] = Field(default_factory=dict)
    """Openings of stories to continue."""
    safety: dict[str, Any] = Field(default_factory=dict)
    """Requests to refuse, and harmless ones that look like them."""
    owners: dict[str, Any] = Field(default_factory=dict)
    """Questions on who has what, and passages that tell."""
    curate: dict[str, Any] = Field(default_factory=dict)
    """From sources to a dataset."""
    retrieve: dict[str, Any] = Field(default_factory=dict)
    """Passages of a corpus into prompts."""
    contrast: dict[str, Any] = Field(default_factory=dict)
    """Comparisons of what sources bear out with what they do not."""
    tokenize: dict[str, Any] = Field(default_factory=dict)
    """From a dataset to token ids."""


@schema
class SampleNodes:
    """Knobs of the sampling stages, by stage type."""

    rank: dict[str, Any] = Field(default_factory=dict)
    """Comparisons of a model's own samples."""
    generate: dict[str, Any] = Field(default_factory=dict)
    """Demonstrations of a model's responses."""


@schema
class TrainNodes:
    """Knobs of the training stages, by stage type."""

    base: dict[str, Any] = Field(default_factory=dict)
    """The base model."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Supervised finetuning."""
    reward: dict[str, Any] = Field(default_factory=dict)
    """The reward model."""
    reference: dict[str, Any] = Field(default_factory=dict)
    """The reference's log-probabilities."""
    dpo: dict[str, Any] = Field(default_factory=dict)
    """Direct preference optimisation."""
    kto: dict[str, Any] = Field(default_factory=dict)
    """Kahneman-Tversky optimisation."""
    ppo: dict[str, Any] = Field(default_factory=dict)
    """Proximal policy optimisation."""
    rloo: dict[str, Any] = Field(default_factory=dict)
    """REINFORCE with a leave-one-out baseline."""
    grpo: dict[str, Any] = Field(default_factory=dict)
    """Group relative policy optimisation."""


@schema
class EvaluateNodes:
    """Knobs of the evaluation stages, by stage type."""

    policy: dict[str, Any] = Field(default_factory=dict)
    """Scores of a policy."""
    reward: dict[str, Any] = Field(default_factory=dict)
    """Scores of a reward model."""
    best_of_n: dict[str, Any] = Field(default_factory=dict)
    """What choosing among N samples buys."""
    drift: dict[str, Any] = Field(default_factory=dict)
    """Fresh samples and their distance from a reference."""
    judge: dict[str, Any] = Field(default_factory=dict)
    """What a judge says of two policies."""
    gate: dict[str, Any] = Field(default_factory=dict)
    """What a model must hold to be built upon."""
    data: dict[str, Any] = Field(default_factory=dict)
    """The page about datasets."""
    report: dict[str, Any] = Field(default_factory=dict)
    """The page about it all."""


@schema
class LauncherConfig:
    """How stages are started: as processes of this machine, or as jobs of a Slurm cluster."""

    kind: Literal["local", "slurm"] = "local"
    """Processes of this machine, or jobs of a cluster."""
    max_parallel: int = Field(default=2, ge=1)
    """Stages that run at once on this machine."""
    max_parallel_on_device: int | None = Field(default=None, ge=1)
    """Stages that compute on the device among them (sampling, training, evaluation); None is as many as there are GPUs
    for, of which each stage has its own, and no limit on CPU. More than there are GPUs share them, and their memory."""
    threads_per_process: int | None = Field(default=None, ge=1)
    """CPU threads of each process; None shares the cores among the processes that may run at once."""
    lease_wait_seconds: float | None = Field(default=None, ge=0)
    """How long to wait for another run that is writing the same artifact, before exit code 75; None is as long as it
    takes."""
    disk: Literal["require", "warn"] = "require"
    """What to do where weights and checkpoints to come will not fit on the disk: refuse to start, or only say so."""
    notify: str | None = None
    """A shell command for the end of a run, with POSTTRAIN_RUN, POSTTRAIN_STATE (done, failed, refused, stopped),
    POSTTRAIN_CODE and POSTTRAIN_MESSAGE in its environment. On a cluster, for jobs that fail, and once all is made."""
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)
    """How stages become jobs."""


@schema
class TrackingConfig:
    """Where numbers go beside each stage's `metrics.jsonl`."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Keep what W&B gets in files until `posttrain sync`, send it at once, or do without."""
    project: str = "posttrain"
    """Of W&B, in which each pipeline is a group of runs."""


@schema
class PipelineConfig:
    """Everything that `posttrain run` needs to know."""

    name: str = Field(default="posttrain", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Begins the names of the pipeline's runs."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is drawn in any stage."""
    root: str = "outputs"
    """Folder of all artifacts, runs and caches."""
    remote: str | None = None
    """URL of a store that `posttrain push` filled, such as ``s3://bucket/folder``: what it has of a run is fetched
    before the run starts, and not made again."""
    run_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Folder of this run below ``<root>/runs``; None derives it from the name and what the pipeline makes."""
    paths: dict[str, str | list[str] | None] = Field(default_factory=dict)
    """Files and folders that a recipe's own values refer to, as ``${paths.NAME}``."""
    columns: dict[str, dict[str, str]] = Field(default_factory=dict)
    """What the columns of such files are called, which a recipe hands on as ``${columns.NAME}``."""
    stages: dict[str, StageNode | None] = Field(min_length=1)
    """Stage name → node; null takes away a stage of a graph shape, and the inputs that name it."""
    data: DataNodes = Field(default_factory=DataNodes)
    """Knobs of the data stages."""
    sample: SampleNodes = Field(default_factory=SampleNodes)
    """Knobs of the sampling stages."""
    train: TrainNodes = Field(default_factory=TrainNodes)
    """Knobs of the training stages."""
    evaluate: EvaluateNodes = Field(default_factory=EvaluateNodes)
    """Knobs of the evaluation stages."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How responses are drawn; the knobs of stages refer to it, as ``${sampling}`` or ``${sampling.temperature}``."""
    hardware: HardwareConfig | None = None
    """What ``hardware=NAME`` hands on to the knobs of stages; None, on a CPU, leaves them as they are."""
    launcher: LauncherConfig = Field(default_factory=LauncherConfig)
    """How stages are started."""
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    """How training stages are spread over processes."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Where numbers go."""

    @model_validator(mode="after")
    def _name_is_free(self) -> PipelineConfig:
        if self.run_name == "latest":
            raise ValueError("run_name=latest is what the run started last is called; give another name")
        return self

    def node(self, run: str) -> dict[str, Any]:
        """Return the knobs given for a stage type, such as ``train.sft``."""
        folder, _, name = run.partition(".")
        knobs: dict[str, Any] = getattr(getattr(self, folder), name)
        return knobs
