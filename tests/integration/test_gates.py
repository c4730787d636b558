"""A gate in a pipeline: what it refuses is not built upon, and says why; a person's word, recorded, lets it stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.evaluate.measure.item_scores import ScoredItem, summarise_items, write_items
from posttrain.pipeline.cli import main
from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.variants import variants_of
from posttrain.pipeline.slurm.job import Driver
from posttrain.pipeline.slurm.submit import Submission
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.artifact import Manifest, commit
from posttrain.stage.errors import EXIT_DONE, EXIT_GATE, EXIT_USAGE, GateRefusedError
from posttrain.stage.record import read_record

RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: gated
stages:
  rows: { run: data.curate, with: { record_type: demonstration, sources: [{ name: mine, path: rows.jsonl }] } }
  base: { run: train.base, with: { path: model } }
  tokens: { run: data.tokenize, inputs: { data: rows, model: base } }
  sft: { run: train.sft, inputs: { model: base, data: tokens } }
  evaluate_base: { run: evaluate.policy, inputs: { model: base, data: tokens } }
  evaluate_sft: { run: evaluate.policy, inputs: { model: sft, data: tokens } }
  gate_sft: { run: evaluate.gate, inputs: { before: evaluate_base, after: evaluate_sft } }
  upon_sft: { run: data.tokenize, inputs: { data: rows, model: sft } }
  after_that: { run: train.reward, inputs: { model: sft, data: upon_sft } }
"""
MADE = ("rows", "base", "tokens", "sft", "evaluate_base", "evaluate_sft")
Commit = Callable[[str, Callable[[int, str], float]], list[str]]


def items(right: Callable[[int, str], float]) -> list[ScoredItem]:
    return [
        ScoredItem(f"{task}/{n}", task, "en", "?", "said", "b", None, "exact", right(n, task), None, True)
        for task in ("sums", "json")
        for n in range(150)
    ]


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commit:
    """A pipeline whose models and scores are made; given what the SFT model knows, returns what runs it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    recipe = tmp_path / "conf/recipe/gated.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)

    def make(overrides: str, right: Callable[[int, str], float]) -> list[str]:
        arguments = ["recipe=gated", "tracking=none", *overrides.split()]
        point = prepare(compose_config(arguments, tmp_path / "conf"))
        resolver = Resolver(point.config, point.run, local_launcher(point.config, point.stages).distributed)
        point.run.open(point.config, point.stages)
        made: dict[str, Made] = {}
        for stage in (stage for stage in point.stages if stage.name in MADE):
            spec = resolver.spec(stage, made)
            folder = Path(spec.output).with_name(f".{stage.name}")
            folder.mkdir(parents=True)
            (folder / "file").write_text(stage.name)
            if stage.name.startswith("evaluate_"):
                scored = items(right if stage.name == "evaluate_sft" else lambda n, task: float(n % 2))
                write_items(folder, scored)
                summary = {"loss": None, "items": summarise_items(scored), "too_long": []}
                (folder / "summary.json").write_text(json.dumps(summary))
            manifest = Manifest(
                kind=stage.type.kind,
                stage=stage.name,
                run=stage.type.run,
                config=spec.config,
                seed=0,
                created="2030-01-01T00:00:00Z",
                key=spec.key,
                parents=spec.parents,
                code_digest=spec.code_digest,
                headline="",
                digest="",
                tokens=0,
                wall_seconds=0.0,
                licenses=[],
                **{name: {} for name in ("files", "metrics", "packages", "hardware", "facts")},
            )
            commit(folder, Path(spec.output), manifest)
            point.run.write_spec(spec)
            found = committed(spec)
            assert found is not None
            made[stage.name] = found
        return [*arguments, "--config-dir", "conf"]

    return make


def forgets_json(n: int, task: str) -> float:
    """Sums are all right, and of JSON a third of what was is lost."""
    return 1.0 if task == "sums" else float(n % 2 and n % 3 > 0)


def gains(n: int, task: str) -> float:
    return float(n % 4 > 0)


def records(root: Path) -> list[dict[str, object]]:
    return [read_record(path) for path in sorted(root.glob("outputs/records/sft-*/promotion-*.json"))]


def test_a_refused_model_is_not_built_upon_until_someone_says_why(
    gated: Commit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = gated("", forgets_json)
    assert main(["run", *arguments]) == EXIT_GATE
    printed = capsys.readouterr()
    assert "exact match in json fell: -0.167" in printed.err and "worse: json/105, json/111" in printed.err
    assert "posttrain promote gate_sft --override --why TEXT" in printed.err
    assert "blocked" in printed.out and not list(tmp_path.glob("outputs/logs/upon_sft"))
    assert not records(tmp_path)

    _slurm_ends_it_too(compose_config(arguments[:-2], tmp_path / "conf"), monkeypatch)
    assert "error: gate gate_sft: sft-" in capsys.readouterr().err

    assert main(["status"]) is not None
    status = capsys.readouterr().out
    assert "blocked" in status
    assert main(["promote", "sft"]) == EXIT_GATE
    assert main(["promote", "sft", "--override"]) == EXIT_USAGE
    assert main(["promote", "stf", "--override", "--why", "x"]) == EXIT_USAGE
    assert "did you mean 'sft'" in capsys.readouterr().err
    assert main(["promote", "sft", "--override", "--why", "JSON is not wanted here"]) == EXIT_DONE
    (record,) = records(tmp_path)
    assert (record["override"], record["because"], record["state"]) == (True, "JSON is not wanted here", "failed")
    assert main(["promote", "gate_sft"]) == EXIT_DONE
    # What builds upon it starts now; these models hold no weights, so that it fails of its own.
    assert main(["run", *arguments]) not in (EXIT_DONE, EXIT_GATE)
    assert "error: upon_sft" in capsys.readouterr().err

    path = next(tmp_path.glob("outputs/records/sft-*/promotion-*.json"))
    path.write_text(path.read_text().replace("not wanted", "wanted"))
    assert main(["run", *arguments]) == EXIT_USAGE
    assert "not as it was written" in capsys.readouterr().err


def _slurm_ends_it_too(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    point = prepare(config)
    (upon,) = variants_of([point])["upon_sft"]
    assert "gate_sft" in {parent.stage.name for parent in upon.parents}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert Driver(point.run, [], "upon_sft", config).main() == EXIT_GATE
    with pytest.raises(GateRefusedError, match=r"stages\.upon_sft: gate gate_sft: .* exact match in json fell"):
        Submission([point]).submit(StopRequests())


def test_a_model_that_gained_is_promoted(gated: Commit, tmp_path: Path) -> None:
    arguments = gated("stages.upon_sft=null stages.after_that=null", gains)
    assert main(["run", *arguments]) == EXIT_DONE
    (record,) = records(tmp_path)
    assert (record["override"], record["state"], record["gate"]) == (False, "passed", "gate_sft")
    before = (tmp_path / "outputs/records").stat().st_mtime_ns
    assert main(["run", *arguments]) == EXIT_DONE
    assert len(records(tmp_path)) == 1 and (tmp_path / "outputs/records").stat().st_mtime_ns == before


def test_a_gate_that_reports_is_waited_for_by_nobody(gated: Commit, tmp_path: Path) -> None:
    for mode, waits in (("report", ()), ("block", ("gate_sft",)), ("strict", ("gate_sft",))):
        stages = build_graph(compose_config(["recipe=gated", f"gate={mode}"], tmp_path / "conf"))
        gates = {stage.name: stage.gates for stage in stages}
        assert gates["upon_sft"] == gates["after_that"] == waits
        assert {name for name, own in gates.items() if own} <= {"upon_sft", "after_that"}
        names = list(gates)
        assert not waits or names.index("gate_sft") < names.index("upon_sft")
