"""What the launcher tells a stage process: one JSON file that every rank reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from posttrain.stage.artifact import Parent


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Where numbers go beside `metrics.jsonl`."""

    wandb: str = "offline"
    """``offline``, ``online`` or ``disabled``."""
    project: str = "posttrain"
    group: str = "posttrain"


@dataclasses.dataclass(frozen=True)
class Distributed:
    """How the processes of a stage work together, as the launcher asked for it; the stage checks that it came true."""

    kind: str = "any"
    """``single``, ``ddp``, ``deepspeed`` or ``fsdp``; ``any`` in a stage started by hand, where accelerate decides."""
    num_processes: int = 1
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's own configuration."""
    fsdp: dict[str, Any] | None = None
    """The `fsdp_config` of `transformers.TrainingArguments`."""
    timeout_seconds: float = 1800.0
    """How long a process may stand still, in a collective operation or elsewhere, before it counts as hung."""


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage's work order."""

    stage: str
    """Name in the graph, such as ``sft``."""
    run: str
    """Stage type, such as ``train.sft``."""
    pipeline: str
    """Name of the run that asked for it."""
    key: str
    code_digest: str
    config: dict[str, Any]
    """The stage's resolved configuration, every default written out."""
    inputs: dict[str, str]
    """Input name → directory of a committed artifact."""
    parents: dict[str, Parent]
    output: str
    """Directory that the artifact will have once committed."""
    work: str
    """Directory of the unfinished stage: lease, checkpoints, metrics."""
    outcome: str
    """File that receives the exit code and error line: `accelerate launch` does not pass exit codes on."""
    seed: int
    distributed: Distributed
    tracking: Tracking
    lease_wait_seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write the spec as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> StageSpec:
        """Read a spec that `write` wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["parents"] = {name: Parent(**parent) for name, parent in raw["parents"].items()}
        raw["distributed"] = Distributed(**raw["distributed"])
        raw["tracking"] = Tracking(**raw["tracking"])
        return cls(**raw)
