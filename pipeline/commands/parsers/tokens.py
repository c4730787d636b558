"""The command `posttrain tokens`."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import Commands


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    tokens = commands.add_parser("tokens", help="what the same text costs in tokens, by language and tokenizer")
    tokens.add_argument("texts", type=Path, metavar="TEXTS", help="folder or zip of LANGUAGE.txt, or JSON lines")
    tokens.add_argument("--tokenizer", action="append", required=True, metavar="[NAME=]FOLDER", help="may be repeated")
    tokens.add_argument("--languages", default="", metavar="A,B", help="some of them; all by default")
    tokens.add_argument("--reference", default="eng", metavar="LANGUAGE", help="what others are compared with; eng")
    tokens.add_argument("--max-length", type=int, metavar="N", help="tell which share of sentences is longer")
    tokens.add_argument("--out", type=Path, metavar="DIR", help="folder for tokens.csv and tokens.svg")
    tokens.set_defaults(action=_tokens)


def _tokens(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.tokens import print_tokens

    languages = [name for name in options.languages.split(",") if name]
    return print_tokens(options.texts, options.tokenizer, languages, options.reference, options.max_length, options.out)
