"""The command line: `posttrain run`, `status`, `cancel`, `show`, `verify`, `accept`, `sync`, `gc`, `rm`, `plan`,
`export` and `generate`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from posttrain.pipeline.commands.generate_options import add_constraints, constraint_in
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.errors import EXIT_REQUEUE, PosttrainError, from_system
from posttrain.stage.outlet import unhindered

RUN_EXAMPLES = """examples:
  posttrain run recipe=demo                                    the whole pipeline on generated data
  posttrain run recipe=demo seed=1 train.dpo.beta=0.2          reruns only what these change
  posttrain run recipe=smoke --dry-run                         the exact command lines
  posttrain run recipe=mine --config-dir conf                  conf/recipe/mine.yaml, a recipe of your own
  posttrain run recipe=demo stages.sft.with.max_steps=100      a knob of one stage
  posttrain run recipe=demo distributed=ddp distributed.num_processes=2
  posttrain run recipe=demo train.dpo.beta=0.05,0.1,0.3        a sweep; what its points share is made once
  posttrain run recipe=demo launcher=slurm                     the whole graph as jobs of a cluster

exit codes: 0 done, 1 failed, 2 the configuration or data must be mended, 75 stopped: the same command goes on"""

GENERATE_EXAMPLES = """examples:
  posttrain generate dpo                                       talk to the model of stage dpo
  posttrain generate dpo --prompt "What is 3 + 4?" --preset factual
  posttrain generate dpo temperature=0.9 num_samples=4 --file prompts.jsonl --out responses.jsonl
  posttrain generate dpo --prompt "Who wrote Emma?" --schema author.json    a document of a JSON Schema

--file has one JSON object per line, whose "prompt" is a text or a list of messages; --out gets the same rows with
"responses". Without --prompt and --file you talk to the model."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parse(arguments)
    code = EXIT_REQUEUE
    try:
        with unhindered("the run goes on, `posttrain status` tells how far it is" if options.action is _run else ""):
            code = _act(options)
    except KeyboardInterrupt:  # while the reader of our output stands still
        pass
    return code


def _act(options: argparse.Namespace) -> int:
    try:
        code: int = options.action(options)
    except PosttrainError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        goes_on = "; no stage was running, the same command goes on" if options.action is _run else ""
        print(f"stopped: {stop or 'interrupted'}{goes_on}", file=sys.stderr)
        return EXIT_REQUEUE
    except OSError as error:
        if (known := from_system(error, str(Path.cwd()))) is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code
    return code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse, and let options stand among the overrides: argparse gives back what follows them as unknown."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="posttrain", description="Curate, finetune, model rewards, align, evaluate: one pipeline with lineage."
    )
    parser.add_argument("--version", action="version", version=f"posttrain {metadata.version('posttrain')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    composed = argparse.ArgumentParser(add_help=False)
    composed.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration groups and knobs")
    composed.add_argument("--config-dir", type=Path, metavar="DIR", help="folder with recipes of your own")
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument(
        "--root", type=Path, default=Path("outputs"), metavar="DIR", help="folder of artifacts and runs"
    )

    run = commands.add_parser(
        "run",
        parents=[composed],
        help="run a pipeline, or what is left of it",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--dry-run", action="store_true", help="print what would run, and the command lines")
    run.set_defaults(action=_run)
    plan = commands.add_parser("plan", parents=[composed], help="parameters, memory and FLOPs of the training stages")
    plan.set_defaults(action=_plan)
    status = commands.add_parser("status", parents=[rooted], help="how far a run is")
    status.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="name of the run; the latest by default"
    )
    status.set_defaults(action=_status)
    cancel = commands.add_parser("cancel", parents=[rooted], help="end a run; artifacts and checkpoints stay")
    cancel.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="name of the run; the latest by default"
    )
    cancel.set_defaults(action=_cancel)
    show = commands.add_parser("show", parents=[rooted], help="what an artifact is and where it comes from")
    show.add_argument("artifact", metavar="ARTIFACT", help="directory, stage, or the start of a name, key or digest")
    show.set_defaults(action=_show)
    verify = commands.add_parser("verify", parents=[rooted], help="compare every file with its recorded hash")
    verify.add_argument("artifacts", nargs="*", metavar="ARTIFACT", help="all of them by default")
    verify.set_defaults(action=_verify)
    accept = commands.add_parser(
        "accept", parents=[rooted], help="let an artifact stand, though code has changed that does not matter to it"
    )
    accept.add_argument("stage", metavar="STAGE", help="stage of the run")
    accept.add_argument("--run", default="latest", metavar="RUN", help="name of the run; the latest by default")
    accept.add_argument("--because", required=True, metavar="TEXT", help="why the change does not matter; recorded")
    accept.set_defaults(action=_accept)
    _add_keeping(commands, rooted)
    export = commands.add_parser(
        "export", parents=[rooted], help="copy a model out of the store, adapters merged on demand"
    )
    export.add_argument("artifact", metavar="ARTIFACT", help="a model")
    export.add_argument("directory", type=Path, metavar="DIR", help="new folder")
    export.add_argument("--merge", action="store_true", help="merge a low-rank adapter into its base")
    export.set_defaults(action=_export)
    _add_generate(commands, rooted)
    return parser


def _add_keeping(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], rooted: argparse.ArgumentParser
) -> None:
    sync = commands.add_parser("sync", parents=[rooted], help="bring the finished stages of a run to W&B")
    sync.add_argument("run", nargs="?", default="latest", metavar="RUN", help="name of the run; the latest by default")
    sync.set_defaults(action=_sync)
    gc = commands.add_parser("gc", parents=[rooted], help="list what no run needs any more, or delete it")
    gc.add_argument("--days", type=float, default=7.0, metavar="N", help="only what nothing wrote to for N days; 7")
    gc.set_defaults(action=_gc)
    rm = commands.add_parser("rm", parents=[rooted], help="remove runs with what they alone need, or artifacts")
    rm.add_argument("names", nargs="+", metavar="NAME", help="a run or an artifact")
    rm.set_defaults(action=_rm)
    for parser in (gc, rm):
        parser.add_argument("--yes", action="store_true", help="delete it; without, it is only listed")


def _add_generate(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], rooted: argparse.ArgumentParser
) -> None:
    generate = commands.add_parser(
        "generate",
        parents=[rooted],
        help="answer one prompt, a file of prompts, or you",
        epilog=GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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


def _run(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.run import dry_run, prepare, run_pipelines
    from posttrain.pipeline.commands.run_slurm import print_submission, submit_pipelines
    from posttrain.pipeline.config.sweep import compose_sweep

    stops = StopRequests()
    with stops.heeded():
        configs = compose_sweep(options.overrides, options.config_dir)
        points = {label: prepare(config) for label, config in configs.items()}
        if next(iter(points.values())).config.launcher.kind == "slurm":
            return print_submission(points) if options.dry_run else submit_pipelines(points, stops)
        return max(dry_run(point) for point in points.values()) if options.dry_run else run_pipelines(points, stops)


def _plan(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.plan import print_pipeline_plan
    from posttrain.pipeline.config.compose import compose_config

    return print_pipeline_plan(compose_config(options.overrides, options.config_dir))


def _status(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.status import print_status

    return print_status(options.root, options.run)


def _cancel(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.cancel import cancel_run

    return cancel_run(options.root, options.run)


def _show(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.show import print_artifact

    return print_artifact(options.root, options.artifact)


def _verify(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.verify import print_problems

    return print_problems(options.root, options.artifacts)


def _accept(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.accept import accept_stage

    return accept_stage(options.root, options.run, options.stage, options.because)


def _sync(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.sync import print_sync

    return print_sync(options.root, options.run)


def _gc(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.gc import collect

    return collect(options.root, options.days, options.yes)


def _rm(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.rm import remove_named

    return remove_named(options.root, options.names, options.yes)


def _export(options: argparse.Namespace) -> int:
    from posttrain.pipeline.runs.store import find_artifact

    artifact = find_artifact(options.root, options.artifact)
    command = [
        sys.executable,
        "-m",
        "posttrain.train.export",
        "--artifact",
        str(artifact),
        "--out",
        str(options.directory),
    ]
    return subprocess.run([*command, *(["--merge"] if options.merge else [])], check=False).returncode


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


if __name__ == "__main__":
    sys.exit(main())
