"""`posttrain accept`: let an artifact stand for what changed code would make, where that is known not to matter."""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.runs.resolve import ACCEPT, Made, Resolver, committed
from posttrain.pipeline.runs.rundir import find_run, read_config
from posttrain.pipeline.runs.store import artifact_directories
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean
from posttrain.stage.record import write_record
from posttrain.stage.spec import Distributed


def accept_stage(root: Path, run_name: str, name: str, because: str) -> int:
    """Record that a stage's artifact stands, though other code made it; knobs, inputs and seed must be the same.

    Raises UsageError when there is no such artifact, or the stages before it are not made.
    """
    run = find_run(root, run_name)
    config = read_config(run)
    stages = {stage.name: stage for stage in build_graph(config)}
    if name not in stages:
        raise UsageError(f"accept {name!r}: no stage of run {run.name}{did_you_mean(name, stages)}")
    resolver = Resolver(config, run, lambda stage: Distributed())
    made = _made_before(stages, name, resolver)
    spec = resolver.spec(stages[name], made)
    resolver.save()
    if (found := committed(spec)) is not None:
        print(f"{name}: {found.directory.name} stands already; nothing to accept")
        return EXIT_DONE
    old = _made_by_other_code(run.root, stages[name], made, resolver)
    said = {"key": spec.key, "code_digest": spec.code_digest, "made_by": old.manifest.code_digest, "because": because}
    record = write_record(old.directory, ACCEPT, spec.key, said)
    print(f"{name}: {old.directory.name} stands for the present code; recorded in {record}")
    return EXIT_DONE


def _made_before(stages: dict[str, Stage], name: str, resolver: Resolver) -> dict[str, Made]:
    """Return the artifacts of the stages that a stage descends from."""
    made: dict[str, Made] = {}

    def make(parent: str) -> None:
        for grandparent in stages[parent].inputs.values():
            if grandparent not in made:
                make(grandparent)
        found = committed(resolver.spec(stages[parent], made))
        if found is None:
            raise UsageError(
                f"accept {name}: its input {parent} is not made by the present code; accept {parent} first, or run it"
            )
        made[parent] = found

    for parent in stages[name].inputs.values():
        make(parent)
    return made


def _made_by_other_code(root: Path, stage: Stage, made: dict[str, Made], resolver: Resolver) -> Made:
    """Return the newest artifact whose key differs from that of a stage by the code alone."""
    found = []
    for directory in artifact_directories(root):
        manifest = read_manifest(directory)
        if manifest.run == stage.type.run and manifest.key == resolver.key(stage, made, manifest.code_digest):
            found.append(Made(directory, manifest))
    if not found:
        raise UsageError(
            f"accept {stage.name}: no artifact in {root / 'artifacts'} differs in its code alone from what it would "
            "make now; `posttrain run` makes it"
        )
    return max(found, key=lambda one: one.manifest.created)
