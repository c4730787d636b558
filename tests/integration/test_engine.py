"""The engine with real stages in real processes: skipping, failing, stopping, being killed, and sharing a root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.pipeline.cli import main
from posttrain.stage.artifact import read_manifest
from posttrain.stage.lease import holder

DEMO = "{num_texts: 3, num_demonstrations: 15, num_comparisons: 15, num_gold_comparisons: 15, num_evaluation_items: 15}"
RECIPE = f"""# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: engine
stages:
  demo: {{run: data.demo, with: {DEMO}}}
  demonstrations:
    run: data.curate
    inputs: {{sources: demo}}
    with: {{record_type: demonstration, sources: [{{name: demo, file: demonstrations.jsonl}}]}}
  comparisons:
    run: data.curate
    inputs: {{sources: demo}}
    with: {{record_type: comparison, sources: [{{name: demo, file: comparisons.jsonl}}]}}
"""
OWN = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: own
stages:
  rows: {run: data.curate, with: {record_type: demonstration, sources: [{name: mine, path: rows.jsonl}]}}
"""
SLOW_ROWS = 40_000
"""Rows that take seconds to curate: long enough to be interrupted."""


class Workspace:
    """A folder with recipes of its own, in which the command line runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "conf" / "recipe").mkdir(parents=True)
        (path / "conf" / "recipe" / "engine.yaml").write_text(RECIPE)
        (path / "conf" / "recipe" / "own.yaml").write_text(OWN)

    def command(self, *arguments: str) -> list[str]:
        base = [sys.executable, "-m", "posttrain.pipeline.cli"]
        return [*base, *arguments, *(["--config-dir", "conf"] if arguments[0] == "run" else [])]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), cwd=self.path, capture_output=True, text=True, check=False)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command as the leader of its own process group, as a shell would."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def artifacts(self) -> list[str]:
        return sorted(path.name for path in (self.path / "outputs" / "artifacts").glob("[!.]*"))

    def contents(self) -> dict[str, tuple[int, bytes | str]]:
        """Everything below outputs: path → modification time and bytes or link target."""
        found: dict[str, tuple[int, bytes | str]] = {}
        for path in sorted((self.path / "outputs").rglob("*")):
            if path.is_symlink():
                found[str(path)] = (path.lstat().st_mtime_ns, str(path.readlink()))
            elif path.is_file():
                found[str(path)] = (path.stat().st_mtime_ns, path.read_bytes())
        return found

    def write_rows(self, count: int, bad: int | None = None) -> None:
        with (self.path / "rows.jsonl").open("w") as file:
            for i in range(count):
                prompt = [{"role": "user", "content": f"question {i} about thing {i * 7919 % 10007}"}]
                answer = [{"role": "assistant", "content": f"answer {i}"}]
                row = {"prompt": prompt, "completion": [] if i == bad else answer}
                file.write(json.dumps(row) + "\n")

    def lease_of(self, stage: str) -> str | None:
        """Return who is making the artifact of a stage."""
        leases = (self.path / "outputs" / "work").glob(f"{stage}-*/lease")
        return next((who for path in leases if (who := holder(path)) is not None), None)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition; fail when it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.02)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def states(output: str) -> dict[str, str]:
    """Return ``{stage: status}`` from the final table."""
    table = output.partition("\nstage ")[2].partition("\nthe same command")[0].splitlines()[1:]
    return {row.split()[0]: " ".join(row.split()[1:3]) if "not run" in row else row.split()[1] for row in table if row}


def test_a_finished_pipeline_runs_nothing_and_changes_nothing(workspace: Workspace) -> None:
    first = workspace.run("run", "recipe=engine")
    assert first.returncode == 0, first.stderr
    assert states(first.stdout) == {"demo": "done", "demonstrations": "done", "comparisons": "done"}
    before = workspace.contents()
    second = workspace.run("run", "recipe=engine")
    assert second.returncode == 0
    assert states(second.stdout) == {"demo": "cached", "demonstrations": "cached", "comparisons": "cached"}
    assert workspace.contents() == before
    (work,) = (workspace.path / "outputs" / "work").glob("demo-*")
    (work / "checkpoints" / "checkpoint-8").mkdir(parents=True)  # as a kill between commit and clean-up leaves it
    assert workspace.run("run", "recipe=engine").returncode == 0
    assert not (work / "checkpoints").exists()


def test_a_changed_knob_reruns_its_stage_alone_and_the_rest_is_shared(workspace: Workspace) -> None:
    workspace.run("run", "recipe=engine")
    changed = workspace.run("run", "recipe=engine", "stages.comparisons.with.eval_fraction=0.5")
    assert states(changed.stdout) == {"demo": "cached", "demonstrations": "cached", "comparisons": "done"}
    seeded = workspace.run("run", "recipe=engine", "seed=1", "launcher.max_parallel=1")
    assert set(states(seeded.stdout).values()) == {"done"}
    assert len(workspace.artifacts()) == 3 + 1 + 3


def test_a_run_folder_holds_config_orders_and_logs(workspace: Workspace) -> None:
    workspace.run("run", "recipe=engine", "run_name=mine")
    run = workspace.path / "outputs" / "runs" / "mine"
    assert (run.parent / "latest").readlink() == Path("mine")
    assert "num_demonstrations: 15" in (run / "config.yaml").read_text()
    spec = json.loads((run / "stages" / "comparisons" / "spec.json").read_text())
    (demo, comparisons) = (next((workspace.path / "outputs/artifacts").glob(f"{n}-*")) for n in ("demo", "comparisons"))
    assert spec["inputs"] == {"sources": f"artifacts/{demo.name}"}
    assert read_manifest(comparisons).parents["sources"].digest == read_manifest(demo).digest
    assert (run / "logs" / "comparisons" / "latest").readlink() == Path("attempt_1.log")


def test_a_used_run_folder_refuses_another_configuration(workspace: Workspace) -> None:
    workspace.run("run", "recipe=engine", "run_name=mine")
    again = workspace.run("run", "recipe=engine", "run_name=mine", "launcher.max_parallel=1", "tracking=none")
    assert again.returncode == 0
    other = workspace.run("run", "recipe=engine", "run_name=mine", "seed=4")
    assert other.returncode == 2
    (line,) = other.stderr.splitlines()
    assert "belongs to a run with another configuration (seed: 0 there, 4 here)" in line
    assert all(way in line for way in ("resume", "another run_name", "delete"))


def test_bad_data_fails_with_its_line_and_the_next_attempt_has_its_own_log(workspace: Workspace) -> None:
    workspace.write_rows(5, bad=2)
    failed = workspace.run("run", "recipe=own")
    assert failed.returncode == 2
    errors = failed.stderr.splitlines()
    assert errors[0].startswith("error: rows: rows.jsonl:3:")
    assert errors[1].startswith("log: ")
    assert errors[1].endswith("logs/rows/attempt_1.log")
    status = workspace.run("status")
    assert status.stdout.startswith("error: rows: rows.jsonl:3:")
    workspace.run("run", "recipe=own")
    logs = workspace.path / "outputs" / "runs" / "latest" / "logs" / "rows"
    assert (logs / "latest").readlink() == Path("attempt_2.log")
    workspace.write_rows(5)
    assert workspace.run("run", "recipe=own").returncode == 0
    assert not workspace.run("status").stdout.startswith("error")


def test_a_missing_file_is_found_before_anything_starts(workspace: Workspace) -> None:
    missing = workspace.run("run", "recipe=own")
    assert missing.returncode == 2
    assert missing.stderr == (
        "error: stages.rows.with.sources.0.path: rows.jsonl: no such file, folder or module; mend the path\n"
    )
    assert not (workspace.path / "outputs").exists()


def test_a_failure_leaves_its_dependants_undone_and_finished_work_kept(workspace: Workspace) -> None:
    workspace.run("run", "recipe=engine")
    failed = workspace.run("run", "recipe=engine", "stages.demo.with.num_demonstrations=100000")
    assert failed.returncode == 2
    assert states(failed.stdout) == {"demo": "failed", "demonstrations": "not run", "comparisons": "not run"}
    assert len(workspace.artifacts()) == 3


def test_killing_the_launcher_mid_stage_leaves_no_writer_and_the_same_command_goes_on(workspace: Workspace) -> None:
    workspace.write_rows(SLOW_ROWS)
    process = workspace.start("run", "recipe=own")
    until(lambda: workspace.lease_of("rows"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: workspace.lease_of("rows") is None)
    assert workspace.artifacts() == []
    assert "killed" in workspace.run("status").stdout
    again = workspace.run("run", "recipe=own")
    assert again.returncode == 0, again.stderr
    assert states(again.stdout) == {"rows": "done"}
    assert workspace.run("verify").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_stages_and_exits_75(workspace: Workspace, number: int) -> None:
    workspace.write_rows(SLOW_ROWS)
    process = workspace.start("run", "recipe=own")
    until(lambda: workspace.lease_of("rows"))
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == 75, errors
    assert workspace.lease_of("rows") is None
    assert states(output) == {"rows": "stopped"}
    assert "the same command goes on from here" in output
    assert "stopped" in workspace.run("status").stdout


def test_the_same_run_started_twice_is_refused_and_names_the_holder(workspace: Workspace) -> None:
    workspace.write_rows(SLOW_ROWS)
    first = workspace.start("run", "recipe=own")
    until(lambda: workspace.lease_of("rows"))
    first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second has looked
    second = workspace.run("run", "recipe=own", "launcher.lease_wait_seconds=0")
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 75
    assert f"is being written by process {first.pid}" in second.stderr
    first.communicate()
    assert first.returncode == 0


def test_two_pipelines_never_make_the_same_artifact_twice(workspace: Workspace) -> None:
    workspace.write_rows(SLOW_ROWS)
    first = workspace.start("run", "recipe=own", "run_name=first")
    until(lambda: workspace.lease_of("rows"))
    first.send_signal(signal.SIGSTOP)
    refused = workspace.run("run", "recipe=own", "run_name=second", "launcher.lease_wait_seconds=0")
    first.send_signal(signal.SIGCONT)
    assert refused.returncode == 75
    assert "is being made by process" in refused.stderr
    assert "(run first, since" in refused.stderr
    waiting = workspace.run("run", "recipe=own", "run_name=third")
    assert waiting.returncode == 0, waiting.stderr
    assert states(waiting.stdout) == {"rows": "cached"}
    first.communicate()
    assert first.returncode == 0
    logs = list((workspace.path / "outputs" / "runs").glob("*/logs/rows/attempt_*.log"))
    assert [log.parent.parent.parent.name for log in logs] == ["first"]


def test_pipelines_started_together_agree(workspace: Workspace) -> None:
    started = [workspace.start("run", "recipe=engine", f"run_name=r{i}") for i in range(3)]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert len(workspace.artifacts()) == 3
    assert workspace.run("verify").returncode == 0
    made = [
        json.loads(p.read_text())["output"] for p in (workspace.path / "outputs/runs").glob("r?/stages/demo/spec.json")
    ]
    assert len(made) == 3
    assert len(set(made)) == 1


def test_show_and_verify_read_what_was_made(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    workspace.run("run", "recipe=engine")
    root = ["--root", str(workspace.path / "outputs")]
    directory = next((workspace.path / "outputs" / "artifacts").glob("comparisons-*"))
    manifest = read_manifest(directory)
    for name in ("comparisons", directory.name, manifest.key[:9], manifest.digest[:9], str(directory)):
        assert main(["show", name, *root]) == 0
        shown = capsys.readouterr().out
        assert manifest.digest in shown
        assert "└── sources: demo-" in shown
    assert main(["show", "comparson", *root]) == 2
    assert "did you mean 'comparisons" in capsys.readouterr().err
    assert main(["verify", *root]) == 0
    victim = directory / "train.parquet"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", *root]) == 1
    assert capsys.readouterr().err.startswith(f"{victim}: SHA-256 is ")
    assert main(["verify", "demo", *root]) == 0


def test_dry_run_says_what_would_happen_and_writes_nothing(workspace: Workspace) -> None:
    workspace.run("run", "recipe=engine")
    before = workspace.contents()
    dry = workspace.run("run", "recipe=engine", "stages.demo.with.num_texts=9", "--dry-run")
    assert dry.returncode == 0
    heads = [line for line in dry.stdout.splitlines() if line.startswith("# ")]
    assert [head.split("  ")[2] for head in heads] == ["would run", "waits for demo", "waits for demo"]
    assert workspace.contents() == before


def test_the_lines_of_a_dry_run_run_as_printed(workspace: Workspace) -> None:
    lines = workspace.run("run", "recipe=engine", "run_name=r", "--dry-run").stdout
    assert not (workspace.path / "outputs").exists()
    done = subprocess.run(["bash", "-e"], input=lines.partition("\n")[2], cwd=workspace.path, text=True, check=False)
    assert done.returncode == 0
    workspace.run("run", "recipe=engine", "run_name=r")
    made = {path.name.partition("-")[0]: path for path in (workspace.path / "outputs" / "artifacts").iterdir()}
    for stage, path in made.items():
        by_hand = read_manifest(workspace.path / "outputs" / "by-hand" / "r" / stage)
        assert by_hand.digest == read_manifest(path).digest, stage
    again = workspace.run("run", "recipe=engine", "run_name=r", "--dry-run").stdout
    assert "posttrain.data" not in again  # nothing is left to run


def test_a_stage_that_waited_runs_with_the_files_of_the_moment_it_starts(workspace: Workspace) -> None:
    workspace.write_rows(SLOW_ROWS)
    late = workspace.path / "late.jsonl"
    late.write_text('{"text": "before"}\n')
    (workspace.path / "conf" / "recipe" / "two.yaml").write_text(
        OWN + "  late: {run: data.curate, with: {record_type: demonstration, sources: [{name: l, path: late.jsonl}]}}\n"
    )
    process = workspace.start("run", "recipe=two", "launcher.max_parallel=1")
    until(lambda: workspace.lease_of("rows"))
    late.write_text('{"text": "after"}\n')
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    again = workspace.run("run", "recipe=two", "launcher.max_parallel=1")
    assert states(again.stdout) == {"rows": "cached", "late": "cached"}
