"""The command `posttrain plan`."""

from __future__ import annotations

import argparse

from posttrain.pipeline.commands.parsers.shared import Commands, add_overrides, add_root_override, overrides_of


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    plan = commands.add_parser("plan", help="parameters, memory and FLOPs of the training stages")
    add_overrides(plan)
    add_root_override(plan)
    plan.set_defaults(action=_plan)


def _plan(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.plan import print_pipeline_plan
    from posttrain.pipeline.config.compose import compose_config

    return print_pipeline_plan(compose_config(overrides_of(options), options.config_dir))
