"""Sweeps: an override with several values, ``train.dpo.beta=0.05,0.1,0.3``, is a pipeline for each of them.

The syntax is Hydra's: ``a,b,c``, ``choice(a,b)``, ``range(1,4)``; a list is ``[a,b]`` and a text with commas is quoted.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.overrides import with_literal_path
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.stage.errors import UsageError
from posttrain.stage.files import sha256_text


def compose_sweep(overrides: list[str], config_dir: Path | None = None) -> dict[str, PipelineConfig]:
    """Return the configuration of every point by its label, such as ``train.dpo.beta=0.05``.

    Without a sweep that is one configuration with an empty label.
    """
    choices = [_values(text) for text in overrides]
    points: dict[str, PipelineConfig] = {}
    for combination in itertools.product(*choices):
        swept = [text for text, values in zip(combination, choices, strict=True) if len(values) > 1]
        name = next((text for text in combination if text.startswith("run_name=") and swept), None)
        own_name = [f"{name}-{point_name(swept)}"] if name is not None else []
        points[" ".join(swept)] = compose_config([*combination, *own_name], config_dir)
    return points


def point_name(swept: list[str]) -> str:
    """Return what of a sweep's overrides makes a run's name: ``beta-0.05-seed-1``, whatever else is swept over.

    Values that would lose signs, or be long, are a digest.
    """
    parts = [text.partition("=") for text in sorted(swept)]
    said = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, _, value in parts)
    last = [key.rpartition(".")[2] for key, _, _ in parts]
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", said) and len({*last}) == len(last)
    return said if plain else sha256_text(" ".join(sorted(swept)))[:8]


def _values(override: str) -> list[str]:
    """Return an override once for each of its values."""
    override = with_literal_path(override)
    if override.startswith(("~", "+")) or ("," not in override and "(" not in override):
        return [override]
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UsageError(f"{override}: {str(error).splitlines()[0]}") from None
    if not parsed.is_sweep_override():
        return [override]
    if not parsed.is_discrete_sweep():
        raise UsageError(f"{override}: a sweep needs values that can be counted; give a,b,c or range(start,stop,step)")
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
