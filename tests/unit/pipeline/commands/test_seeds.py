"""Figures of runs that differ in their seeds alone: mean and interval over them, and nothing over other runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import commit_artifact

from posttrain.pipeline.cli import main
from posttrain.pipeline.commands.points import print_sweep
from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.commands.seeds import FIGURES, print_over_seeds, spread_of
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.artifact import MANIFEST, Manifest, read_manifest
from posttrain.stage.errors import EXIT_DONE
from posttrain.stage.spec import StageSpec

T_95_TWO_DEGREES = 4.302652729911275
LOSSES = {0: 1.0, 1: 2.0, 2: 4.0}
RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
stages:
  rows: { run: data.curate, with: { record_type: evaluation, sources: [{ name: a, path: ROWS }] } }
  base: { run: train.base, with: { architecture: {} } }
  evaluate_sft: { run: evaluate.policy, inputs: { model: base, items: rows } }
  evaluate_dpo: { run: evaluate.policy, inputs: { model: base, items: rows } }
"""


def write_figures(directory: Path, **changes: Any) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def make(runs: dict[str, Any]) -> dict[str, RunDirectory]:
    """Make every stage of some points, evaluations with figures that follow from the seed."""
    for point in runs.values():
        resolver = Resolver(point.config, point.run, local_launcher(point.config, point.stages).distributed)
        point.run.open(point.config, point.stages)
        made: dict[str, Made] = {}
        for stage in point.stages:
            spec = resolver.spec(stage, made)
            if committed(spec) is None:
                directory = Path(spec.output)
                directory.mkdir(parents=True)
                (directory / "file").write_text(f"{stage.name} {stage.seed}")
                commit_artifact(directory, stage.type.kind, stage.name)
                figures = {"loss": LOSSES[stage.seed], "items": 30} if stage.type.run == "evaluate.policy" else {}
                write_figures(directory, key=spec.key, run=stage.type.run, metrics=figures)
            point.run.write_spec(spec)
            found = committed(spec)
            assert found is not None
            made[stage.name] = found
    return {label: point.run for label, point in runs.items()}


def swept(root: Path, *overrides: str) -> dict[str, RunDirectory]:
    (root / "recipe").mkdir()
    (root / "rows.jsonl").write_text("")
    (root / "recipe" / "two.yaml").write_text(RECIPE.replace("ROWS", str(root / "rows.jsonl")))
    sweep = compose_sweep(["recipe=two", f"root={root}", *overrides], root)
    return make({label: prepare(config) for label, config in sweep.items()})


def test_mean_and_interval_over_three_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = swept(tmp_path, "seed=0,1,2")
    print_over_seeds(runs)
    mean, deviation = 7 / 3, ((16 + 1 + 25) / 9 / 2) ** 0.5  # of 1, 2, 4
    half = T_95_TWO_DEGREES * deviation / 3**0.5
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("evaluate_sft")]
    low, high = f"[{mean - half:.4g},", f"{mean + half:.4g}]"
    assert rows == [["evaluate_sft", "loss", f"{mean:.4g}", low, high, "1,", "2,", "4"]]
    assert main(["status", *(run.name for run in runs.values()), "--root", str(tmp_path)]) == EXIT_DONE
    assert f"{low} {high}" in capsys.readouterr().out


def test_what_seeds_share_and_runs_of_other_knobs_have_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_over_seeds(swept(tmp_path, "stages.evaluate_dpo.seed=0,1", "evaluate.policy.max_new_tokens=24,25"))
    said = capsys.readouterr().out
    titles = [line for line in said.splitlines() if line.startswith("over ")]
    assert [line.split()[:4] for line in titles] == [
        ["over", "2", "seeds,", f"evaluate.policy.max_new_tokens={number}"] for number in (24, 25)
    ]
    assert said.count("evaluate_dpo") == 2 and "evaluate_sft" not in said


def test_a_figure_that_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    (directory := tmp_path / "artifacts" / "scores-1").mkdir(parents=True)
    (directory / "file").write_text("x")
    one: Manifest = read_manifest(commit_artifact(directory, "scores", "scores"))
    whole = [
        dataclasses.replace(one, run="evaluate.policy", key=str(number), metrics={"loss": number, "exact_match": None})
        for number in range(2)
    ]
    assert [row[:3] for row in spread_of([{"a": each} for each in whole])] == [("a", "loss", "0.5")]
    assert spread_of([{"a": whole[0]}, {}]) == []
    assert spread_of([{"a": whole[0]}, {"a": whole[0]}]) == []


def test_every_stage_that_learns_or_measures_has_figures() -> None:
    silent = {"train.base", "train.reference", "evaluate.data", "evaluate.report", "evaluate.gate"}
    assert {run for run in STAGE_TYPES if not run.startswith("data.")} - silent == {*FIGURES}


def test_points_stand_beside_each_other_with_the_best_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = swept(tmp_path, "evaluate.policy.max_new_tokens=24,25,26", "seed=0,1")
    losses = {24: 3.0, 25: 0.5, 26: 2.0}
    for label, run in runs.items():
        spec = StageSpec.read(run.spec("evaluate_dpo"))
        chosen = spec.config["max_new_tokens"]
        figures = {
            "loss": losses[chosen] + spec.seed,
            "exact_match": 0.25 if chosen == 24 else 0.125,
            "preference": 0.5,
        }
        write_figures(Path(spec.output), metrics=figures)
        assert f"max_new_tokens={chosen}" in label
    print_sweep(runs)
    _, _, said = capsys.readouterr().out.partition("point by point; * is the best")
    _, heads, names, *rows = [line.split() for line in said.splitlines()]
    assert heads[-2:] == ["evaluate_dpo", "evaluate_dpo"] and names[-2:] == ["exact_match", "loss"]
    assert [row[-2:] for row in rows[:3]] == [["*0.25", "3.5"], ["0.125", "*1"], ["0.125", "2.5"]]  # means of two seeds
    assert [row[0] for row in rows[:3]] == [f"evaluate.policy.max_new_tokens={chosen}" for chosen in losses]
    assert " ".join(rows[3]).startswith("a best point may be so by chance")


def test_a_sweep_whose_points_do_not_differ_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(swept(tmp_path, "evaluate.policy.max_new_tokens=24,25"))
    assert capsys.readouterr().out == ""
