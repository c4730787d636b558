"""The stage graph: nodes with their checked configurations, in an order that lets each find its inputs made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from posttrain.pipeline.config.pipeline import DistributedConfig, PipelineConfig, StageNode
from posttrain.pipeline.config.slurm import SlurmConfig, SlurmResources
from posttrain.pipeline.graph.registry import STAGE_TYPES, StageType
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.schema import build, check_given, to_dict

GATE = "evaluate.gate"
"""The stage type whose verdict others wait for."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a pipeline, ready to be given a key."""

    name: str
    type: StageType
    inputs: dict[str, str]
    """Input name → name of the stage that makes it."""
    config: Any
    """Instance of the stage type's schema."""
    overrides: dict[str, Any]
    """What the graph sets for this stage alone."""
    distributed: DistributedConfig
    """How a stage is spread over processes that trains, or shares its rows out; others are one process."""
    slurm: SlurmResources
    """What its job asks for on a cluster."""
    seed: int
    """Of what is drawn in it."""
    gates: tuple[str, ...] = ()
    """Gates of the models that it builds upon: it starts when all of them have passed."""

    @property
    def on_device(self) -> bool:
        """Whether it computes on the accelerator, and so shares it with other such stages."""
        return self.type.device or self.type.device_with in self.inputs

    def label(self, key: str) -> str:
        """Return where the user gave a knob: ``train.dpo.beta``, or ``stages.dpo.with.beta`` if the graph does."""
        where = f"stages.{self.name}.with" if key.split(".")[0] in self.overrides else self.type.run
        return f"{where}.{key}"


def build_graph(config: PipelineConfig) -> list[Stage]:
    """Return the stages in topological order, independent ones in the order of the configuration.

    Raises UsageError for an unknown stage type, input or knob, a missing input, an input of the wrong kind and a cycle.
    """
    nodes = {name: node for name, node in config.stages.items() if node is not None and node.if_given is not None}
    for name in [
        name for name, node in nodes.items() if node.run == GATE and not _judges(node, {*config.stages} - {*nodes})
    ]:
        del nodes[name]
    types = {name: _stage_type(name, node) for name, node in nodes.items()}
    left_out = {None, *config.stages} - {*nodes}
    inputs = {
        name: {key: made for key, made in node.inputs.items() if made and made not in left_out}
        for name, node in nodes.items()
    }
    for name in nodes:
        _check_inputs(name, inputs[name], types)
    gates = waits_of(inputs, types, lambda name: {**config.node(types[name].run), **nodes[name].overrides}.get("mode"))
    order = _topological_order({name: [*made.values(), *gates[name]] for name, made in inputs.items()})
    problems = _misspelt({stage_type.run for stage_type in types.values()}, config)
    stages = []
    for name in order:
        try:
            stage_config = _stage_config(name, nodes[name], types[name], config.node(types[name].run))
            distributed = _distributed(name, nodes[name], config.distributed)
            slurm = _slurm_resources(name, nodes[name], config.launcher.slurm)
            own, seed = nodes[name].overrides, _seed(nodes[name], config.seed)
            stages.append(
                Stage(name, types[name], inputs[name], stage_config, own, distributed, slurm, seed, gates[name])
            )
        except UsageError as error:
            problems += str(error).splitlines()
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    return stages


def _misspelt(present: set[str], config: PipelineConfig) -> list[str]:
    """Return a line for each knob that the stage types outside a graph do not have: its node is read by no stage."""
    problems: list[str] = []
    for run in STAGE_TYPES.keys() - present:
        if knobs := config.node(run):
            try:
                check_given(STAGE_TYPES[run].schema(), knobs, run)
            except UsageError as error:
                problems += str(error).splitlines()
    return problems


def _stage_type(name: str, node: StageNode) -> StageType:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise UsageError(f"stages.{name}: a stage's name is a folder's name; use letters, digits, - and _")
    if node.run not in STAGE_TYPES:
        hint = did_you_mean(node.run, STAGE_TYPES) or f"; known: {', '.join(STAGE_TYPES)}"
        raise UsageError(f"stages.{name}.run: {node.run!r}: no such stage type{hint}")
    return STAGE_TYPES[node.run]


def _check_inputs(name: str, inputs: dict[str, str], types: dict[str, StageType]) -> None:
    own = types[name]
    for key, made_by in inputs.items():
        where = f"stages.{name}.inputs.{key}"
        taken = own.input(key)
        if taken is None:
            raise UsageError(f"{where}: {own.run} has no such input{did_you_mean(key, own.inputs)}")
        if made_by not in types:
            raise UsageError(f"{where}: {made_by!r}: no such stage{did_you_mean(made_by, types)}")
        if types[made_by].kind not in taken.kinds:
            raise UsageError(
                f"{where}: {made_by} makes {types[made_by].kind}, but {own.run} takes {' or '.join(taken.kinds)}"
            )
    for key, wanted in own.inputs.items():
        if wanted.required and key not in inputs:
            raise UsageError(f"stages.{name}.inputs.{key}: missing; name the stage that makes the {wanted.kinds[0]}")


def _judges(gate: StageNode, left_out: set[str]) -> bool:
    """Return whether what a gate compares is in the graph; without it, the gate is left out as well."""
    return not left_out & {made for made in gate.inputs.values() if made is not None}


def waits_of(
    inputs: dict[str, dict[str, str]], types: dict[str, StageType], mode: Callable[[str], Any]
) -> dict[str, tuple[str, ...]]:
    """Return the gates that each stage waits for: those of the models among its inputs, unless ``mode`` is to report.

    Evaluation waits for none, since it is what gates judge by; nor does what a gate itself needs.
    """
    waits: dict[str, tuple[str, ...]] = dict.fromkeys(inputs, ())
    for gate, own in inputs.items():
        if types[gate].run != GATE or mode(gate) == "report":
            continue
        model, needed = inputs[own["after"]].get("model"), _ancestors(gate, inputs)
        for name, made in inputs.items():
            if model in made.values() and name not in needed and not types[name].run.startswith("evaluate."):
                waits[name] += (gate,)
    return waits


def _ancestors(name: str, inputs: dict[str, dict[str, str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for parent in inputs[waiting.pop()].values():
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def _topological_order(needed: dict[str, list[str]]) -> list[str]:
    try:
        return list(TopologicalSorter(needed).static_order())
    except CycleError as error:
        raise UsageError(
            f"stages: {' → '.join(reversed(error.args[1]))} is a cycle; break one of these inputs"
        ) from None


def _stage_config(name: str, node: StageNode, stage_type: StageType, knobs: dict[str, Any]) -> Any:
    """Return a stage's configuration: the schema's defaults, then the type's node, then the stage's own overrides."""
    values = _merged(knobs, node.overrides)
    try:
        return build(stage_type.schema(), values, stage_type.run)
    except UsageError as error:
        lines = [_relabelled(line, name, node, stage_type.run, knobs) for line in str(error).splitlines()]
        raise UsageError("\n".join(lines)) from None


def _relabelled(line: str, name: str, node: StageNode, run: str, knobs: dict[str, Any]) -> str:
    """Point a message at the place where the user wrote the knob, or would write the missing one."""
    path, colon, text = line.partition(":")
    knob = path.removeprefix(f"{run}.").split(".")[0]
    if node.overrides and (knob in node.overrides or knob not in knobs):
        path = f"stages.{name}.with{path.removeprefix(run)}"
    return path + colon + text


def _distributed(name: str, node: StageNode, usual: DistributedConfig) -> DistributedConfig:
    """Return how a stage is spread over processes; raise UsageError where a stage of one process is told to be."""
    asked = usual if node.distributed is None else _on_the_same_machines(name, node.distributed, usual)
    if STAGE_TYPES[node.run].accelerate:
        return asked
    if STAGE_TYPES[node.run].shares:
        return _sharing(asked)
    if node.distributed is not None and node.distributed.kind != "single":
        raise UsageError(
            f"stages.{name}.distributed: {node.distributed.kind}, but {node.run} runs as one process; leave it out"
        )
    return DistributedConfig(device=usual.device, timeout_seconds=usual.timeout_seconds)


def _on_the_same_machines(name: str, own: DistributedConfig, usual: DistributedConfig) -> DistributedConfig:
    """Return a stage's own distribution on the machines of its pipeline; one process needs the first alone."""
    for knob, default in {"num_machines": 1, "machine_rank": None, "main_address": None, "main_port": None}.items():
        if getattr(own, knob) != default:
            raise UsageError(f"stages.{name}.distributed.{knob}: all stages have the same; give distributed.{knob}")
    if own.kind == "single" or usual.num_machines == 1:
        return own
    if (own.num_processes or 0) % usual.num_machines:
        raise UsageError(
            f"stages.{name}.distributed.num_processes: {own.num_processes} is no multiple of the "
            f"{usual.num_machines} machines; every machine has as many"
        )
    return dataclasses.replace(own, num_machines=usual.num_machines)


def _sharing(asked: DistributedConfig) -> DistributedConfig:
    """Return how a stage is spread that has a whole model on each process, whatever engine spreads those that train."""
    kind: Literal["single", "ddp"] = "single" if asked.kind == "single" else "ddp"
    return dataclasses.replace(asked, kind=kind, deepspeed=None, fsdp=None)


def _seed(node: StageNode, usual: int) -> int:
    return usual if node.seed is None else node.seed


def _slurm_resources(name: str, node: StageNode, usual: SlurmConfig) -> SlurmResources:
    of_folder: SlurmResources = getattr(usual, node.run.partition(".")[0])
    if not node.slurm:
        return of_folder
    resources: SlurmResources = build(SlurmResources, _merged(to_dict(of_folder), node.slurm), f"stages.{name}.slurm")
    return resources


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged
