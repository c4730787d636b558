"""A stage started by hand: its work order from ``key=value`` arguments, and the places that it may write to.

accelerate launch -m posttrain.train.sft inputs.model=DIR inputs.data=DIR output=DIR learning_rate=1e-5

It writes ``DIR``, ``DIR.work``, ``DIR.outcome.json`` and ``.DIR.incomplete``, none of which may be
another's.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from posttrain.stage.artifact import Manifest, Parent, is_free, read_manifest
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.files import (
    canonical_json,
    contents_digest,
    is_pattern,
    located,
    sha256_file,
    sha256_text,
)
from posttrain.stage.schema import build, key_values, to_dict
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.whole import require_sizes
from posttrain.stage.wording import differences

BY_HAND = "by-hand"
"""Name of the run of such a stage."""


def spec_by_hand(arguments: list[str], config_class: type[Any], module: str) -> StageSpec:
    """Return the work order that arguments give. Raises UsageError for one that is not ``key=value``, or wrong."""
    run = module.removeprefix("posttrain.") if module != "__main__" else _main_module_name()
    values: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    spread: dict[str, Any] = {}
    own: dict[str, str] = {"seed": "0", "output": "", "tracking.wandb": "offline"}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise UsageError(f"{argument!r}: not of the form key=value; give inputs.NAME=DIR, output=DIR and knobs")
        name = name.removeprefix(f"{run}.")
        if name.startswith("inputs."):
            inputs[name.removeprefix("inputs.")] = text
        elif name in own:
            own[name] = text
        elif name.startswith("distributed."):
            spread[name.removeprefix("distributed.")] = yaml.safe_load(text)
        else:
            _set_nested(values, name.split("."), yaml.safe_load(text))
    if not own["output"]:
        raise UsageError(f"output: missing; give output=DIR{did_you_mean('output', values)}")
    config = build(config_class, values, run)
    output = Path(own["output"]).resolve()
    manifests = {name: read_manifest(Path(path)) for name, path in inputs.items()}
    parents = {name: Parent(made.kind, made.digest, Path(inputs[name]).name) for name, made in manifests.items()}
    return StageSpec(
        stage=run.rpartition(".")[2],
        run=run,
        pipeline=BY_HAND,
        key=_key(run, config, parents, own["seed"]),
        code_digest="",
        config=to_dict(config),
        inputs=inputs,
        parents=parents,
        output=str(output),
        work=str(output.with_name(f"{output.name}.work")),
        outcome=str(output.with_name(f"{output.name}.outcome.json")),
        seed=int(own["seed"]),
        distributed=_distributed(spread),
        tracking=Tracking(wandb=own["tracking.wandb"]),
    )


def _distributed(values: dict[str, Any]) -> Distributed:
    """Return how the processes work together: as `accelerate launch` started them, and as the arguments say."""
    known = [field.name for field in dataclasses.fields(Distributed) if field.name != "num_processes"]
    for name in values:
        if name not in known:
            raise UsageError(f"distributed.{name}: unknown key{did_you_mean(name, known)}; known: {', '.join(known)}")
    return Distributed(**values, num_processes=int(os.environ.get("WORLD_SIZE", "1")))


def require_own_places(spec: StageSpec, config_class: type[Any]) -> None:
    """Raise UsageError when a place that a stage by hand would write to holds anything that is not of this stage."""
    output, work = Path(spec.output), Path(spec.work)
    advice = "nothing in it is touched; give another output, or move it away"
    if not is_free(output):
        try:
            manifest = require_sizes(output)
        except UsageError as error:
            raise UsageError(f"output={output}: is there already and no artifact ({error}); {advice}") from None
        require_same(spec, manifest, config_class)
    elif not (work / "lease").is_file():  # which a stage makes first
        for place in (work, output.with_name(f".{output.name}.incomplete")):
            if not is_free(place):
                raise UsageError(f"output={output}: would write to {place}: which it did not make; {advice}")


def require_same(spec: StageSpec, manifest: Manifest, config_class: type[Any]) -> None:
    """Raise UsageError with the difference when what stands at the output was made from something else."""
    if manifest.key == spec.key:
        return
    found, wanted = _made_from(manifest, config_class), _made_from(spec, config_class)
    where = "; ".join(differences(found, wanted)[:3])
    because = f"made with other values ({where})" if where else "made from other contents of outside files, or of old"
    raise UsageError(f"output={spec.output}: {because}; give another output, or move it away")


def _key(run: str, config: Any, parents: dict[str, Parent], seed: str) -> str:
    """Return the key; ranks but the first write nothing, and do not read outside files for it."""
    first = os.environ.get("RANK", "0") == "0"
    known = key_values(
        config,
        lambda path: (
            contents_digest(path, sha256_file) if first and (is_pattern(path) or located(path).exists()) else ""
        ),
    )
    digests = {name: parent.digest for name, parent in parents.items()}
    return sha256_text(canonical_json({"run": run, "config": known, "parents": digests, "seed": seed}))


def _made_from(made: Manifest | StageSpec, config_class: type[Any]) -> dict[str, Any]:
    try:
        config = key_values(build(config_class, made.config, made.run), str)
    except UsageError:  # knobs of another version
        config = made.config
    parents = {name: parent.digest for name, parent in made.parents.items()}
    return {"run": made.run, "seed": made.seed, "config": config, "inputs": parents}


def _main_module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removeprefix("posttrain.") if spec is not None else "stage"


def _set_nested(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value
