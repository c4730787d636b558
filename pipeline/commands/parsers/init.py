"""The command `posttrain init`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import Commands, add_examples

EXAMPLES = """examples:
  posttrain init                                                     asks
  posttrain init --data my_data --model HuggingFaceTB/SmolLM2-135M   proposes the rest, writes mine.yaml
  posttrain init --data my.jsonl --model FOLDER --method sft --out recipes/first.yaml"""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    init = commands.add_parser("init", help="look at your data, propose a recipe, and write it")
    add_examples(init, EXAMPLES)
    init.add_argument("--data", type=Path, metavar="DIR", help="folder, or one file")
    init.add_argument("--model", metavar="MODEL", help="folder, or name on the Hugging Face Hub")
    init.add_argument("--method", metavar="NAME", help="sft, sft_dpo, sft_kto, sft_reward_dpo, sft_reward_ppo")
    init.add_argument(
        "--out", type=Path, default=Path("mine.yaml"), metavar="FILE", help="recipe; mine.yaml by default"
    )
    init.set_defaults(action=_init)


def _init(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.init import init

    ask = sys.stdin.isatty() and (options.data is None or options.model is None)
    return init(options.data, options.model, options.method, options.out, ask)
