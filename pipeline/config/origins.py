"""Where each composed value comes from: the last file that says it, or the command line."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from posttrain.pipeline.config.compose import composed
from posttrain.pipeline.config.overrides import CONF
from posttrain.pipeline.config.recipe_file import NAME, recipe_file

COMMAND_LINE = "command line"


def origins(overrides: list[str], config_dir: Path | None = None) -> dict[str, str]:
    """Return the origin of every value that something says, by its dotted key: ``recipe/smoke``, ``command line``."""
    found: dict[str, str] = {}
    file = recipe_file(overrides)
    with composed(overrides, config_dir) as (config, arguments):
        for name, package in _defaults(arguments):
            path = file if name == f"recipe/{NAME}" else _file_of(name, config_dir)
            if path is not None:
                shown = str(file) if path is file else name
                values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
                for key in _leaves(values, f"{package}." if package else ""):
                    found.pop(key, None)
                    found[key] = shown
        known = {key for key, _ in leaves(_plain(config))}
    for text in overrides:
        key, equals, _ = text.lstrip("+").partition("=")
        said = [name for name in known if name == key or name.startswith(f"{key}.")] if equals else []
        found |= dict.fromkeys(said, COMMAND_LINE)
    return found


def _defaults(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the files that Hydra read, in its order, with the node that each is about."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    loader = GlobalHydra.instance().config_loader()
    for result in loader.compute_defaults_list("config", arguments, RunMode.RUN).defaults:
        if result.config_path is not None and not result.config_path.startswith("hydra/"):
            yield result.config_path, result.package or ""


def _file_of(name: str, config_dir: Path | None) -> Path | None:
    folders = [Path(str(resources.files(CONF))), *([config_dir] if config_dir is not None else [])]
    return next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)


def _plain(config: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=False)


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested dictionaries with what stands there; lists are values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[str]:
    return (key for key, _ in leaves({key: value for key, value in values.items() if key != "defaults"}, prefix))
