"""The command `posttrain config`."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import Commands, add_examples, add_json

EXAMPLES = """examples:
  posttrain config train.dpo.beta                        what a knob is: default, range, unit, example
  posttrain config train.dpo                             all knobs of a stage type
  posttrain config recipe=smoke seed=3                   what is composed, and where each value comes from
  posttrain config train.dpo recipe=smoke                both, of one part"""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    config = commands.add_parser("config", help="what a knob is, what a recipe sets, and where each value comes from")
    add_examples(config, EXAMPLES)
    config.add_argument("overrides", nargs="*", metavar="KEY | KEY=VALUE", help="a knob or its beginning; overrides")
    config.add_argument("--config-dir", type=Path, metavar="DIR", help="folder with recipes of your own")
    add_json(config)
    config.set_defaults(action=_config)


def _config(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.config import print_config

    return print_config(options.overrides, options.config_dir, options.json)
