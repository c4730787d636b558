"""Recipes by path: ``recipe=FILE.yaml`` takes a recipe of one's own, or the `config.yaml` of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from posttrain.stage.errors import UsageError

NAME = "of_file"
"""What Hydra is told that the recipe is called."""
_PACKAGE = re.compile(r"^# @package _global_", re.MULTILINE)
_OF_A_RUN = ("launcher", "distributed", "tracking", "sampling")
"""Groups that may be given on top of a run's configuration: their node in it is left out then."""
_SPREAD = ("adapter", "hardware", "pipeline")
"""Groups that set knobs of other nodes, and so cannot be told from what a run's configuration holds."""


def recipe_file(overrides: list[str]) -> Path | None:
    """Return the file that ``recipe=FILE.yaml`` names, or None where the recipe is one by name.

    Raises UsageError when there is no such file.
    """
    values = [text.partition("=")[2] for text in overrides if text.startswith("recipe=")]
    if not values or not values[-1].endswith((".yaml", ".yml")):
        return None
    path = Path(values[-1]).expanduser()
    if not path.is_file():
        raise UsageError(f"recipe={values[-1]}: no such file; give a name, or the path of a recipe")
    return path


def write_recipe(path: Path, folder: Path, overrides: list[str]) -> None:
    """Write the recipe that a file is, for Hydra to find it in ``folder`` as ``recipe/<NAME>.yaml``.

    The whole configuration of a run is one without its groups. Raises UsageError for what is neither, and for groups
    that cannot be given on top of a whole configuration.
    """
    text = path.read_text(encoding="utf-8")
    target = folder / "recipe" / f"{NAME}.yaml"
    target.parent.mkdir(parents=True)
    target.write_text(text if _PACKAGE.search(text) else _whole(path, text, overrides), encoding="utf-8")


def taken_unasked(overrides: list[str]) -> list[str]:
    """Return a line where a recipe of one's own has stages and names no pipeline, so that the usual one's are there."""
    path = recipe_file(overrides)
    text = path.read_text(encoding="utf-8") if path is not None else ""
    if not _PACKAGE.search(text) or "/pipeline:" in text or any(word.startswith("pipeline=") for word in overrides):
        return []
    if not re.search(r"^stages:", text, re.MULTILINE):
        return []
    return [
        f"{path} names no pipeline, so the stages of the usual one, sft_reward_dpo, are there too; "
        "`defaults: [{override /pipeline: null}, _self_]` leaves them out"
    ]


def _whole(path: Path, text: str, overrides: list[str]) -> str:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not readable ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict) or "stages" not in values:
        raise UsageError(f"{path}: neither a recipe, which opens with `# @package _global_`, nor a run's config.yaml")
    groups = {word.partition("=")[0] for word in overrides}
    if spread := sorted(groups & {*_SPREAD}):
        raise UsageError(
            f"{spread[0]}=…: recipe={path} holds every knob of its run already; give the knobs that differ, such as "
            "train.sft.adapter.kind=lora"
        )
    kept = {key: value for key, value in values.items() if not (key in _OF_A_RUN and key in groups)}
    defaults = [
        {"override /pipeline": None},
        *({f"override /{name}": None} for name in _OF_A_RUN if name in kept),
        "_self_",
    ]
    body = yaml.safe_dump({"defaults": defaults, **_literal(kept)}, sort_keys=False, allow_unicode=True)
    return f"# @package _global_\n{body}"


def _literal(value: Any) -> Any:
    """Return values in which nothing is an interpolation: a run's configuration has them resolved."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
