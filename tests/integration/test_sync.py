"""`posttrain sync`: an offline run against a server that is away, then there, and that knows a part of it already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT
from fake_wandb import FakeRun, FakeWandb
from wandb_files import history, merged, offline_files

from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.tracking import read_metrics
from posttrain.stage.wandb.tables import numbers, tables

CANARY = "canary1secret1" * 3
RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: small
launcher: { threads_per_process: 1 }
stages:
  sources:
    run: data.demo
    with:
      { num_texts: 60, num_demonstrations: 15, num_comparisons: 15, num_gold_comparisons: 15, num_evaluation_items: 15 }
  texts:
    run: data.curate
    inputs: { sources: sources }
    with: { record_type: demonstration, sources: [{ name: text, file: text.jsonl, task: text }] }
  items:
    run: data.curate
    inputs: { sources: sources }
    with: { record_type: evaluation, sources: [{ name: evaluation, file: evaluation.jsonl, split: eval }] }
  untrained: { run: train.base, inputs: { data: texts } }
  tokens: { run: data.tokenize, inputs: { data: texts, model: untrained }, with: { loss_on: all } }
  base: { run: train.sft, inputs: { model: untrained, data: tokens } }
  tuned: { run: train.sft, inputs: { model: base, data: tokens }, with: { max_steps: 3 } }
  scores: { run: evaluate.policy, inputs: { model: tuned, data: tokens, items: items } }
  report: { run: evaluate.report, inputs: { texts: texts, tuned: tuned, scores: scores } }
data: { tokenize: { max_length: 160 } }
train:
  base:
    architecture:
      { hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 2, intermediate_size: 64, vocab_size: 400 }
    chat_template: chatml
  sft: { global_batch_size: 8, micro_batch_size: 8, save_steps: 5, log_steps: 1, max_steps: 6 }
evaluate: { policy: { max_new_tokens: 8 }, report: { resamples: 100, samples: 2 } }
"""


class Workspace:
    """A folder in which the small pipeline has run offline."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "conf" / "recipe").mkdir(parents=True)
        (path / "conf" / "recipe" / "small.yaml").write_text(RECIPE)
        self.first = self.command("run", "recipe=small", "--config-dir", "conf")

    def command(self, *arguments: str, url: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "posttrain.pipeline.cli", *arguments]
        environment = {**os.environ, **ENVIRONMENT, "WANDB_BASE_URL": url, "WANDB_API_KEY": CANARY}
        return subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, check=False)

    def manifests(self) -> dict[str, Manifest]:
        """Manifest of each artifact by name."""
        directories = [path.parent for path in self.path.glob("outputs/artifacts/*/manifest.json")]
        return {directory.name: read_manifest(directory) for directory in directories}

    def name(self, stage: str) -> str:
        return next(name for name, manifest in self.manifests().items() if manifest.stage == stage)

    def metrics(self, stage: str) -> list[dict[str, float]]:
        return merged(read_metrics(self.path / "outputs" / "artifacts" / self.name(stage) / "logs" / "metrics.jsonl"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("sync"))


def test_offline_run_says_nothing_of_wandb(workspace: Workspace) -> None:
    assert workspace.first.returncode == 0, workspace.first.stderr
    assert "wandb" not in workspace.first.stdout + workspace.first.stderr
    for stage in ("base", "tuned"):
        (file,) = offline_files(workspace.path / "outputs" / "work" / workspace.name(stage))
        assert history(file) == workspace.metrics(stage)


def test_an_absent_server_is_an_error_and_nothing_is_marked(workspace: Workspace) -> None:
    done = workspace.command("sync")
    assert done.returncode == 1
    assert done.stderr.startswith("error: W&B: ")
    assert list(workspace.path.glob("outputs/work/*/wandb/uploaded")) == []


def test_sync_mirrors_the_run_once(workspace: Workspace) -> None:
    manifests = workspace.manifests()
    with FakeWandb() as server:
        # An upload of `tuned` that broke off: the server has two steps, and `wandb-core` noted that it had begun.
        begun = server.runs[workspace.name("tuned")] = FakeRun()
        begun.history = [{**row, "_runtime": 0.0, "_timestamp": 0.0} for row in workspace.metrics("tuned")[:2]]
        (file,) = offline_files(workspace.path / "outputs" / "work" / workspace.name("tuned"))
        file.with_name(f"{file.name}.syncstate").write_text('{"starting_step":0,"starting_runtime":0}')

        done = workspace.command("sync", url=server.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith("9 stages uploaded, 0 were there already")
        assert done.stderr == ""
        again = workspace.command("sync", url=server.url)
        assert again.stdout.splitlines()[-1].endswith("0 stages uploaded, 9 were there already")

    (run_folder,) = [path for path in workspace.path.glob("outputs/runs/*") if not path.is_symlink()]
    assert set(server.runs) == set(manifests)
    assert {run.group for run in server.runs.values()} == {run_folder.name}
    assert {run.exit_code for run in server.runs.values()} == {0}
    made = {(name, name, manifest.kind) for name, manifest in manifests.items()}
    edges = {(name, parent.name) for name, manifest in manifests.items() for parent in manifest.parents.values()}
    assert set(server.made()) == made
    assert set(server.uses) == edges
    assert len(server.uses) == len(edges)
    for artifact in server.artifacts:
        if artifact["artifactTypeName"] != "run_table":
            known = json.loads(artifact["metadata"])
            manifest = manifests[artifact["artifactCollectionName"]]
            assert (known["digest"], known["key"]) == (manifest.digest, manifest.key)

    for stage in ("base", "tuned"):
        rows = server.runs[workspace.name(stage)].history
        shown = [{k: v for k, v in row.items() if k == "_step" or not k.startswith("_")} for row in rows]
        assert shown == workspace.metrics(stage)
    assert server.runs[workspace.name("base")].system != []
    assert server.runs[workspace.name("base")].config["packages"] == manifests[workspace.name("base")].packages
    texts = server.runs[workspace.name("texts")].summary
    assert texts["accounting.rows_in"] == manifests[workspace.name("texts")].facts["accounting"]["rows_in"]
    assert "items/by_task" in server.runs[workspace.name("scores")].summary
    report = workspace.path / "outputs" / "artifacts" / workspace.name("report") / "report.html"
    pages = [content for name, content in server.uploads.items() if name.endswith(".html")]
    assert pages == [report.read_bytes()]
    weights = [name for name in server.uploads if name.endswith((".safetensors", ".parquet"))]
    assert weights == []


def test_the_api_key_is_in_no_file(workspace: Workspace) -> None:
    files = [path for path in workspace.path.rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_tables_are_lists_and_groups_of_the_first_two_levels(tmp_path: Path) -> None:
    summary = {
        "paired": [{"after": "dpo", "difference": 0.5}],
        "items": {
            "by_task": {"math": {"n": 2, "exact_match": {"value": 0.5, "low": 0.1}}},
            "by_task_and_language": {"math": {"de": {"n": 1}, "en": {"n": 3}}},
            "overall": {"n": 2},
        },
        "policies": {"sft": {"items": {"by_task": {"math": {"n": 2}}}}},
        "names": ["a", "b"],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert tables(tmp_path / "summary.json") == {
        "paired": [{"after": "dpo", "difference": 0.5}],
        "items/by_task": [{"task": "math", "n": 2, "exact_match.value": 0.5, "exact_match.low": 0.1}],
        "items/by_task_and_language": [
            {"task": "math", "language": "de", "n": 1},
            {"task": "math", "language": "en", "n": 3},
        ],
    }
    assert tables(tmp_path / "none.json") == {}
    assert numbers({"rows": {"in": 3, "whole": True, "name": "x"}}, "accounting") == {"accounting.rows.in": 3}
