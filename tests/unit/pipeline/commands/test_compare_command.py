"""`posttrain compare`: which evaluations two names mean, and what is said of the items that they share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_pipeline import HOSTILE, Store, build_pipeline, made_items

from posttrain.evaluate.measure.item_scores import ScoredItem, write_items
from posttrain.pipeline.cli import main
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_DONE, EXIT_USAGE
from posttrain.stage.spec import Distributed, StageSpec, Tracking


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of a store with a made-up pipeline, of which two runs each took a part."""
    root = tmp_path_factory.mktemp("outputs").resolve()
    made = build_pipeline(root / "artifacts")
    add_run(root, "one", {"base": made["evaluate_base"], "end": made["evaluate_sft"]})
    add_run(root, "two", {"end": made["evaluate_dpo"], "rewards": made["evaluate_reward"]})
    add_run(root, "other", {"rewards": made["evaluate_reward"]})
    return root


def add_run(root: Path, name: str, stages: dict[str, Path]) -> None:
    run = RunDirectory(root, name)
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text("name: made-up\n")
    run.identity.write_text(json.dumps({"version": 1, "stages": {stage: {} for stage in stages}}))
    for stage, directory in stages.items():
        manifest = read_manifest(directory)
        paths = {"output": str(directory), "work": str(root / "work"), "outcome": str(run.outcome(stage))}
        rest = {"config": {}, "inputs": {}, "parents": {}, "seed": 0}
        run.spec(stage).parent.mkdir(parents=True)
        run.write_spec(
            StageSpec(
                stage,
                manifest.run,
                name,
                manifest.key,
                "",
                **rest,
                **paths,
                distributed=Distributed(),
                tracking=Tracking(),
            )  # type: ignore[arg-type]
        )


def compared(root: Path, capsys: pytest.CaptureFixture[str], *names: str) -> list[dict[str, Any]]:
    assert main(["compare", *names, "--root", str(root), "--json"]) == EXIT_DONE
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["comparisons"]
    return found


def refused(root: Path, capsys: pytest.CaptureFixture[str], *names: str) -> str:
    assert main(["compare", *names, "--root", str(root)]) == EXIT_USAGE
    return capsys.readouterr().err


def test_two_models_are_compared_on_each_kind_of_evaluation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift, policy = compared(root, capsys, "sft", "dpo")
    assert (drift["name"].split()[0], policy["name"].split()[0]) == ("evaluate.drift", "evaluate.policy")
    exact = policy["overall"][0]
    before, after = made_items("sft"), made_items("dpo")
    won = sum(one.correct < other.correct for one, other in zip(before, after, strict=True))
    assert (exact["metric"], exact["n"], exact["won"]) == ("exact_match", 450, won)
    assert exact["was"] == pytest.approx(sum(item.correct for item in before) / 450)
    assert exact["difference"] == pytest.approx(exact["now"] - exact["was"])
    assert len(policy["by_task"]) == 10 and all("adjusted" in row for row in policy["by_task"])
    assert policy["losses"] == [0.42, 0.55]
    (back,) = compared(root, capsys, "evaluate_dpo", "evaluate_sft")
    assert back["overall"][0]["difference"] == pytest.approx(-exact["difference"])


def test_two_runs_are_compared_stage_by_stage(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = compared(root, capsys, "one", "two")
    assert (found["name"], found["first"], found["second"], found["shared"]) == ("end", "one", "two", 450)
    assert main(["compare", "one/end", "two/end", "--root", str(root)]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "450 items that both answered" in said and "held-out loss 0.4200 → 0.5500 (+0.1300)" in said
    assert "base" in refused(root, capsys, "one", "other")  # names what there is
    assert "one is a run and dpo" in refused(root, capsys, "one", "dpo")
    assert "evaluate.policy stage" in refused(root, capsys, "reward", "dpo")


def with_scores(store: Store, stage: str, items: list[ScoredItem], **config: Any) -> Path:
    (store.root / f".{stage}").mkdir(parents=True)
    write_items(store.root / f".{stage}", items)
    made = store.add(stage, "scores", "evaluate.policy", {}, {"summary.json": {"loss": None}})
    path = made / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
    return made


def test_what_is_not_alike_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = made_items("sft")
    store = Store(tmp_path / "artifacts")
    first = with_scores(store, "first", items[:40], max_new_tokens=64, batch_size=8)
    asked_else = [items[10]._replace(prompt="Why?"), *items[11:60]]
    second = with_scores(store, "second", asked_else, max_new_tokens=32, batch_size=64)
    (found,) = compared(tmp_path, capsys, str(first), str(second))
    counts = [found[name] for name in ("shared", "only_first", "only_second", "other_question")]
    assert counts == [29, 10, 20, 1]
    assert found["asked_otherwise"] == ["max_new_tokens: 64 there, 32 here"]
    assert main(["compare", str(first), str(second), "--root", str(tmp_path)]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "10 items of" in said and "1 under one id but with another prompt, left out" in said
    assert "share no item" in refused(
        tmp_path, capsys, str(first), str(with_scores(store, "third", items[100:110], max_new_tokens=64))
    )


def test_the_page_is_written_and_shows_text_as_text(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", "sft", "dpo", "--root", str(root), "--html", str(page)]) == EXIT_DONE
    text = page.read_text(encoding="utf-8")
    assert str(page) in capsys.readouterr().out
    assert "sft → dpo" in text and "held-out loss 0.4200 → 0.5500" in text and HOSTILE not in text


def test_comparing_needs_no_torch() -> None:
    code = (
        "import sys, posttrain.pipeline.commands.compare, posttrain.evaluate.page.compare_page; "
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
