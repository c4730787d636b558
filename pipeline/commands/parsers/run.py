"""The command `posttrain run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import (
    Commands,
    add_examples,
    add_overrides,
    add_root,
    add_root_override,
    overrides_of,
)

EXAMPLES = """examples:
  posttrain run recipe=demo                                    the whole pipeline on generated data
  posttrain run recipe=demo seed=1 train.dpo.beta=0.2          reruns only what these change
  posttrain run recipe=smoke --dry-run                         the exact command lines
  posttrain run recipe=mine --config-dir conf                  conf/recipe/mine.yaml, a recipe of your own
  posttrain run recipe=demo stages.sft.with.max_steps=100      a knob of one stage
  posttrain run recipe=demo distributed=ddp distributed.num_processes=2
  posttrain run recipe=demo train.dpo.beta=0.05,0.1,0.3        a sweep; what its points share is made once
  posttrain run recipe=demo launcher=slurm                     the whole graph as jobs of a cluster

exit codes: 0 done, 1 failed, 2 the configuration or data must be mended, 3 a model failed its gate, 75 stopped: the
same command goes on"""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    run = commands.add_parser("run", help="run a pipeline, or what is left of it")
    add_examples(run, EXAMPLES)
    add_overrides(run)
    add_root_override(run)
    run.add_argument("--keep-going", action="store_true", help="after a failure, run what does not need what failed")
    run.set_defaults(action=_run, goes_on=True)
    resume = commands.add_parser("resume", help="say the command of a run again, from the folder it was said in")
    resume.add_argument("run", nargs="?", default="latest", metavar="RUN", help="name; the latest by default")
    add_root(resume)
    resume.set_defaults(action=_resume, goes_on=True)
    for parser in (run, resume):
        parser.add_argument("--dry-run", action="store_true", help="print what would run, and the command lines")


def _run(options: argparse.Namespace) -> int:
    if not any(text.lstrip("+~").startswith(("recipe=", "pipeline=")) for text in options.overrides):
        from posttrain.pipeline.commands.start import print_recipes

        words = [text for text in options.overrides if "=" not in text]
        if not words:  # a lone word is told which recipe it may mean
            return print_recipes(options.config_dir)
    from posttrain.pipeline.commands.launch import launch

    return launch(overrides_of(options), options.config_dir, options.keep_going, options.dry_run)


def _resume(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.launch import launch
    from posttrain.pipeline.commands.resume import last_launch

    last = last_launch(options.root, options.run)
    config_dir = None if last.config_dir is None else Path(last.config_dir)
    return launch(last.overrides, config_dir, last.keep_going, options.dry_run)
