"""Which stages of a sweep are shared, and how the others become jobs and job arrays that wait for each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.commands.run_slurm import print_submission
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.runs.rundir import identity
from posttrain.pipeline.runs.variants import Point, Variant, variants_of
from posttrain.pipeline.slurm.submit import Planned, grouped
from posttrain.stage.errors import UsageError

SBATCH = re.compile(r"^# sbatch (.*?)\S+/slurm/(\w+)\.sbatch$", re.MULTILINE)
DPO_ON = {"dpo", "evaluate_dpo", "drift_dpo", "gate_dpo", "report"}


def points_of(root: Path, *overrides: str) -> dict[str, Point]:
    common = ["recipe=smoke", "launcher=slurm_cpu", f"root={root}", "run_name=r"]
    return {label: prepare(config) for label, config in compose_sweep([*common, *overrides]).items()}


def waits(*jobs: tuple[str, ...]) -> list[tuple[list[int], list[str]]]:
    """Group stages that wait for these jobs; returns each group's members by index, and its dependencies."""
    planned = [Planned(Variant(None, [], [])) for _ in jobs]  # type: ignore[arg-type]
    index = {id(item): number for number, item in enumerate(planned)}
    groups = grouped(planned, lambda item: jobs[index[id(item)]])
    return [([index[id(member)] for member in group.members], group.dependencies) for group in groups]


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([], []),
        ([()], [([0], [])]),
        ([("7", "8")], [([0], ["afterok:7:8"])]),
        # the same parents: one array
        ([(), ()], [([0, 1], [])]),
        ([("7", "8"), ("7", "8")], [([0, 1], ["afterok:7:8"])]),
        # each its own element of an array: one array, element by element
        ([("9_0",), ("9_1",)], [([0, 1], ["aftercorr:9"])]),
        ([("7", "9_0"), ("7", "9_1")], [([0, 1], ["afterok:7", "aftercorr:9"])]),
        ([("9_0", "12_0"), ("9_1", "12_1")], [([0, 1], ["aftercorr:9", "aftercorr:12"])]),
        # one alone waits for its element, and no other
        ([("9_1",)], [([0], ["afterok:9_1"])]),
        # elements that do not correspond: piece by piece
        ([("9_1",), ("9_0",)], [([0], ["afterok:9_1"]), ([1], ["afterok:9_0"])]),
        ([("9_1",), ("9_2",)], [([0], ["afterok:9_1"]), ([1], ["afterok:9_2"])]),
        ([("9_0",), ("9_0",), ("9_1",)], [([0, 1], ["afterok:9_0"]), ([2], ["afterok:9_1"])]),
        # one parent is made already
        ([(), ("9_1",)], [([0], []), ([1], ["afterok:9_1"])]),
        # two independent arrays
        ([("9_0",), ("9_1",), ("5",), ("5",)], [([0, 1], ["aftercorr:9"]), ([2, 3], ["afterok:5"])]),
    ],
)
def test_grouping(jobs: list[tuple[str, ...]], expected: list[tuple[list[int], list[str]]]) -> None:
    assert waits(*jobs) == expected


def test_a_sweep_shares_all_that_its_knob_does_not_touch(tmp_path: Path) -> None:
    points = list(points_of(tmp_path, "train.dpo.beta=0.1,0.2,0.3").values())
    variants = variants_of(points)
    assert {name for name, found in variants.items() if len(found) == 3} == DPO_ON
    assert {name for name, found in variants.items() if len(found) == 1} == set(variants) - DPO_ON
    (sft,) = variants["sft"]
    assert (sft.home, sft.points) == (points[0].run, points)
    assert [variant.home.name for variant in variants["dpo"]] == ["r-beta-0.1", "r-beta-0.2", "r-beta-0.3"]
    for number, variant in enumerate(variants["evaluate_dpo"]):
        assert variants["dpo"][number] in variant.parents


def test_points_that_differ_upstream_share_only_what_stands_before(tmp_path: Path) -> None:
    variants = variants_of(list(points_of(tmp_path, "train.reward.epochs=1,2", "train.dpo.beta=0.1,0.2").values()))
    counts = {name: len(found) for name, found in variants.items()}
    twice = [f"{what}{model}" for model in ("dpo", "ppo") for what in ("", "evaluate_", "drift_", "gate_")]
    expected = {"reward": 2, "evaluate_reward": 2, **dict.fromkeys(twice, 2), "report": 4}
    assert counts == {name: expected.get(name, 1) for name in counts}
    assert all(len(variant.points) == 2 for name in ("reward", "dpo") for variant in variants[name])


def test_how_fast_a_stage_runs_makes_no_variant(tmp_path: Path) -> None:
    points = list(points_of(tmp_path, "train.dpo.log_steps=1,2").values())
    assert {len(found) for found in variants_of(points).values()} == {1}


def test_seeds_share_nothing(tmp_path: Path) -> None:
    assert {len(found) for found in variants_of(list(points_of(tmp_path, "seed=1,2").values())).values()} == {2}


def test_seeds_of_one_stage_share_what_stands_before_it(tmp_path: Path) -> None:
    points = list(points_of(tmp_path, "stages.dpo.seed=0,1,2").values())
    found = {name: len(variants) for name, variants in variants_of(points).items()}
    assert found["dpo"] == 3 and found["sft"] == found["reward"] == 1
    made = [identity(point.config, point.stages) for point in points]
    (plain,) = points_of(tmp_path).values()
    assert made[0] == identity(plain.config, plain.stages)  # the pipeline's own seed, said twice
    assert made[1] != made[0] != made[2] != made[1]
    assert [stage.seed for stage in points[2].stages if stage.name in ("sft", "dpo")] == [0, 2]


def test_a_dry_run_of_a_sweep_prints_each_job_once_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    assert print_submission(points_of(root, "train.dpo.beta=0.1,0.2")) == 0
    printed = capsys.readouterr().out
    commands = SBATCH.findall(printed)
    by_stage = {stage: options for options, stage in commands}
    assert len(commands) == len(by_stage) == 30
    arrays = re.findall(
        r"^#SBATCH --job-name=r-beta-0\.1/(\w+)\n(?:#SBATCH .*\n)*?#SBATCH --array=0-1$", printed, re.MULTILINE
    )
    assert set(arrays) == DPO_ON
    assert by_stage["sources"] == "--parsable "
    jobs = ":".join(f"<r-beta-0.1/{stage}>" for stage in ("sft", "comparison_tokens", "reference"))
    assert by_stage["dpo"] == f"--parsable '--dependency=afterok:{jobs}' --kill-on-invalid-dep=yes "
    assert "aftercorr:<r-beta-0.1/dpo>'" in by_stage["evaluate_dpo"]
    assert "aftercorr:<r-beta-0.1/dpo>,aftercorr:<r-beta-0.1/evaluate_dpo>," in by_stage["report"]
    assert not root.exists()


def test_a_dry_run_does_not_even_remember_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [{override /pipeline: null}, _self_]\nname: own\nstages:\n"
        "  rows: {run: data.curate, with: {record_type: demonstration, sources: [{name: r, path: "
        f"{tmp_path}/rows.jsonl}}]}}}}\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    root = tmp_path / "store"
    overrides = ["recipe=own", "launcher=slurm_cpu", f"root={root}"]
    points = {label: prepare(config) for label, config in compose_sweep(overrides, tmp_path / "conf").items()}
    assert print_submission(points) == 0
    assert not root.exists()


def test_every_submitted_stage_of_the_graph_waits_for_its_parents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (point,) = points_of(tmp_path / "store").values()
    print_submission({"": point})
    commands = SBATCH.findall(capsys.readouterr().out)
    found = {stage: set(re.findall(r"<r/(\w+)>", options)) for options, stage in commands}
    assert found == {stage.name: set(stage.inputs.values()) for stage in point.stages}


def test_another_number_of_processes_than_the_job_has_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    points = points_of(tmp_path, "distributed=ddp", "distributed.num_processes=3", "launcher.slurm.train.nodes=2")
    with pytest.raises(UsageError, match=r"distributed\.num_processes: 3, but the job of base has 2 .*; leave it null"):
        print_submission(points)
