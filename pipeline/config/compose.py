"""Hydra's part: from command-line overrides to one checked `PipelineConfig`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from posttrain.pipeline.config.overrides import CONF, group_options, hydra_override
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.config.recipe_file import NAME, recipe_file, write_recipe
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.schema import build


def compose_config(overrides: list[str], config_dir: Path | None = None) -> PipelineConfig:
    """Return the configuration of ``overrides``, such as ``["recipe=demo", "train.dpo.beta=0.2"]``.

    ``config_dir`` is a folder of the user's own groups and recipes, searched after the shipped ones. Raises UsageError
    that names the key and the nearest known one.
    """
    values = compose_values(overrides, config_dir)
    _check_stages(values.get("stages", {}))
    _check_hardware(values.get("hardware"))
    return build(PipelineConfig, values, "")


def compose_values(overrides: list[str], config_dir: Path | None = None) -> dict[str, Any]:
    """Return what Hydra makes of ``overrides``, as plain values that no schema has seen yet."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with composed(overrides, config_dir) as (config, _):
            _check_paths(OmegaConf.to_container(config, resolve=False), overrides)
            values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UsageError(_first_lines(error)) from None
    return values


@contextmanager
def composed(overrides: list[str], config_dir: Path | None = None) -> Iterator[tuple[Any, list[str]]]:
    """Give what Hydra composes of ``overrides``, interpolations unresolved, and the words that it was told.

    While the context lasts, Hydra can be asked about it.

    Raises UsageError for what is known to be wrong before Hydra reads anything.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such folder; give one that holds recipe/NAME.yaml")
    options = group_options(config_dir)
    file = recipe_file(overrides)
    with tempfile.TemporaryDirectory() if file is not None else nullcontext("") as folder:
        if file is not None:
            write_recipe(file, Path(folder), overrides)
            options["recipe"].add(NAME)
            overrides = [f"recipe={NAME}" if text.startswith("recipe=") else text for text in overrides]
        from hydra import compose, initialize_config_module

        arguments = hydra_arguments(overrides, options, [config_dir, file and Path(folder)])
        with initialize_config_module(CONF, version_base="1.3"):
            yield compose("config", overrides=arguments), arguments


def hydra_arguments(overrides: list[str], options: dict[str, set[str]], folders: list[Path | None]) -> list[str]:
    """Return overrides as Hydra wants them, and where else than in the shipped configuration it is to search."""
    places = ",".join(f"'file://{folder.resolve()}'" for folder in folders if folder is not None)
    search = [f"hydra.searchpath=[{places}]"] if places else []
    return [*(hydra_override(text, options) for text in overrides), *search]


def _check_paths(unresolved: Any, overrides: list[str]) -> None:
    """Raise UsageError for a path that no value refers to, which is most likely misspelt, or for those that lack."""
    taken = {*re.findall(r"\$\{[^}]*?\bpaths\.([\w-]+)", str(unresolved))}
    given = [text.partition("=")[0].lstrip("+") for text in overrides]
    for name in (key.removeprefix("paths.") for key in given if key.startswith("paths.")):
        if name not in taken:
            meant = did_you_mean(name, taken) or f"; it takes {', '.join(sorted(taken)) or 'none'}"
            raise UsageError(f"paths.{name}: nothing in this recipe takes a path of this name{meant}")
    if missing := list(_missing(unresolved)):
        raise UsageError("\n".join(f"{key}: missing; this recipe needs it: give {key}=…" for key in missing))


def _missing(values: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted keys that a recipe leaves to its user."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{where}{key}.")
        elif value == "???":
            yield f"{where}{key}"


def _check_stages(stages: Any) -> None:
    """Raise UsageError for an override of a stage that the graph does not have: it made a node without a type."""
    if not isinstance(stages, dict):
        return
    known = [name for name, node in stages.items() if isinstance(node, dict) and "run" in node]
    for name, node in stages.items():
        if isinstance(node, dict) and "run" not in node and did_you_mean(name, known):
            raise UsageError(f"stages.{name}: no such stage{did_you_mean(name, known)}")


def _check_hardware(given: Any) -> None:
    """Raise UsageError for a value of a machine where none was named: it would reach no stage."""
    if isinstance(given, dict) and given and "dtype" not in given:
        name = next(iter(given))
        raise UsageError(
            f"hardware.{name}: hardware=cpu hands nothing on to stages; give hardware=gpu1, or train.STAGE.…"
        )


def _first_lines(error: Exception) -> str:
    """Return an error of Hydra as one line: what it says, and what caused it."""
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ is not None else [])
    first = (re.split(r"\n\s*(?:full_key|object_type)", text)[0] for text in texts)
    return ": ".join(dict.fromkeys(" ".join(text.split()) for text in first))
