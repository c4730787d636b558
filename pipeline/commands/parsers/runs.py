"""The commands that are about a run: `posttrain status`, `cancel` and `sync`."""

from __future__ import annotations

import argparse

from posttrain.pipeline.commands.parsers.shared import Commands, add_root, add_run


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    status = commands.add_parser("status", help="how far a run is; of several, what seeds change")
    add_root(status)
    status.add_argument(
        "runs", nargs="*", default=["latest"], metavar="RUN", help="name of the run; the latest by default"
    )
    status.set_defaults(action=_status)
    for name, action, about in (
        ("cancel", _cancel, "end a run; artifacts and checkpoints stay"),
        ("sync", _sync, "bring the finished stages of a run to W&B"),
    ):
        parser = commands.add_parser(name, help=about)
        add_root(parser)
        add_run(parser)
        parser.set_defaults(action=action)


def _status(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.status import print_status

    return print_status(options.root, options.runs)


def _cancel(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.cancel import cancel_run

    return cancel_run(options.root, options.run)


def _sync(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.sync import print_sync

    return print_sync(options.root, options.run)
