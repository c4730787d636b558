"""The command `posttrain generate`."""

from __future__ import annotations

import argparse
import dataclasses
import os

from posttrain.pipeline.commands.parsers.asking import EXAMPLES, add_asking, asking_in
from posttrain.pipeline.commands.parsers.shared import Commands, add_examples, add_root


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    generate = commands.add_parser("generate", help="answer one prompt, a file of prompts, or you")
    add_examples(generate, EXAMPLES)
    generate.usage = "%(prog)s ARTIFACT [KEY=VALUE …] [OPTIONS]"
    generate.add_argument("artifact", metavar="ARTIFACT", help="a model: RUN/STAGE, a stage, or a folder")
    generate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="knobs of sampling, see docs/knobs.md")
    generate.add_argument("--preset", default="general", help="of conf/sampling; general by default")
    add_root(generate)
    add_asking(generate)
    generate.set_defaults(action=_generate)


def _generate(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.generate import generate_command, sampling_knobs
    from posttrain.pipeline.runs.store import find_artifact, find_model

    asking = asking_in(options)
    if asking.reward is not None:
        asking = dataclasses.replace(asking, reward=str(find_artifact(options.root, asking.reward)))
    knobs = sampling_knobs(options.preset, options.overrides)
    command = generate_command(find_model(options.root, options.artifact), knobs, asking)
    os.execv(command[0], command)  # which has the terminal, and its signals, to itself
