"""What the launcher tells a stage process: one JSON file that every rank reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.stage.artifact import Parent
from posttrain.stage.errors import UsageError
from posttrain.stage.files import read_state, write_text_atomic

VERSION = 2
"""Of the form in which a work order is written."""
WAY_OUT = "delete it, and the same `posttrain run` writes it again"


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
    lease_wait_seconds: float | None = None
    """How long to wait for another process that makes the same artifact; None is as long as it takes."""

    def write(self, path: Path) -> None:
        """Write the spec as JSON; paths below the root of its store are relative to it, so that the store can move."""
        path.parent.mkdir(parents=True, exist_ok=True)
        root = _root(path)
        raw = _with_paths(dataclasses.asdict(self), lambda text: _relative(text, root))
        write_text_atomic(path, json.dumps({"version": VERSION, **raw}, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> StageSpec:
        """Read a spec that `write` wrote.

        Raises FileNotFoundError when there is none, and UsageError when it is not as one was written.
        """
        raw = read_state(path, VERSION, WAY_OUT)
        root = _root(path)
        try:
            raw = _with_paths(raw, lambda text: _absolute(text, root))
            raw["parents"] = {name: Parent(**parent) for name, parent in raw["parents"].items()}
            raw["distributed"] = Distributed(**raw["distributed"])
            raw["tracking"] = Tracking(**raw["tracking"])
            return cls(**raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: not a work order ({error}); {WAY_OUT}") from None


def _root(spec: Path) -> Path | None:
    """Return the root of the store of ``<root>/runs/<run>/stages/<stage>/spec.json``; None for a spec elsewhere."""
    place = spec.absolute()
    inside = len(place.parts) > 5 and (place.parents[3].name, place.parents[1].name) == ("runs", "stages")
    return place.parents[4] if inside else None


def _with_paths(raw: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    places = {name: change(raw[name]) for name in ("output", "work", "outcome")}
    return {**raw, **places, "inputs": {name: change(text) for name, text in raw["inputs"].items()}}


def _relative(text: str, root: Path | None) -> str:
    below = root is not None and Path(text).is_relative_to(root)
    return Path(text).relative_to(root).as_posix() if root is not None and below else text


def _absolute(text: str, root: Path | None) -> str:
    """Return a path of a spec as it is here; version 1 says where the store was, whose folders have the same names."""
    if root is None:
        return text
    path = Path(text)
    if not path.is_absolute():
        return str(root / path)
    for folder, depth in (("artifacts", 2), ("work", 2), ("runs", 5)):
        if len(path.parts) > depth and path.parts[-depth] == folder:
            return str(root.joinpath(*path.parts[-depth:]))
    return text
