"""A stop signal at every moment of every stage: code 75, nothing that looks finished, an exact continuation."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import ENVIRONMENT, build_comparisons, build_demonstrations, build_model
from forked_ranks import logs_of, start_ranks, work_order
from forked_stages import run_child, signal_in

from posttrain.stage.artifact import read_manifest
from posttrain.stage.outcome import Outcome, read_outcome
from posttrain.stage.spec import Distributed

STEPS = 7
KNOBS = {"global_batch_size": 8, "micro_batch_size": 4, "save_steps": 4, "eval_steps": 3, "max_steps": STEPS}
AGAIN = "it starts again from the beginning"
GO_ON = "the same command goes on from the last checkpoint"
BEHIND = "the same command goes on behind the rows that are done"
SAVED = "a checkpoint is saved; run the same command to go on"
TIMES = ("time", "seconds", "tokens_per_second", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


class Bench:
    """One model, its data, and a way to run a stage that gets signals."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root)
        self.demonstrations = build_demonstrations(root, self.model)
        self.comparisons = build_comparisons(root, self.model)

    def run(self, module: str, name: str, inputs: dict[str, Path], knobs: dict[str, Any], **options: Any) -> int:
        arguments = [f"inputs.{key}={path}" for key, path in inputs.items()]
        arguments += [f"output={self.output(name)}", "tracking.wandb=disabled", "seed=3"]
        arguments += [f"{key}={value}" for key, value in knobs.items()]
        (self.root / "child.log").unlink(missing_ok=True)
        return run_child(f"posttrain.{module}", arguments, self.root, **options)[0]

    def sft(self, name: str, prepare: Callable[[], None] | None = None) -> int:
        inputs = {"model": self.model, "data": self.demonstrations}
        return self.run("train.sft", name, inputs, {**KNOBS, "log_steps": 1}, prepare=prepare)

    def output(self, name: str) -> Path:
        return self.root / "artifacts" / name

    def log(self) -> str:
        return (self.root / "child.log").read_text()

    def history(self, name: str) -> list[dict[str, float]]:
        """What a run logged, without what depends on the clock; its last evaluation may have been repeated."""
        lines = (self.output(name) / "logs" / "metrics.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
        return [row for number, row in enumerate(rows) if row not in rows[:number]]

    def assert_stopped(self, code: int, name: str, message: str) -> None:
        outcome = read_outcome(self.output(name).with_name(f"{name}.outcome.json"))
        assert (code, outcome) == (75, Outcome(75, f"stopped on request{message}", "StoppedError")), self.log()[-3000:]
        assert "Traceback" not in self.log()
        assert not self.output(name).exists()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("signals"))
    assert bench.sft("whole") == 0, bench.log()[-3000:]
    return bench


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
MOMENTS = {
    "loading the model": ("load_policy", 1, f"; {AGAIN}"),
    "before the first step": ("announce", 1, f" at step 1 of 7; {SAVED}"),
    "in a micro-batch": ("training_step", 4, f" at step 2 of 7; {SAVED}"),
    "just before an evaluation": ("on_step_end", 3, f" at step 3 of 7; {SAVED}"),
    "in an evaluation": ("prediction_step", 2, f" at step 3 of 7; {SAVED}"),
    "while a checkpoint is saved": ("commit_checkpoint", 1, f" at step 5 of 7; {SAVED}"),
    "in the last evaluation": ("prediction_step", 7, f" in an evaluation at step 7 of 7; {SAVED}"),
    "while the model is saved": ("save_whole_model", 1, f"; {GO_ON}"),
    "while the artifact is committed": ("commit", 1, f"; {GO_ON}"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_training_stops_at_any_moment_and_goes_on_exactly(bench: Bench, moment: str) -> None:
    function, call, message = MOMENTS[moment]
    number = STOP_SIGNALS[list(MOMENTS).index(moment) % len(STOP_SIGNALS)]
    name = moment.replace(" ", "-")
    code = bench.sft(name, partial(signal_in, function, call, number))
    bench.assert_stopped(code, name, message)
    assert bench.sft(name) == 0, bench.log()[-3000:]
    assert read_manifest(bench.output(name)).digest == read_manifest(bench.output("whole")).digest
    assert bench.history(name) == bench.history("whole")


def test_two_signals_in_a_row_are_one(bench: Bench) -> None:
    code = bench.sft("twice", partial(signal_in, "training_step", 4, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM))
    bench.assert_stopped(code, "twice", f" at step 2 of 7; {SAVED}")


def test_an_evaluation_put_off_twice_is_still_made(bench: Bench) -> None:
    for call in (2, 1):
        code = bench.sft("put-off", partial(signal_in, "prediction_step", call, signal.SIGTERM))
        assert code == 75
    assert bench.sft("put-off") == 0, bench.log()[-3000:]
    assert bench.history("put-off") == bench.history("whole")


def ends_of(children: list[int]) -> list[int]:
    """Return the exit codes of ranks that all end by themselves."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def test_the_first_rank_to_be_asked_stops_them_all_at_the_same_step(bench: Bench) -> None:
    """Rank 1 gets a signal; rank 0 another one later, when both have agreed and save."""
    output = bench.output("two-ranks")
    inputs = {"model": bench.model, "data": bench.demonstrations}
    spec = work_order("sft", output, inputs, Distributed("ddp", 2), **KNOBS)

    def prepare() -> None:
        os.environ.update(ENVIRONMENT)
        if os.environ["RANK"] == "1":
            signal_in("training_step", 3, signal.SIGUSR1)
        else:
            signal_in("_save_checkpoint", 1, signal.SIGTERM)

    codes = ends_of(start_ranks("sft", spec, 2, prepare))
    assert codes == [75, 75], logs_of(spec)[-3000:]
    assert "Traceback" not in logs_of(spec)
    outcome = read_outcome(output.with_name("two-ranks.outcome.json"))
    assert outcome is not None
    assert outcome.message == f"stopped on request at step 3 of 7; {SAVED}"
    (saved,) = output.with_name("two-ranks.work").glob("checkpoints/checkpoint-*")
    assert saved.name == "checkpoint-3"


def test_ranks_that_save_nothing_end_together_without_a_traceback(bench: Bench) -> None:
    """One rank ends at once; the other loses its connection, and knows why."""
    output = bench.output("two-ranks-reference")
    inputs = {"model": bench.model, "data": bench.comparisons}
    spec = work_order("reference", output, inputs, Distributed("ddp", 2), batch_tokens=64)

    def prepare() -> None:
        os.environ.update(ENVIRONMENT)
        if os.environ["RANK"] == "1":
            signal_in("head_log_probs", 3, signal.SIGTERM)

    codes = ends_of(start_ranks("reference", spec, 2, prepare))
    assert codes == [75, 75], logs_of(spec)[-3000:]
    assert "Traceback" not in logs_of(spec)
    outcome = read_outcome(output.with_name("two-ranks-reference.outcome.json"))
    assert outcome == Outcome(75, f"stopped on request; {AGAIN}", "StoppedError")


def small_base(bench: Bench) -> tuple[dict[str, Path], dict[str, Any]]:
    return {}, {"path": bench.model}


def curation(bench: Bench) -> tuple[dict[str, Path], dict[str, Any]]:
    rows = bench.root / "rows.jsonl"
    lines = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {}, {"record_type": "demonstration", "sources": f"[{{name: rows, path: {rows}}}]"}


def scoring(bench: Bench) -> tuple[dict[str, Path], dict[str, Any]]:
    return {"model": bench.model, "data": bench.demonstrations}, {"batch_size": 2}


def reference(bench: Bench) -> tuple[dict[str, Path], dict[str, Any]]:
    return {"model": bench.model, "data": bench.comparisons}, {"batch_tokens": 64}


OTHERS = {
    "data.demo": (lambda bench: ({}, {}), "_write", 2, AGAIN),
    "data.curate": (curation, "drop_duplicates", 1, AGAIN),
    "train.base": (small_base, "record_token_ids", 1, AGAIN),
    "train.reference": (reference, "head_log_probs", 3, AGAIN),
    "evaluate.policy": (scoring, "_batch_losses", 2, BEHIND),
}


@pytest.mark.parametrize("module", OTHERS)
def test_a_stage_without_checkpoints_ends_at_once_and_starts_again(bench: Bench, module: str) -> None:
    make, function, call, message = OTHERS[module]
    inputs, knobs = make(bench)
    name = f"{module}-0001"
    for number in (signal.SIGTERM, signal.SIGINT):
        code = bench.run(module, name, inputs, knobs, prepare=partial(signal_in, function, call, number))
        bench.assert_stopped(code, name, f"; {message}")
    assert bench.run(module, name, inputs, knobs) == 0, bench.log()[-3000:]
