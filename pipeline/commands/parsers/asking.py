"""The options of `posttrain generate`, in groups, as what it is asked."""

from __future__ import annotations

import argparse
import dataclasses

from posttrain.sample.config.asking import BY, Asking

EXAMPLES = """examples:
  posttrain generate dpo                                       talk to the model of stage dpo
  posttrain generate dpo --prompt "What is 3 + 4?" --preset factual
  posttrain generate dpo temperature=0.9 num_samples=4 --file prompts.jsonl --out responses.jsonl
  posttrain generate dpo --prompt "Who wrote Emma?" --schema author.json    a document of a JSON Schema
  posttrain generate dpo --file prompts.jsonl --out best.jsonl --best-of 8 --by reward --reward reward_model
  posttrain generate dpo --prompt "Who wrote Emma?" --server http://localhost:8000   through posttrain serve
  posttrain generate dpo --prompt "Who wrote Emma?" --cite novels.txt       its quotes, or nothing

--file has one JSON object per line, whose "prompt" is a text or a list of messages; --out gets the same rows with
"responses". Killed, the same command goes on. Without --prompt and --file you talk to the model."""

CONSTRAINTS = ("schema", "regex", "choices", "grammar")


def add_asking(parser: argparse.ArgumentParser) -> None:
    """Add the options, a group for each thing that they are about."""
    _add_prompts(parser.add_argument_group("what is answered"))
    _add_constraints(parser.add_argument_group("what responses must be (one of them)").add_mutually_exclusive_group())
    _add_choice(parser.add_argument_group("one response of several"))
    _add_passages(parser.add_argument_group("answers out of passages"))
    running = parser.add_argument_group("how it runs")
    running.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    running.add_argument("--batch", type=int, default=64, metavar="N", help="samples that run at once; 64 by default")
    running.add_argument("--server", metavar="URL", help="of a server that runs the model; keys: $POSTTRAIN_API_KEY")
    running.add_argument(
        "--served-name", metavar="NAME", help="what it calls the model; by default as posttrain serve has it"
    )
    running.add_argument("--dialect", choices=("vllm", "transformers"), help="what it speaks; it is asked by default")
    running.add_argument("--cache", metavar="FILE", help="responses that need not be made again")


def asking_in(options: argparse.Namespace) -> Asking:
    """Return what parsed options ask for."""
    kind = next((kind for kind in CONSTRAINTS if getattr(options, kind) is not None), None)
    constraint = None if kind is None else (kind, getattr(options, kind))
    names = {field.name for field in dataclasses.fields(Asking)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return Asking(**given, constraint=constraint)


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt", metavar="TEXT", help="one prompt")
    group.add_argument("--file", metavar="JSONL", help="prompts")
    group.add_argument("--out", metavar="JSONL", help="file to write, with --file")
    group.add_argument("--system", default="", metavar="TEXT", help="system message")


def _add_constraints(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--schema", metavar="FILE", help="compact JSON documents of this JSON Schema")
    group.add_argument("--regex", metavar="PATTERN", help="texts that match it from begin to end")
    group.add_argument("--choices", metavar="A,B,…", help="one of these texts")
    group.add_argument("--grammar", metavar="NAME", help="sentences of it: sql, yaml, or a file in Lark's syntax")


def _add_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--best-of", type=int, metavar="N", help="draw N samples, and give the best of them")
    group.add_argument(
        "--by", choices=BY, help="what is best: logprob (by default), a reward model, a scorer (verifier), or the vote"
    )
    group.add_argument("--reward", metavar="ARTIFACT", help="the reward model of --by reward")
    group.add_argument(
        "--first-valid",
        type=int,
        metavar="N",
        help="draw until --scorer, --schema (which the prompt then shows) and --cite accept one, N times at most, "
        "num_samples= at once",
    )
    group.add_argument(
        "--scorer",
        metavar="NAME",
        help="one of posttrain.data.checks.scorers, or module:function; for --by vote what reads answers",
    )
    group.add_argument("--reference", metavar="TEXT", help="what it compares with; rows of --file have their own")
    group.add_argument("--threshold", type=float, metavar="X", help="least score, or share of claims; 1 by default")
    group.add_argument(
        "--ladder",
        action="store_true",
        help="with --schema: ask, show the schema, repair, constrain; the figures of each rung (--out is optional)",
    )


def _add_passages(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cite",
        nargs="?",
        const="",
        metavar="PASSAGES",
        help="answer from a text with blank lines between passages, or JSONL with a text each; what is not quoted from "
        "them is withheld. Without a file, each row has its own passages",
    )
