"""Options of `posttrain generate` that say what responses must be."""

from __future__ import annotations

import argparse


def add_constraints(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what responses must be."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--schema", metavar="FILE", help="responses are compact JSON documents of this JSON Schema")
    group.add_argument("--regex", metavar="PATTERN", help="responses match it from begin to end")
    group.add_argument("--choices", metavar="A,B,…", help="a response is one of these texts")
    group.add_argument("--grammar", metavar="NAME", help="responses are of it: sql, yaml, or a file in Lark's syntax")


def constraint_in(options: argparse.Namespace) -> tuple[str, str] | None:
    """Return kind and value of the constraint among parsed options, if there is one."""
    given = {kind: getattr(options, kind) for kind in ("schema", "regex", "choices", "grammar")}
    return next(((kind, value) for kind, value in given.items() if value is not None), None)
