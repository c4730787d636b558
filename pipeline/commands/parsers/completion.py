"""The command `posttrain completion`."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import Commands, add_examples

EXAMPLES = """examples:
  source <(posttrain completion bash)                                              in ~/.bashrc
  source <(posttrain completion zsh)                                               in ~/.zshrc, after compinit
  posttrain completion fish > ~/.config/fish/completions/posttrain.fish"""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    completion = commands.add_parser("completion", help="let your shell complete commands, recipes, knobs and names")
    add_examples(completion, EXAMPLES)
    completion.add_argument(
        "what", choices=("bash", "zsh", "fish", "words"), help="your shell; the scripts ask for words"
    )
    completion.add_argument("line", nargs="?", default="", metavar="LINE", help="words: the line up to the cursor")
    completion.set_defaults(action=_completion)


def _completion(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.completion import print_completion

    return print_completion(options.what, options.line, options.parser, Path("outputs"))
