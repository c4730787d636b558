"""The command `posttrain generate`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from posttrain.pipeline.commands.parsers.constraints import add_constraints, constraint_in
from posttrain.pipeline.commands.parsers.shared import Commands, add_examples, add_root

EXAMPLES = """examples:
  posttrain generate dpo                                       talk to the model of stage dpo
  posttrain generate dpo --prompt "What is 3 + 4?" --preset factual
  posttrain generate dpo temperature=0.9 num_samples=4 --file prompts.jsonl --out responses.jsonl
  posttrain generate dpo --prompt "Who wrote Emma?" --schema author.json    a document of a JSON Schema

--file has one JSON object per line, whose "prompt" is a text or a list of messages; --out gets the same rows with
"responses". Without --prompt and --file you talk to the model."""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    generate = commands.add_parser("generate", help="answer one prompt, a file of prompts, or you")
    add_examples(generate, EXAMPLES)
    add_root(generate)
    generate.add_argument("artifact", metavar="ARTIFACT", help="a model")
    generate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="knobs of sampling")
    generate.add_argument("--preset", default="general", help="of conf/sampling; general by default")
    generate.add_argument("--prompt", metavar="TEXT", help="one prompt")
    generate.add_argument("--file", type=Path, metavar="JSONL", help="prompts")
    generate.add_argument("--out", type=Path, metavar="JSONL", help="file to write, with --file")
    generate.add_argument("--system", default="", metavar="TEXT", help="system message")
    generate.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    generate.add_argument("--cache", type=Path, metavar="FILE", help="responses that need not be made again")
    add_constraints(generate)
    generate.set_defaults(action=_generate)


def _generate(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.generate import generate_command, sampling_knobs
    from posttrain.pipeline.runs.store import find_artifact

    command = generate_command(
        find_artifact(options.root, options.artifact),
        sampling_knobs(options.preset, options.overrides),
        options.prompt,
        options.file,
        options.out,
        options.system,
        options.dtype,
        options.cache,
        constraint_in(options),
    )
    os.execv(command[0], command)  # which has the terminal, and its signals, to itself
