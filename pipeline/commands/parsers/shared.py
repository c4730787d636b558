"""What the parsers of several commands share: overrides, the folder of artifacts and runs, the name of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

Commands = argparse._SubParsersAction  # the type of what `ArgumentParser.add_subparsers` returns
"""Where a command registers its parser."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a command take ``KEY=VALUE`` words, and a folder of recipes of the user's own."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration groups and knobs")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="folder with recipes of your own")


def add_root_override(parser: argparse.ArgumentParser) -> None:
    """Let a command that composes take ``--root DIR`` as the others do; it stands among the overrides."""
    parser.add_argument("--root", metavar="DIR", help="folder of artifacts and runs, as root=DIR")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """Return the overrides of a command line, with that of ``--root``."""
    return [*options.overrides, *([f"root={options.root}"] if options.root is not None else [])]


def add_root(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where artifacts and runs are."""
    parser.add_argument(
        "--root", type=Path, default=Path("outputs"), metavar="DIR", help="folder of artifacts and runs"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Let a command take the name of a run."""
    parser.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="name of the run; the latest by default"
    )


def add_examples(parser: argparse.ArgumentParser, text: str) -> None:
    """Show a text below the options of a command as it stands."""
    parser.epilog, parser.formatter_class = text, argparse.RawDescriptionHelpFormatter


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command that reads say what it found as one JSON document."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
