"""The command line: `posttrain COMMAND …`. Commands have their parsers in `posttrain.pipeline.commands.parsers`.

To add one, write `register(commands)` in a module there, which imports what it does only when it is called, and name
the module in `PARSERS`.
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from pathlib import Path

from posttrain.pipeline.commands.parsers import (
    artifacts,
    completion,
    config,
    generate,
    init,
    keeping,
    plan,
    run,
    runs,
    serve,
    tokens,
    transfers,
)
from posttrain.stage.errors import EXIT_DONE, EXIT_REQUEUE, PosttrainError, from_system
from posttrain.stage.foreign import foreign_hint
from posttrain.stage.outlet import unhindered

PARSERS = (
    init,
    run,
    config,
    plan,
    runs,
    artifacts,
    transfers,
    keeping,
    generate,
    serve,
    tokens,
    completion,
)
"""Modules that register commands, in the order of the help."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parse(arguments)
    code = EXIT_REQUEUE
    try:
        with unhindered("the run goes on, `posttrain status` tells how far it is" if options.goes_on else ""):
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
        goes_on = "; no stage was running, the same command goes on" if options.goes_on else ""
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
    parser = command_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(text.startswith("-") for text in rest)):
        flag = next((text for text in rest if text.startswith("-")), "").lstrip("-").partition("=")[0]
        theirs = foreign_hint(flag, None) if "overrides" in options else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{theirs and f'; knobs are KEY=VALUE{theirs}'}")
    if rest:
        options.overrides += rest
    return options


def _welcome(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.start import WELCOME

    print(WELCOME)
    return EXIT_DONE


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="posttrain", description="Curate, finetune, model rewards, align, evaluate: one pipeline with lineage."
    )
    parser.add_argument("--version", action="version", version=f"posttrain {metadata.version('posttrain')}")
    parser.set_defaults(goes_on=False, action=_welcome, parser=command_parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in PARSERS:
        module.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
