"""The commands that share artifacts over a URL: `posttrain push` and `pull`."""

from __future__ import annotations

import argparse

from posttrain.pipeline.commands.parsers.shared import Commands, add_root


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    push = commands.add_parser("push", help="send artifacts to a store at a URL, with their parents")
    push.add_argument("--verify", action="store_true", help="read what is there already, and mend it")
    push.set_defaults(action=_push)
    pull = commands.add_parser("pull", help="fetch artifacts from a store at a URL, with their parents")
    pull.set_defaults(action=_pull)
    for parser, count in ((push, "*"), (pull, "+")):
        parser.add_argument("url", metavar="URL", help="s3://bucket/folder, gs://…, file://…, sftp://… or a folder")
        parser.add_argument("names", nargs=count, metavar="NAME", help="artifacts; without any, push sends all")
        add_root(parser)


def _push(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.transfer import push

    return push(options.root, options.url, options.names, options.verify)


def _pull(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.transfer import pull

    return pull(options.root, options.url, options.names)
