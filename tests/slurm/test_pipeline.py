"""Pipelines through sbatch: the whole graph, sweeps, failures, cancelling, and submitting again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cluster import poll
from pipelines import BEFORE_SFT, PATIENCE, Pipeline, copy_artifacts

from posttrain.pipeline.config.sweep import point_name
from posttrain.pipeline.slurm.attempts import Cause
from posttrain.stage.artifact import verify
from posttrain.stage.spec import StageSpec

WAIT = "launcher.slurm.wait=true"


def rows(table: str) -> dict[str, list[str]]:
    """Return the cells of a printed table of stages, by stage."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


def test_the_whole_graph_over_both_nodes(smoke: Pipeline) -> None:
    jobs = {record["JobId"]: record for record in smoke.cluster.finished_jobs()}
    assert {jobs[job]["JobState"] for job in smoke.jobs().values()} == {"COMPLETED"}
    stages = list(smoke.jobs())
    assert {path.name for path in (smoke.root / "artifacts").iterdir()} == {smoke.artifact(s).name for s in stages}
    assert [problem for path in (smoke.root / "artifacts").iterdir() for problem in verify(path)] == []
    assert (smoke.run_directory.path / "slurm" / "report.sbatch").is_file()
    assert (smoke.artifact("report") / "report.html").stat().st_size > 0
    kinds = dict.fromkeys(("base", "reward", "reference", "dpo", "ppo"), "ddp") | {"sft": "deepspeed"}
    for stage, kind in kinds.items():
        spec = StageSpec.read(smoke.run_directory.spec(stage))
        assert (spec.distributed.kind, smoke.manifest(stage).hardware["processes"]) == (kind, 2)
        assert jobs[smoke.jobs()[stage]]["NodeList"] == "node[1-2]"
    table = rows(smoke.status())
    assert {stage: table[stage][0] for stage in stages} == dict.fromkeys(stages, "done")


def test_a_finished_pipeline_is_not_submitted_again(smoke: Pipeline) -> None:
    jobs = smoke.jobs()
    printed = rows(smoke.run())
    assert {stage: printed[stage][0] for stage in jobs} == dict.fromkeys(jobs, "cached")
    assert smoke.jobs() == jobs
    assert "sbatch" not in smoke.run("--dry-run")


def test_a_dry_run_prints_what_would_be_submitted(smoke: Pipeline, tmp_path: Path) -> None:
    copy_artifacts(smoke.root, tmp_path, *BEFORE_SFT)
    pipeline = Pipeline(smoke.cluster, tmp_path, "planned", ("recipe=long_sft", "distributed=ddp"))
    printed = pipeline.run("--dry-run")
    assert set(re.findall(r"^# (\w+): cached ", printed, re.MULTILINE)) == set(BEFORE_SFT)
    commands = [line for line in printed.splitlines() if line.startswith("# sbatch")]
    directory = pipeline.run_directory.path / "slurm"
    assert commands == [
        f"# sbatch --parsable {directory}/sft.sbatch",
        f"# sbatch --parsable '--dependency=afterok:<planned/sft>' --kill-on-invalid-dep=yes "
        f"{directory}/evaluate_sft.sbatch",
    ]
    assert printed.count("#!/bin/bash") == 2
    assert not directory.exists()


@pytest.mark.slow  # a minute; an element of a job array is struck in test_faults too
def test_a_sweep_shares_what_it_can_and_a_failing_point_hurts_no_other(smoke: Pipeline) -> None:
    """beta=1e30 overflows, so that the second element of the job array fails."""
    sweep = Pipeline(smoke.cluster, smoke.root, "sweep", (*smoke.overrides, "train.dpo.beta=0.2,1e30"))
    before = {path.name for path in (smoke.root / "artifacts").iterdir()}
    sweep.run(WAIT, expect=1)
    names = (f"sweep-{point_name([f'train.dpo.beta={value}'])}" for value in ("0.2", "1e+30"))
    good, bad = (Pipeline(smoke.cluster, smoke.root, name, ()) for name in names)
    array = good.jobs()["dpo"].partition("_")[0]
    assert (good.jobs()["dpo"], bad.jobs()["dpo"]) == (f"{array}_0", f"{array}_1")
    after = ("evaluate_dpo", "drift_dpo", "gate_dpo", "report")
    assert set(good.jobs()) == set(bad.jobs()) == {"dpo", *after}
    assert good.states() == {"dpo": "COMPLETED", **dict.fromkeys(after, "COMPLETED")}
    assert bad.states() == {"dpo": "FAILED", **dict.fromkeys(after, "CANCELLED")}
    made = {path.name.rpartition("-")[0] for path in (smoke.root / "artifacts").iterdir() if path.name not in before}
    assert {name for name in made if not name.startswith(".")} == {"dpo", *after}
    assert (bad.run_directory.path / "stages" / "sft").resolve() == good.run_directory.path / "stages" / "sft"
    assert rows(bad.status())["sft"][0] in ("done", "cached")
    assert bad.status().startswith("error: dpo: ")


def test_a_failing_stage_is_told_first_and_its_dependants_never_start(smoke: Pipeline, tmp_path: Path) -> None:
    copy_artifacts(smoke.root, tmp_path, *BEFORE_SFT)
    short = ("recipe=long_sft", "distributed=ddp", "stages.sft.with.max_steps=4")
    broken = Pipeline(smoke.cluster, tmp_path, "broken", (*short, "stages.sft.with.optimizer.learning_rate=1e20"))
    printed = broken.run(WAIT, expect=1)
    assert broken.states() == {"sft": "FAILED", "evaluate_sft": "CANCELLED"}
    first, *rest = broken.status().splitlines()
    assert re.match(r"error: sft: .*(loss|gradient).*(nan|inf|finite)", first), first
    assert rows("\n".join(rest))["evaluate_sft"][0] == "cancelled"
    assert [attempt.cause for attempt in broken.attempts("sft")] == [Cause.FAILED]
    mended = Pipeline(smoke.cluster, tmp_path, "mended", short)
    printed = mended.run(WAIT)
    assert set(mended.jobs()) == {"sft", "evaluate_sft"}
    assert {rows(printed)[stage][0] for stage in BEFORE_SFT} == {"cached"}


def test_a_users_error_is_never_tried_again(smoke: Pipeline, tmp_path: Path) -> None:
    copy_artifacts(
        smoke.root, tmp_path, "sources", "demonstrations", "items", "texts", "untrained", "text_tokens", "base"
    )
    overrides = ("recipe=long_sft", "launcher.slurm.retries.failed=5", "stages.demonstration_tokens.with.max_length=8")
    pipeline = Pipeline(
        smoke.cluster, tmp_path, "wrong", (*overrides, "stages.demonstration_tokens.with.overlong=error")
    )
    pipeline.run(WAIT, expect=1)
    assert pipeline.states() == {"demonstration_tokens": "FAILED", "sft": "CANCELLED", "evaluate_sft": "CANCELLED"}
    assert smoke.cluster.job(pipeline.jobs()["demonstration_tokens"])["ExitCode"] == "2:0"
    assert [attempt.cause for attempt in pipeline.attempts("demonstration_tokens")] == [Cause.USAGE]
    assert pipeline.status().startswith("error: demonstration_tokens: ")


def test_cancelled_and_submitted_again_it_goes_on(smoke: Pipeline, tmp_path: Path) -> None:
    """Below a folder whose name a shell or Slurm would take apart; on two nodes, though someone then asks for one."""
    root = tmp_path / "my outputs; 100%j $(false)"
    copy_artifacts(smoke.root, root, *BEFORE_SFT)
    pipeline = Pipeline(smoke.cluster, root, "cancelled", ("recipe=long_sft", "distributed=ddp"))
    pipeline.run("stages.sft.slurm.options={hold: true}")
    jobs = pipeline.jobs()
    assert smoke.cluster.job(jobs["evaluate_sft"])["Dependency"].startswith(f"afterok:{jobs['sft']}")
    printed = rows(pipeline.run("launcher.slurm.train.nodes=1"))
    smoke.cluster.run("scontrol", "release", jobs["sft"])
    assert {stage: printed[stage][0] for stage in jobs} == {
        stage: f"{job} (in the queue)" for stage, job in jobs.items()
    }
    assert pipeline.jobs() == jobs
    pipeline.wait_for_step("sft", 30)
    pipeline.cancel()
    pipeline.wait()
    assert set(pipeline.states().values()) == {"CANCELLED"}
    (attempt,) = pipeline.attempts("sft")
    assert attempt.cause in (Cause.CANCELLED, Cause.INTERRUPTED)  # the driver may be killed before it can say
    table = rows(pipeline.status())
    assert (table["sft"][0], table["evaluate_sft"][0], table["base"][0]) == ("stopped", "cancelled", "cached")
    assert len(list((root / "artifacts").glob("[!.]*"))) == len(BEFORE_SFT)
    pipeline.run(WAIT)
    resumed = pipeline.attempts("sft")[-1]
    assert (resumed.cause, resumed.step >= 20, resumed.job != jobs["sft"]) == (Cause.DONE, True, True)


def test_a_refused_job_takes_back_those_submitted_before_it(smoke: Pipeline, tmp_path: Path) -> None:
    copy_artifacts(smoke.root, tmp_path, *BEFORE_SFT)
    overrides = ("recipe=long_sft", "distributed=ddp", "stages.evaluate_sft.slurm.partition=nowhere")
    pipeline = Pipeline(smoke.cluster, tmp_path, "refused", overrides)
    printed = pipeline.run(expect=1)
    *_, line = printed.splitlines()
    assert line.startswith("error: sbatch: ")
    assert "invalid partition specified: nowhere" in line
    assert pipeline.jobs() == {}
    mine = ["squeue", "--noheader", "--format=%j"]
    poll(lambda: "refused/" not in smoke.cluster.run(*mine).stdout, PATIENCE, "the queue to be empty")
    assert json.loads(next((pipeline.run_directory.path / "slurm").glob("sft-*.json")).read_text())
