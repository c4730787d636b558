"""Which stages the pipelines of a sweep share: those whose knobs, seed and whole ancestry are the same.

Keys cannot tell, since they cover what parents made, which is not made yet.
"""

from __future__ import annotations

import dataclasses

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.files import canonical_json, sha256_text
from posttrain.stage.schema import key_values


@dataclasses.dataclass(frozen=True)
class Point:
    """One pipeline of a sweep; a single run is a sweep of one point."""

    config: PipelineConfig
    stages: list[Stage]
    run: RunDirectory


@dataclasses.dataclass
class Variant:
    """A stage as one or several points want it. The first point's run is its home; the others link there."""

    stage: Stage
    points: list[Point]
    parents: list[Variant]

    @property
    def home(self) -> RunDirectory:
        """The run whose folder holds its work order and logs."""
        return self.points[0].run


def variants_of(points: list[Point]) -> dict[str, list[Variant]]:
    """Return the distinct variants of every stage by the stage's name, parents before children."""
    found: dict[str, Variant] = {}
    by_name: dict[str, list[Variant]] = {}
    for point in points:
        own: dict[str, str] = {}
        for stage in point.stages:
            own[stage.name] = identity = _identity(stage, own)
            if identity in found:
                found[identity].points.append(point)
                continue
            parents = [found[own[parent]] for parent in dict.fromkeys((*stage.inputs.values(), *stage.gates))]
            found[identity] = Variant(stage, [point], parents)
            by_name.setdefault(stage.name, []).append(found[identity])
    return by_name


def _identity(stage: Stage, known: dict[str, str]) -> str:
    values = {
        "name": stage.name,
        "run": stage.type.run,
        "config": key_values(stage.config, str),
        "seed": stage.seed,
        "parents": {name: known[parent] for name, parent in stage.inputs.items()},
        "gates": [known[gate] for gate in stage.gates],
    }
    return sha256_text(canonical_json(values))
