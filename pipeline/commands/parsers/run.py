"""The command `posttrain run`."""

from __future__ import annotations

import argparse

from posttrain.pipeline.commands.parsers.shared import Commands, add_examples, add_overrides
from posttrain.pipeline.watch.stopping import StopRequests

EXAMPLES = """examples:
  posttrain run recipe=demo                                    the whole pipeline on generated data
  posttrain run recipe=demo seed=1 train.dpo.beta=0.2          reruns only what these change
  posttrain run recipe=smoke --dry-run                         the exact command lines
  posttrain run recipe=mine --config-dir conf                  conf/recipe/mine.yaml, a recipe of your own
  posttrain run recipe=demo stages.sft.with.max_steps=100      a knob of one stage
  posttrain run recipe=demo distributed=ddp distributed.num_processes=2
  posttrain run recipe=demo train.dpo.beta=0.05,0.1,0.3        a sweep; what its points share is made once
  posttrain run recipe=demo launcher=slurm                     the whole graph as jobs of a cluster

exit codes: 0 done, 1 failed, 2 the configuration or data must be mended, 75 stopped: the same command goes on"""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    run = commands.add_parser("run", help="run a pipeline, or what is left of it")
    add_examples(run, EXAMPLES)
    add_overrides(run)
    run.add_argument("--dry-run", action="store_true", help="print what would run, and the command lines")
    run.set_defaults(action=_run, goes_on=True)


def _run(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.room import require_room
    from posttrain.pipeline.commands.run import dry_run, note, prepare, run_pipelines
    from posttrain.pipeline.commands.run_slurm import print_submission, submit_pipelines
    from posttrain.pipeline.config.overrides import outvoted
    from posttrain.pipeline.config.sweep import compose_sweep

    stops = StopRequests()
    with stops.heeded():
        configs = compose_sweep(options.overrides, options.config_dir)
        points = {label: prepare(config) for label, config in configs.items()}
        for point in points.values():
            for line in outvoted(options.overrides, point.config.stages):
                note(line)
        if not options.dry_run:
            require_room(list(points.values()))
        if next(iter(points.values())).config.launcher.kind == "slurm":
            return print_submission(points) if options.dry_run else submit_pipelines(points, stops)
        return max(dry_run(point) for point in points.values()) if options.dry_run else run_pipelines(points, stops)
