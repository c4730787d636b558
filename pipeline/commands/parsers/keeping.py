"""The commands that make room: `posttrain gc` and `rm`."""

from __future__ import annotations

import argparse

from posttrain.pipeline.commands.parsers.shared import Commands, add_root


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    gc = commands.add_parser("gc", help="list what no run needs any more, or delete it")
    gc.add_argument("--days", type=float, default=7.0, metavar="N", help="only what nothing wrote to for N days; 7")
    gc.set_defaults(action=_gc)
    rm = commands.add_parser("rm", help="remove runs with what they alone need, or artifacts")
    rm.add_argument("names", nargs="+", metavar="NAME", help="a run or an artifact")
    rm.set_defaults(action=_rm)
    for parser in (gc, rm):
        add_root(parser)
        parser.add_argument("--yes", action="store_true", help="delete it; without, it is only listed")


def _gc(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.gc import collect

    return collect(options.root, options.days, options.yes)


def _rm(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.rm import remove_named

    return remove_named(options.root, options.names, options.yes)
