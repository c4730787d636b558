"""Lengths that cannot work, found from configurations alone: before hours of training, not after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.config.tokenize import declared_positions
from posttrain.pipeline.graph.graph import Stage
from posttrain.stage.errors import UsageError


def check_lengths(stages: Sequence[Stage]) -> None:
    """Raise UsageError, with a line for each, for knobs that ask a model for more tokens than it takes, or fit no pack.

    A model of the Hub says how many it takes only when it is there; the stages check it again.
    """
    by_name = {stage.name: stage for stage in stages}
    problems = [
        line for stage in stages for line in (*_beyond_the_model(stage, by_name), *_beyond_a_pack(stage, by_name))
    ]
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))


def _beyond_the_model(stage: Stage, by_name: Mapping[str, Stage]) -> Iterator[str]:
    max_length, max_new_tokens = (getattr(stage.config, name, None) for name in ("max_length", "max_new_tokens"))
    if max_length is None and max_new_tokens is None:
        return
    positions = positions_of(stage, by_name)
    if positions is None:
        return
    takes = f"the model takes at most {positions} tokens"
    if max_length is not None and max_length > positions:
        yield f"{stage.label('max_length')}={max_length}: {takes}; set {stage.label('max_length')}={positions}"
    if max_new_tokens is not None and max_new_tokens >= positions:
        yield f"{stage.label('max_new_tokens')}={max_new_tokens}: {takes}, the prompt's included; lower it"


def _beyond_a_pack(stage: Stage, by_name: Mapping[str, Stage]) -> Iterator[str]:
    if not getattr(stage.config, "packing", False):
        return
    tokens, capacity = by_name[stage.inputs["data"]], stage.config.pack_length
    longest = tokens.config.max_length
    if longest is not None and longest > capacity:
        yield (
            f"{stage.label('pack_length')}={capacity}: {tokens.label('max_length')}={longest} lets rows be longer than "
            f"a pack; set {stage.label('pack_length')}={longest}, or lower the other"
        )


def positions_of(stage: Stage, by_name: Mapping[str, Stage]) -> int | None:
    """Return how many tokens the base model takes that a stage's model descends from, where that can be known."""
    while stage.type.run != "train.base":
        if "model" not in stage.inputs:
            return None
        stage = by_name[stage.inputs["model"]]
    config: Any = stage.config
    if config.architecture is not None:
        positions: int = config.architecture.max_position_embeddings
        return positions
    return _declared(Path(config.path)) if config.path is not None else None


def _declared(folder: Path) -> int | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # importing it says what is wrong with it
    return declared_positions(config) if isinstance(config, dict) else None
