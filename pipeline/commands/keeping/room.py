"""What a run or a sweep will take on the disk: said before it starts, and refused where there is no room for it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from posttrain.pipeline.commands.planning.writes import writes_of
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.runs.needs import size_of
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.variants import Point, Variant, variants_of
from posttrain.plan.disk import Writes, most_at_once
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed
from posttrain.stage.wording import size


def require_room(points: list[Point]) -> None:
    """Say how much all points together will write at most; what they share counts once, what is made does not.

    Raises UsageError when that is more than there is room for, unless ``launcher.disk=warn``.
    """
    estimates, unknown = [], []
    for variant, work in _to_come(points):
        try:
            writes = estimate_of(variant)
        except UsageError:  # a model whose shape nothing here states
            unknown.append(variant.stage.name)
            continue
        if writes is not None:
            there = size_of(work) if work is not None and work.exists() else 0
            estimates.append((writes.artifact, max(0, writes.checkpoints - there)))
    config, root = points[0].config, points[0].run.root
    at_once = None
    if config.launcher.kind == "local":
        at_once = local_launcher(config, points[0].stages).max_on_device
    total = most_at_once(estimates, at_once)
    free = shutil.disk_usage(next(place for place in (root, *root.parents) if place.exists())).free
    if total > free:
        line = f"root={root}: about {size(total)} of weights and checkpoints are to come, but {size(free)} are free"
        if config.launcher.disk == "require":
            raise UsageError(
                f"{line}; make room (posttrain gc), keep fewer checkpoints (keep_checkpoints), give another root, or "
                "launcher.disk=warn"
            )
        print(f"warning: {line}", file=sys.stderr, flush=True)
    elif total:
        known = f", and what {', '.join(dict.fromkeys(unknown))} will take is not known" if unknown else ""
        print(f"disk: about {size(total)} of weights and checkpoints to come, {size(free)} free{known}", flush=True)


def estimate_of(variant: Variant) -> Writes | None:
    """Return what a stage that makes weights writes, None for another; raise UsageError for a model of no shape."""
    return writes_of(variant.stage, {each.name: each for each in variant.points[0].stages})


def _to_come(points: list[Point]) -> Iterator[tuple[Variant, Path | None]]:
    """Yield the stages that are not made, and where their work is if that is known."""
    variants = [variant for of_name in variants_of(points).values() for variant in of_name]
    for point in points:
        own: list[tuple[Stage, Path | None]] = []
        resolver = Resolver(point.config, point.run, lambda stage: Distributed(), frozen=True)
        made: dict[str, Made] = {}
        for stage in point.stages:
            spec = resolver.spec(stage, made) if {*stage.inputs.values()} <= {*made} else None
            found = committed(spec) if spec is not None else None
            if found is not None:
                made[stage.name] = found
            else:
                own.append((stage, Path(spec.work) if spec is not None else None))
        for stage, work in own:
            variant = next(each for each in variants if point in each.points and each.stage.name == stage.name)
            if variant.points[0] is point:
                yield variant, work
