"""Turns `posttrain generate …` into the command of a process that may load torch."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import yaml

from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.schema import build, to_dict

PRESETS = "posttrain.conf"


def generate_command(
    artifact: Path,
    knobs: dict[str, object],
    prompt: str | None,
    file: Path | None,
    out: Path | None,
    system: str,
    dtype: str,
    cache: Path | None,
    constraint: tuple[str, str] | None = None,
) -> list[str]:
    """Return the command that answers a prompt, a file, or without either a person at the terminal."""
    given = {"--prompt": prompt, "--file": file, "--out": out, "--cache": cache}
    if constraint is not None:
        given["--constraint"] = json.dumps(constraint)
    optional = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    command = [sys.executable, "-m", "posttrain.sample.respond", "--model", str(artifact)]
    return [*command, "--sampling", json.dumps(knobs), "--system", system, "--dtype", dtype, *optional]


def sampling_knobs(preset: str, overrides: list[str]) -> dict[str, object]:
    """Return all knobs of sampling: those of a preset of `conf/sampling`, and what ``key=value`` overrides change.

    Raises UsageError when the preset, a knob or a value does not exist.
    """
    folder = resources.files(PRESETS) / "sampling"
    presets = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
    if preset not in presets:
        raise UsageError(f"--preset {preset}: not one of {', '.join(presets)}{did_you_mean(preset, presets)}")
    values = yaml.safe_load((folder / f"{preset}.yaml").read_text(encoding="utf-8")) or {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r}: not of the form key=value; a prompt goes behind --prompt")
        values[key] = yaml.safe_load(value)
    return to_dict(build(SamplingConfig, values, "sampling"))
