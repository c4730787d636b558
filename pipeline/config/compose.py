"""Hydra's part: from command-line overrides to one checked `PipelineConfig`.

An override of a group (`recipe=demo`, `distributed=ddp`) goes to Hydra as it stands. Any other becomes `++key=value`,
so that Hydra accepts keys that no YAML file spells out; the schema then knows every key and its type.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.schema import build

CONF = "posttrain.conf"
_INNER = ("data/policy",)
"""Groups within a group."""
_STAGE_DISTRIBUTED = re.compile(r"stages\.[\w-]+\.distributed")
"""A stage's own distribution is an option of the group, as the pipeline's is: ``stages.sft.distributed=zero3``."""


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
    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such folder; give one that holds recipe/NAME.yaml")
    options = _options(config_dir)
    arguments = [_hydra_override(text, options) for text in overrides]
    if config_dir is not None:
        arguments.append(f"hydra.searchpath=['file://{config_dir.resolve()}']")
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with initialize_config_module(CONF, version_base="1.3"):
            composed = compose("config", overrides=arguments)
        values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UsageError(_first_lines(error)) from None
    return values


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


def _options(config_dir: Path | None) -> dict[str, set[str]]:
    """Return the options of every group: ``{"recipe": {"demo", "smollm2_135m/sft_dpo", …}, "data/policy": {…}, …}``.

    A folder within a group is a group too, where the root's defaults choose from it.
    """
    found: dict[str, set[str]] = {}
    roots = [Path(str(resources.files(CONF)))] + ([config_dir] if config_dir is not None else [])
    for root in roots:
        for path in root.rglob("*.yaml"):
            group, _, option = path.relative_to(root).with_suffix("").as_posix().partition("/")
            folder, _, own = option.rpartition("/")
            if option and f"{group}/{folder}" in _INNER:
                found.setdefault(f"{group}/{folder}", set()).add(own)
            elif option:
                found.setdefault(group, set()).add(option)
    return found


def _hydra_override(text: str, options: dict[str, set[str]]) -> str:
    """Return an override as Hydra wants it; raise UsageError for a form or a group option that does not exist."""
    if text.startswith(("~", "+")):
        return text
    key, equals, value = text.partition("=")
    if _STAGE_DISTRIBUTED.fullmatch(key) and value in options["distributed"]:
        return f"+distributed@{key}={value}"
    if not equals or not key:
        raise UsageError(f"{text!r}: not of the form key=value{did_you_mean(text, options.get('recipe', ()))}")
    if key not in options:
        _check_form(text)
        return f"++{text}"
    if value not in options[key]:
        available = ", ".join(sorted(options[key]))
        raise UsageError(f"{key}={value}: no such {key}{did_you_mean(value, options[key])} (available: {available})")
    return text


def _check_form(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (override,) = OverridesParser.create().parse_overrides([f"++{text}"])
    except HydraException as error:
        reason = " ".join(str(error).partition("See https")[0].split())
        raise UsageError(f"{text}: {reason}; quote the value, as in key='\"a, b\"'") from None
    if override.is_sweep_override():
        raise UsageError(f"{text}: several values; give one, or a list in brackets: key=[a,b]")


def _first_lines(error: Exception) -> str:
    """Return an error of Hydra as one line: what it says, and what caused it."""
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ is not None else [])
    first = (re.split(r"\n\s*(?:full_key|object_type)", text)[0] for text in texts)
    return ": ".join(dict.fromkeys(" ".join(text.split()) for text in first))
