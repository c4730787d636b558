"""The commands about runs: `ls`, `status`, `watch`, `logs`, `diff`, `compare`, `why`, `cancel` and `sync`."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import Commands, add_json, add_overrides, add_root, add_run


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    ls = commands.add_parser("ls", help="runs, the latest first; or artifacts, with their sizes and verdicts")
    ls.add_argument("--artifacts", action="store_true", help="artifacts in place of runs")
    ls.set_defaults(action=_ls)
    status = commands.add_parser("status", help="how far a run is; of several, what seeds change")
    status.add_argument(
        "runs", nargs="*", default=["latest"], metavar="RUN", help="name of the run; the latest by default"
    )
    status.add_argument("--exit-code", action="store_true", help="exit with 0 done, 1 failed, 75 not finished")
    status.set_defaults(action=_status)
    watch = commands.add_parser("watch", help="a page of a run in the browser: stages, curves, answers, logs")
    watch.add_argument("--port", type=int, default=8765, metavar="N", help="port on 127.0.0.1; 0 takes a free one")
    watch.set_defaults(action=_watch)
    logs = commands.add_parser("logs", help="the log of a stage; of the one that failed or runs by default")
    logs.add_argument("stage", nargs="?", metavar="STAGE", help="stage of the run")
    logs.add_argument("--run", default="latest", metavar="RUN", help="name of the run; the latest by default")
    logs.add_argument("-f", "--follow", action="store_true", help="and what is added to it, until the stage ends")
    logs.set_defaults(action=_logs)
    diff = commands.add_parser("diff", help="in what two runs differ: knobs value by value, and results")
    diff.add_argument("first", metavar="RUN", help="name of a run")
    diff.add_argument("second", nargs="?", default="latest", metavar="RUN", help="of another; the latest by default")
    diff.set_defaults(action=_diff)
    compare = commands.add_parser(
        "compare", help="which of two runs, models or evaluations is better, on the same items"
    )
    compare.add_argument("first", metavar="A", help="a run, RUN/STAGE, or an artifact")
    compare.add_argument("second", metavar="B", help="another of the same kind")
    compare.add_argument("--confidence", type=float, default=0.95, metavar="SHARE", help="of the intervals; 0.95")
    compare.add_argument(
        "--html", type=Path, metavar="FILE", help="write it as a page too, with the items won and lost"
    )
    compare.set_defaults(action=_compare)
    cancel = commands.add_parser("cancel", help="end a run; artifacts and checkpoints stay")
    cancel.set_defaults(action=_cancel)
    sync = commands.add_parser("sync", help="bring the finished stages of a run to W&B")
    sync.set_defaults(action=_sync)
    for parser in (watch, cancel, sync):
        add_run(parser)
    for parser in (ls, status, watch, logs, diff, compare, cancel, sync):
        add_root(parser)
    for parser in (ls, status, diff, compare):
        add_json(parser)
    why = commands.add_parser("why", help="why a stage would run again: what of its key is not what it was")
    why.add_argument("stage", metavar="STAGE", help="stage of the graph")
    add_overrides(why)
    why.add_argument("--run", default="latest", metavar="RUN", help="without overrides: the run as it was started")
    add_root(why)
    add_json(why)
    why.set_defaults(action=_why)


def _ls(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.ls import print_store

    return print_store(options.root, options.artifacts, options.json)


def _watch(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.watch import serve_run

    return serve_run(options.root, options.run, options.port)


def _logs(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.logs import print_log

    return print_log(options.root, options.run, options.stage, options.follow)


def _diff(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.diff import print_diff

    return print_diff(options.root, options.first, options.second, options.json)


def _compare(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.compare import print_comparison

    return print_comparison(options.root, options.first, options.second, options.confidence, options.json, options.html)


def _status(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.status import print_status

    return print_status(options.root, options.runs, options.json, options.exit_code)


def _cancel(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.cancel import cancel_run

    return cancel_run(options.root, options.run)


def _sync(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.sync import print_sync

    return print_sync(options.root, options.run)


def _why(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.why import print_why

    return print_why(options.root, options.stage, options.overrides, options.config_dir, options.run, options.json)
