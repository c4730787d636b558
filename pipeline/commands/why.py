"""`posttrain why`: why a stage would run again, or did: which parts of its key are not what they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.code import code_digest, code_parts
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.runs.explained import Difference, differences, read_parts
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_config, runs_in
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean
from posttrain.stage.spec import StageSpec

MADE, ANEW, AFTER = "made", "would run", "would run after what it needs"


@dataclasses.dataclass(frozen=True)
class Reason:
    """What becomes of a stage, and in what its key differs from an earlier one."""

    stage: str
    state: str
    against: str
    """The run whose key it was compared with; empty where no other run has the stage."""
    differences: list[Difference]


def print_why(root: Path, name: str, overrides: list[str], config_dir: Path | None, run: str, as_json: bool) -> int:
    """Print why a stage would run again with some overrides or, without any, as a run has it.

    It is compared with the latest run in which its key was another one. A stage that would run because one before it
    does is explained from there on. Raises UsageError when there is no such stage or run.
    """
    if overrides:
        config, root = _with_root(compose_config(overrides, config_dir), root)
    else:
        config = read_config(find_run(root, run))
    stages = {stage.name: stage for stage in build_graph(config)}
    if name not in stages:
        raise UsageError(f"why {name}: no such stage{did_you_mean(name, stages)}")
    reasons = explain(config, stages, name, root.resolve())
    if as_json:
        print(json.dumps([dataclasses.asdict(reason) for reason in reasons], ensure_ascii=False))
    else:
        for reason in reasons:
            _print(reason)
    return EXIT_DONE


def _with_root(config: PipelineConfig, root: Path) -> tuple[PipelineConfig, Path]:
    """Return where artifacts are: the configuration's own ``root=…`` goes before ``--root``."""
    return config, Path(config.root) if config.root != "outputs" else root


def explain(config: PipelineConfig, stages: dict[str, Stage], name: str, root: Path) -> list[Reason]:
    """Return the reasons of a stage, after those of the stages before it that are not made either."""
    launcher = local_launcher(config, list(stages.values()))
    run = RunDirectory(root, RunDirectory.of(config, list(stages.values())).name)
    resolver = Resolver(config, run, launcher.distributed, frozen=True)
    made: dict[str, Made] = {}
    reasons = []
    for stage in (stages[each] for each in stages if each in _needed(stages, name)):
        whole = all(parent in made for parent in stage.inputs.values())
        found = committed(resolver.spec(stage, made)) if whole else None
        if found is not None:
            made[stage.name] = found
        if found is None or stage.name == name:
            state = MADE if found is not None else ANEW if whole else AFTER
            reasons.append(_reason(root, stage, state, resolver, made))
    return reasons


def _needed(stages: dict[str, Stage], name: str) -> set[str]:
    """Return a stage and all that it descends from."""
    found = {name}
    for parent in stages[name].inputs.values():
        found |= _needed(stages, parent)
    return found


def _reason(root: Path, stage: Stage, state: str, resolver: Resolver, made: dict[str, Made]) -> Reason:
    code = code_digest(stage.type.module)
    own = {parent: made[parent] for parent in stage.inputs.values() if parent in made}
    key = resolver.key(stage, own, code)
    earlier = _earlier(root, stage.name, key)
    if earlier is None:
        return Reason(stage.name, state, "", [])
    now = (resolver.parts(stage, own, code), code_parts(stage.type.module))
    found = differences(read_parts(root, earlier.key), now)
    missing = {input_name for input_name, parent in stage.inputs.items() if parent not in made}
    kept = [one for one in found if not (one.part == "input" and one.name in missing)]
    anew = [
        Difference("input", name, "", f"{stage.inputs[name]}, which would be made anew") for name in sorted(missing)
    ]
    return Reason(stage.name, state, earlier.pipeline, [*kept, *anew])


def _earlier(root: Path, name: str, key: str) -> StageSpec | None:
    """Return the latest work order of a stage whose key is another one."""
    paths = [path for run in runs_in(root) if (path := run.spec(name)).exists()]
    specs = [StageSpec.read(path) for path in sorted(paths, key=lambda path: -path.stat().st_mtime_ns)]
    return next((spec for spec in specs if spec.key != key), None)


def _print(reason: Reason) -> None:
    compared = f"; against run {reason.against}:" if reason.against else "; no other run has it"
    print(f"{reason.stage}: {reason.state}{compared}")
    for one in reason.differences:
        print(f"  {f'input {one.name}: {one.now}' if not one.then else one.sentence()}")
    if reason.against and not reason.differences:
        print("  nothing differs: its artifact was removed")
