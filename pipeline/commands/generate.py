"""Turns `posttrain generate …` into the command of a process that may load torch."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import resources
from pathlib import Path

import yaml

from posttrain.sample.config.asking import Asking, check_asking
from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.schema import build, to_dict

PRESETS = "posttrain.conf"


def generate_command(artifact: Path, knobs: dict[str, object], asking: Asking) -> list[str]:
    """Return the command that answers what is asked. Raises UsageError on what does not go together."""
    check_asking(asking, build(SamplingConfig, knobs, "sampling"))
    given = {name: value for name, value in dataclasses.asdict(asking).items() if value is not None}
    command = [sys.executable, "-m", "posttrain.sample.respond", "--model", str(artifact)]
    return [*command, "--sampling", json.dumps(knobs), "--asking", json.dumps(given)]


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
