"""Where to begin: what `posttrain` alone says, and `posttrain run` without a recipe."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.config.recipes import recipes
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.errors import EXIT_USAGE

WELCOME = """posttrain: from a base model to an aligned one, as one pipeline.

  posttrain run recipe=smoke      see that everything works: two minutes on a CPU, nothing is learned
  posttrain run recipe=demo       the whole chain on generated data, with a report: twelve minutes
  posttrain init --data FOLDER    your data: finds its shapes and writes a recipe of your own
  posttrain run                   lists all recipes
  posttrain config KEY            what a knob does; names from other tools are answered too
  posttrain ls, status, logs      what ran, how far it is, and why it failed

posttrain --help lists every command, posttrain COMMAND --help shows examples."""


def print_recipes(config_dir: Path | None) -> int:
    """Print the recipes, what each does and what it needs; return the exit code of a command that lacks one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "what it does", "needs"):
        table.add_column(heading, overflow="fold")
    for recipe in recipes(config_dir):
        table.add_row(escape(recipe.name), escape(recipe.line), escape(recipe.needs))
    console_for_tables().print(table)
    print(
        "error: which recipe? posttrain run recipe=NAME, or recipe=FILE.yaml; posttrain init writes one for your data",
        file=sys.stderr,
    )
    return EXIT_USAGE
