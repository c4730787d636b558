"""Where to begin: what the bare command says, the list of recipes, and a recipe written for a folder of data."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from posttrain.pipeline.cli import main
from posttrain.pipeline.commands.init import init, recipe_text
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.recipes import recipes
from posttrain.pipeline.graph.graph import build_graph
from posttrain.stage.errors import UsageError

ROWS = {
    "tell.jsonl": {"instruction": "Add 1 and 2.", "output": "3"},
    "sub/pairs.jsonl": {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
    "ask.jsonl": {"prompt": "1 + 1?", "reference": "2"},
    "odd.jsonl": {"x": 1},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "my data"
    for name, row in ROWS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(row) + "\n")
    (folder / "notes.txt").write_text("not rows")
    return folder


def test_the_bare_command_says_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "posttrain init --data FOLDER" in capsys.readouterr().out


def test_a_run_without_a_recipe_lists_them_all_with_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "seed=1"]) == 2
    said = capsys.readouterr()
    assert "error: which recipe?" in said.err
    assert all(recipe.name in said.out for recipe in recipes())
    assert [recipe.name for recipe in recipes() if not recipe.needs or len(recipe.line) < 8] == []


def test_a_folder_of_data_becomes_a_recipe_that_composes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    assert main(["init", "--data", str(data), "--model", "HuggingFaceTB/SmolLM2-135M", "--out", str(out)]) == 0
    assert f"note: {data}/odd.jsonl: not taken: no shape has the columns x" in capsys.readouterr().err
    config = compose_config([f"recipe={out}"])
    assert config.paths == {
        "model": "HuggingFaceTB/SmolLM2-135M",
        "demonstrations": f"{data}/tell.jsonl",
        "comparisons": f"{data}/sub/pairs.jsonl",
        "items": f"{data}/ask.jsonl",
    }
    assert {"sft", "dpo", "items"} <= {stage.name for stage in build_graph(config)}
    assert config.train.sft["adapter"]["kind"] == "lora"
    with pytest.raises(UsageError, match="is there already"):
        init(data, "m", "sft", out, ask=False)


def test_what_init_cannot_know_or_serve_is_one_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.yaml"
    with pytest.raises(UsageError, match=r"^--model: missing; "):
        init(data, None, None, out, ask=False)
    with pytest.raises(UsageError, match=r"^--method sft_kto: needs preferences, which .* lacks$"):
        init(data, "m", "sft_kto", out, ask=False)
    with pytest.raises(UsageError, match=r"^there is no file of demonstrations, only items; "):
        init(data / "ask.jsonl", "m", None, out, ask=False)
    assert not out.exists()


@pytest.mark.parametrize(("gpus", "hardware"), [(0, "float32"), (1, "bfloat16"), (8, "bfloat16")])
def test_the_recipe_fits_the_machine(tmp_path: Path, gpus: int, hardware: str) -> None:
    found = {"demonstrations": [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "preferences": [tmp_path / "c.jsonl"]}
    (tmp_path / "r.yaml").write_text(recipe_text("sft_kto", "a/b", found, "r", gpus))
    stages = {stage.name: stage for stage in build_graph(compose_config([f"recipe={tmp_path}/r.yaml"]))}
    assert stages["kto"].config.dtype == hardware
    assert len(stages["demonstrations"].config.sources[0].path) == 2


def test_questions_are_asked_where_somebody_can_answer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{data}\n\na/model\n"))
    assert init(None, None, None, tmp_path / "asked.yaml", ask=True) == 0
    assert "sft_dpo         comparisons: the cheapest way to use them   ← proposed" in capsys.readouterr().out
    assert compose_config([f"recipe={tmp_path}/asked.yaml"]).paths["model"] == "a/model"
