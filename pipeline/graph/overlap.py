"""Which datasets a graph trains on without holding out what the models are asked in evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.pipeline.graph.graph import Stage


def unguarded(stages: Sequence[Stage]) -> list[str]:
    """Return a line for each dataset that a model descends from and that does not know the items it is judged by."""
    by_name = {stage.name: stage for stage in stages}
    judged = [stage.inputs for stage in stages if {"items", "model"} <= {*stage.inputs}]
    found = dict.fromkeys(
        (name, inputs["items"])
        for inputs in judged
        for name in _ancestors(inputs["model"], by_name)
        if _is_trained_on(by_name[name]) and not {*_asking(inputs["items"], by_name)} & {*by_name[name].inputs.values()}
    )
    return [
        f"{name}: may train on what {items} asks; stages.{name}.inputs.items={items} holds that out"
        for name, items in found
    ]


def _is_trained_on(stage: Stage) -> bool:
    if stage.type.run != "data.curate" or stage.config.record_type == "evaluation":
        return False
    return any(source.split != "eval" for source in stage.config.sources)


def _asking(items: str, by_name: dict[str, Stage]) -> list[str]:
    """Return a dataset of items and, where `data.retrieve` put passages before them, the one that asks the same."""
    found = [items]
    while by_name[found[-1]].type.run == "data.retrieve":
        found.append(by_name[found[-1]].inputs["data"])
    return found


def _ancestors(name: str, by_name: dict[str, Stage]) -> list[str]:
    """Return the names of a stage and of all that it descends from."""
    found = [name]
    for one in found:
        found += [parent for parent in dict.fromkeys(by_name[one].inputs.values()) if parent not in found]
    return found
