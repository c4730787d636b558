"""The options of `posttrain plan`, and which of its questions is asked."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.pipeline.commands.parsers.shared import (
    Commands,
    add_examples,
    add_overrides,
    add_root_override,
    overrides_of,
)

EXAMPLES = """examples:
  posttrain plan recipe=demo                                   every stage of a pipeline
  posttrain plan recipe=llama3_1_8b_zero3/sft_dpo hardware=h100x8 --card h100x8 --rows demonstrations=939000
  posttrain plan model model=Qwen/Qwen3-8B card=h100 context=8192 batch=16
  posttrain plan model model=Mixtral-8x7B-v0.1,Llama-2-70b-hf  side by side
  posttrain plan train model=Llama-3.1-8B card=h100x8          its memory under each engine
  posttrain plan pretrain budget=5.76e23 --explain             what a budget buys, and every formula
  posttrain plan pretrain model=Llama-3.1-8B tokens=15e12 card=h100 cards=1024"""


QUESTIONS = ("model", "train", "pretrain")
"""What can be asked beside a pipeline's plan."""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    plan = commands.add_parser("plan", help="what a pipeline, a model or a pretraining run costs before it runs")
    add_examples(plan, EXAMPLES)
    add_overrides(plan)
    add_root_override(plan)
    plan.add_argument("--card", metavar="NAME", help="of a pipeline: h100, h100x8 for a machine of eight, or cpu")
    plan.add_argument("--price", metavar="USD", help="of a card and hour; an assumption by default")
    plan.add_argument("--mfu", metavar="SHARE", help="of a card's peak FLOP/s; an assumption by default")
    plan.add_argument(
        "--rows", action="append", default=[], metavar="DATASET=N", help="rows to train on that nothing here tells"
    )
    plan.add_argument(
        "--tokens", action="append", default=[], metavar="DATASET=N", help="mean tokens of a row, where they are known"
    )
    plan.add_argument(
        "--calibrate", type=Path, metavar="DIR", help="take utilisation from the finished stages below a root"
    )
    plan.add_argument("--explain", action="store_true", help="each figure's formula, its numbers, and its source")
    plan.add_argument(
        "--plot", type=Path, metavar="FILE", help="memory by part and cost against size, as .svg or .html"
    )
    plan.add_argument("--knobs", action="store_true", help="list what `plan model`, `train` or `pretrain` can be told")
    plan.add_argument("--json", action="store_true", dest="as_json", help="for programs")
    plan.set_defaults(action=_plan)


def _plan(options: argparse.Namespace) -> int:
    question, *words = options.overrides or [""]
    if question in QUESTIONS:
        from posttrain.pipeline.commands.planning import questions

        if options.knobs:
            return questions.print_knobs(question)
        words += _knobs_of(options, question)
        answer = {
            "model": questions.print_model_plan,
            "train": questions.print_training_plan,
            "pretrain": questions.print_pretraining_plan,
        }
        return answer[question](words, explain=options.explain, as_json=options.as_json, plot=options.plot)
    from posttrain.pipeline.commands.planning.pipeline import PlanOptions, number_of, numbers_of, print_pipeline_plan
    from posttrain.pipeline.commands.planning.rows import Given
    from posttrain.pipeline.config.compose import compose_config
    from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean

    if options.knobs:
        raise UsageError(f"--knobs: those of {', '.join(QUESTIONS)}; `posttrain config train.dpo` lists a stage's")
    if "=" not in question and (meant := did_you_mean(question, QUESTIONS)):
        raise UsageError(f"plan {question}: no such question{meant}")
    price, mfu = number_of(options.price, "--price"), number_of(options.mfu, "--mfu")
    given = Given(numbers_of(options.rows, "--rows"), numbers_of(options.tokens, "--tokens"))
    seen = []
    if options.calibrate is not None:
        from posttrain.pipeline.commands.planning.calibration import seen_below
        from posttrain.plan.table import print_seen

        seen = seen_below(options.calibrate)
        if not options.overrides:
            print_seen(seen)
            return EXIT_DONE
    said = PlanOptions(options.card, price, mfu, given, seen, options.explain, options.as_json, options.plot)
    return print_pipeline_plan(compose_config(overrides_of(options), options.config_dir), said)


def _knobs_of(options: argparse.Namespace, question: str) -> list[str]:
    """Return options that a question has as knobs; raise UsageError for one that only a pipeline's plan has."""
    from posttrain.stage.errors import UsageError

    for name in ("rows", "tokens", "calibrate", "config_dir"):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: `plan {question}` is of one model and has no recipe; leave it out")
    given = {name: getattr(options, name) for name in ("card", "price", "mfu")}
    return [f"{name}={value}" for name, value in given.items() if value is not None]
