"""`posttrain plan recipe=…`: every stage, as its launcher will run it, on rows that are known or given."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline.cli import main
from posttrain.pipeline.commands.keeping.room import require_room
from posttrain.pipeline.commands.planning.calibration import seen_below
from posttrain.pipeline.commands.planning.rows import Given, longest_row, rows_of
from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.plan.calibration import card_of
from posttrain.stage.artifact import MANIFEST, VERSION, Manifest
from posttrain.stage.wording import size

LLAMA = "llama3_1_8b_zero3/sft_dpo"


def _stages(*words: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in build_graph(compose_config(list(words)))}


def _plan(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _figures(stage: Any) -> dict[str, float]:
    return {item["name"]: item["value"] for item in stage["figures"]}


def test_every_stage_that_moves_a_model_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(capsys, "recipe=demo")
    moving = {name for name, stage in _stages("recipe=demo").items() if stage.type.device}
    assert set(plan["stages"]) == moving
    for stage in plan["stages"].values():
        figures = _figures(stage)
        assert figures["FLOPs"] > 0 and 0 < figures["time, at least"] < figures["time"] < figures["time, at most"]
        assert (stage["memory"] is not None) == (stage["steps"] is not None)


def test_steps_are_those_that_the_stages_take(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(capsys, "recipe=demo")
    reward = 475 * 16 * 4 * 48  # groups of four responses
    assert _figures(plan["stages"]["reward"])["tokens"] == reward
    steps = {name: stage["steps"] for name, stage in plan["stages"].items() if stage["steps"] is not None}
    comparisons = 4000 * 0.95
    ppo = 2 * 4 * -(-comparisons // 256)  # two passes of four mini-batches over each rollout
    assert steps == {"base": 300, "sft": 2200, "reward": 475, "dpo": 119, "ppo": ppo}


def test_a_prompt_that_responses_share_is_planned_once(capsys: pytest.CaptureFixture[str]) -> None:
    apart = ("train.reward.share_prompts=never", "train.dpo.share_prompts=never")
    plans = [_plan(capsys, "recipe=demo", *words)["stages"] for words in ((), apart)]
    kept = {name: [plan[name]["memory"]["activations"] for plan in plans] for name in ("sft", "reward", "dpo", "ppo")}
    assert kept["reward"][0] / kept["reward"][1] == pytest.approx((4 - 3 * 0.59) / 4, rel=0.01)  # groups of four
    assert kept["dpo"][0] / kept["dpo"][1] == pytest.approx((2 - 0.59) / 2, rel=0.01)
    assert kept["sft"][0] == kept["sft"][1] and kept["ppo"][0] == kept["ppo"][1]


def test_two_nodes_of_eight_are_sixteen_processes(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ("launcher=slurm", "launcher.slurm.train.nodes=2")
    one, two = (_plan(capsys, f"recipe={LLAMA}", *words, "--card", "h100") for words in (("launcher=slurm",), nodes))
    assert one["stages"]["sft"]["processes"] == 8 and two["stages"]["sft"]["processes"] == 16
    assert two["stages"]["evaluate_sft"]["processes"] == 1
    states = [plan["stages"]["sft"]["memory"]["optimizer"] for plan in (one, two)]
    assert states[0] == 2 * states[1] == 12 * 8_030_261_248 // 8


def test_a_card_with_a_number_is_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(capsys, f"recipe={LLAMA}", "--card", "a100x8")
    assert plan["stages"]["sft"]["processes"] == 8
    assert plan["stages"]["sft"]["limit"] == pytest.approx(0.92 * 80 * (1 << 30))
    assert not any("assumed" in note for note in plan["notes"])


def test_rows_that_nothing_tells_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"recipe={LLAMA}", "--card", "h100x8")
    plan = _plan(capsys, *words)
    assert "sft" in plan["notes"][0] and "give --rows" in plan["notes"][0]
    assert plan["stages"]["sft"]["steps"] is None and plan["stages"]["sft"]["memory"]["total"] > 0
    given = ("--rows", "demonstrations=128000", "--tokens", "demonstrations=500", "--rows", "items=1000")
    told = _plan(capsys, *words, *given)["stages"]
    assert told["sft"]["steps"] == 2 * 128000 // 128
    assert _figures(told["sft"])["tokens"] == 2 * 128000 * 500
    assert _figures(told["evaluate_sft"])["FLOPs"] > 0


def test_a_row_is_as_long_as_the_model_lets_it_be() -> None:
    made = _stages("recipe=smoke", "data.tokenize.max_length=null")
    assert longest_row(made["comparison_tokens"], made) == 512  # the positions of the architecture, not 4,096
    shorter = _stages("recipe=smoke")
    assert longest_row(shorter["comparison_tokens"], shorter) == 160


def test_rows_of_local_files_are_counted(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "p" * 40, "completion": "c" * 40})
    (tmp_path / "a.jsonl").write_text(f"{line}\n" * 100, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(f"{line}\n".encode() * 60))
    recipe = (
        "recipe=own/sft",
        f"paths.model={tmp_path}",
        f"paths.demonstrations=[{tmp_path}/a.jsonl,{tmp_path}/b.jsonl.gz]",
    )
    made = _stages(*recipe)
    rows = rows_of(made["demonstrations"], made, Given())
    assert rows is not None and rows.train + rows.held_out == pytest.approx(160)
    assert rows.mean_tokens == pytest.approx((len(line) + 1) / 4)
    items = _stages(*recipe, f"paths.items={tmp_path}/a.jsonl")
    held_out = rows_of(items["items"], items, Given())
    assert held_out is not None and (held_out.train, held_out.held_out) == (0, 100)
    (tmp_path / "c.csv").write_text("prompt,completion\n", encoding="utf-8")
    other = _stages(*recipe[:2], f"paths.demonstrations={tmp_path}/c.csv")
    assert rows_of(other["demonstrations"], other, Given()) is None


def test_the_prompts_part_of_a_row_is_that_of_rows_that_are_here(tmp_path: Path) -> None:
    file = tmp_path / "comparisons.jsonl"
    paths = (f"paths.{name}={file}" for name in ("model", "demonstrations", "comparisons"))
    made = _stages("recipe=own/sft_reward_dpo", *paths)

    def share(*rows: dict[str, Any]) -> float | None:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        found = rows_of(made["comparisons"], made, Given())
        return None if found is None else found.prompt_share

    columns = {"prompt": "p" * 90, "chosen": "a" * 10, "rejected": "b" * 50}
    assert share(columns) == pytest.approx(90 / 120)
    assert share({"prompt": "p" * 30, "responses": ["a", "bb", "ccc"]}) == pytest.approx(30 / 32)
    assert share({"chosen": "p" * 60 + "a" * 20, "rejected": "p" * 60 + "b" * 20}) == pytest.approx(60 / 80)
    assert share({"instruction": "x", "output": "y"}) is None
    assert share(columns, {"prompt": 3}) == pytest.approx(90 / 120)


def test_an_optimizer_that_keeps_less_is_planned_so(capsys: pytest.CaptureFixture[str]) -> None:
    usual, small = (
        _plan(capsys, "recipe=demo", *words)["stages"]["ppo"] for words in ((), ("train.ppo.optimizer.kind=adafactor",))
    )
    assert small["memory"]["optimizer"] < 0.05 * usual["memory"]["optimizer"]
    assert _figures(small)["disk"] < 0.5 * _figures(usual)["disk"]


def test_the_disk_is_what_a_run_says_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("recipe=smoke", f"root={tmp_path}")
    totals = {item["name"]: item["value"] for item in _plan(capsys, *words)["totals"]}
    require_room([prepare(compose_config(list(words)))])
    said = capsys.readouterr().out.split("about ")[1].split(" of weights")[0]
    assert said == size(round(totals["disk at once"]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--rows", "demonstratons=5"],
            "--rows demonstratons: no dataset of this pipeline; did you mean 'demonstrations'?",
        ),
        (["--rows", "demonstrations"], "--rows demonstrations: not NAME=NUMBER"),
        (["--tokens", "demonstrations=-1"], "--tokens demonstrations=-1: must be more than 0"),
        (["--card", "h101x8"], "--card: 'h101x8': no such card; did you mean 'h100'?"),
        (["--mfu", "3"], "--mfu 3.0: a share between 0 and 1"),
        (["--price", "-3"], "--price -3: must be 0 or more"),
        (["--price", "cheap"], "--price cheap: not a number"),
    ],
)
def test_bad_input_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=demo", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_tables_for_people_and_formulas_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=demo", "--price", "1"]) == 0
    table = capsys.readouterr().out
    assert "…" not in table and all(len(line) <= 140 for line in table.splitlines())
    assert main(["plan", "recipe=demo", "--explain", "--mfu", "0.3"]) == 0
    explained = capsys.readouterr().out
    assert "weights + optimizer + frozen + max(activations + head, gradients, cache) = " in explained
    assert "MFU as given" in explained and "stages that wait for each other: base → sft" in explained


def _finished(root: Path, stage: str, rate: float, **hardware: Any) -> None:
    """Leave what a finished stage leaves: a manifest, the model's configuration and the log."""
    directory = root / "artifacts" / f"{stage}-0000000000000001"
    (directory / "logs").mkdir(parents=True)
    config = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines = [{"step": step, "seconds": 1.0, "tokens_per_second": value} for step, value in ((1, 5.0), (2, rate))]
    (directory / "logs" / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8"
    )
    knobs = {"adapter": {"kind": "full"}, "dtype": "float32", "global_batch_size": 4}
    manifest = Manifest(
        kind="model",
        stage=stage,
        run="train.sft",
        key="k",
        digest="d",
        files={},
        parents={},
        config=knobs,
        code_digest="c",
        seed=0,
        metrics={"steps": 10},
        headline="",
        tokens=1000,
        wall_seconds=1.0,
        created="2026-01-01T00:00:00Z",
        packages={},
        hardware={"processes": 1, "torch_threads": 2, "accelerators": [], **hardware},
        licenses=[],
        facts={},
    )
    text = json.dumps({**dataclasses.asdict(manifest), "version": VERSION})
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def test_finished_stages_take_the_place_of_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _finished(tmp_path, "slow", 1e5)
    _finished(tmp_path, "fast", 3e5)
    _finished(tmp_path, "elsewhere", 1e9, accelerators=["NVIDIA H100 80GB HBM3"])
    seen = {stage.name: stage for stage in seen_below(tmp_path)}
    parameters = 2 * 64 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
    flops = 6 * (parameters - 64 * 16) + 6 * 2 * 16 * 25  # 1,000 tokens in 40 rows
    assert seen["slow"].mfu == pytest.approx(1e5 * flops / 200e9)
    assert seen["elsewhere"].machine == "h100"
    assert seen["elsewhere"].mfu == pytest.approx(1e9 * flops / (989.4e12 / 15))
    plan = _plan(capsys, "recipe=demo", "--calibrate", str(tmp_path))
    source = next(item["source"] for item in plan["stages"]["sft"]["figures"] if item["name"] == "time")
    assert "MFU measured in 2 stages" in source
    assert main(["plan", "--calibrate", str(tmp_path)]) == 0
    assert "elsewhere" in capsys.readouterr().out
    assert main(["plan", "recipe=demo", "--calibrate", str(tmp_path / "nothing")]) == 2
    assert "no finished training stage there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_driver_names_a_card(device: str, card: str | None) -> None:
    assert card_of(device) == card
