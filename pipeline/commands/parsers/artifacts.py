"""The commands that are about artifacts: `posttrain show`, `verify`, `accept`, `promote`, `export` and `publish`."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import Commands, add_json, add_root


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    show = commands.add_parser("show", help="what an artifact is and where it comes from")
    show.add_argument(
        "artifact", metavar="ARTIFACT", help="directory, stage, RUN/STAGE, or start of a name, key or digest"
    )
    show.add_argument("--dropped", metavar="REASON", help="rows of a dataset that steps dropped or changed for it")
    show.add_argument("--limit", type=int, default=20, metavar="N", help="of them, at most; 20")
    show.set_defaults(action=_show)
    verify = commands.add_parser("verify", help="compare every file with its recorded hash")
    verify.add_argument("artifacts", nargs="*", metavar="ARTIFACT", help="all of them by default")
    verify.set_defaults(action=_verify)
    accept = commands.add_parser(
        "accept", help="let an artifact stand, though code has changed that does not matter to it"
    )
    accept.add_argument("stage", metavar="STAGE", help="stage of the run")
    accept.add_argument("--run", default="latest", metavar="RUN", help="name of the run; the latest by default")
    accept.add_argument("--because", required=True, metavar="TEXT", help="why the change does not matter; recorded")
    accept.set_defaults(action=_accept)
    promote = commands.add_parser("promote", help="what the gate of a stage says, or let its model stand against it")
    promote.add_argument("stage", metavar="STAGE", help="stage of the run, or its gate")
    promote.add_argument("--run", default="latest", metavar="RUN", help="name of the run; the latest by default")
    promote.add_argument("--override", action="store_true", help="build upon the model all the same; recorded")
    promote.add_argument("--why", metavar="TEXT", help="why, with --override")
    promote.set_defaults(action=_promote)
    export = commands.add_parser(
        "export", help="copy a model out of the store with its model card, adapters merged on demand"
    )
    export.add_argument("artifact", metavar="ARTIFACT", help="a model")
    export.add_argument("directory", type=Path, metavar="DIR", help="new folder")
    export.add_argument("--merge", action="store_true", help="merge a low-rank adapter into its base")
    export.set_defaults(action=_export)
    publish = commands.add_parser("publish", help="put a model on the Hugging Face Hub, with its model card")
    publish.add_argument("artifact", metavar="ARTIFACT", help="a model")
    publish.add_argument("repository", metavar="USER/NAME", help="on the Hub; a new one is private")
    publish.add_argument("--merge", action="store_true", help="merge a low-rank adapter into its base")
    publish.add_argument("--public", action="store_true", help="let everybody see a new repository")
    publish.set_defaults(action=_publish)
    for parser in (show, verify, accept, promote, export, publish):
        add_root(parser)
    for parser in (show, verify):
        add_json(parser)


def _show(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.dropped import print_dropped
    from posttrain.pipeline.commands.show import print_artifact

    if options.dropped is not None:
        return print_dropped(options.root, options.artifact, options.dropped, options.limit)
    return print_artifact(options.root, options.artifact, options.json)


def _verify(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.verify import print_problems

    return print_problems(options.root, options.artifacts, options.json)


def _accept(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.accept import accept_stage

    return accept_stage(options.root, options.run, options.stage, options.because)


def _promote(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.promote import promote_stage

    return promote_stage(options.root, options.run, options.stage, options.override, options.why)


def _publish(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.publish import publish

    return publish(options.root, options.artifact, options.repository, options.merge, options.public)


def _export(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.keeping.export import export_model

    return export_model(options.root, options.artifact, options.directory, options.merge)
