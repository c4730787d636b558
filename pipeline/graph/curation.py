"""What the datasets of a graph go through, told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.pipeline.graph.graph import Stage


def told_curation(stages: Sequence[Stage]) -> list[str]:
    """Return a line for each way in which rows become datasets, with the stages that go it."""
    ways: dict[str, list[str]] = {}
    for stage in stages:
        if stage.type.run == "data.curate" and stage.config.record_type != "evaluation":
            ways.setdefault(_way(stage), []).append(stage.name)
    return [f"{', '.join(names)}: {way}" for way, names in ways.items()]


def _way(stage: Stage) -> str:
    config = stage.config
    steps = [*(["exact duplicates"] if config.dedup else []), *(name.replace("_", " ") for name in config.steps.order)]
    use = config.steps.licence.use if "licence" in config.steps.order else None
    return " → ".join(steps or ["rows as they are"]) + (f" (for {use} use)" if use else "")
