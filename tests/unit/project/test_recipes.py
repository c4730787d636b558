"""Every shipped YAML composes, every recipe plans, and one whose weights are absent says so in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.data.sources.adapters import ADAPTERS
from posttrain.data.sources.row_values import Drop
from posttrain.pipeline.commands.planning.pipeline import SEQUENCES_PER_ROW, print_pipeline_plan
from posttrain.pipeline.commands.run import dry_run, prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.overlap import unguarded
from posttrain.pipeline.local.launch import local_launcher
from posttrain.stage.schema import external_paths

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
RECIPES = sorted(
    path.relative_to(CONF / "recipe").with_suffix("").as_posix() for path in (CONF / "recipe").rglob("*.yaml")
)
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("recipe", "pipeline")
)
REAL = ("smollm2_135m/sft_reward_dpo", "qwen3_0_6b/sft_dpo", "llama3_1_8b_lora/sft_dpo", "llama3_1_8b_zero3/sft_dpo")

HARDWARE = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml"))

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("hardware", ["cpu", "gpu1"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_plans(
    recipe: str, hardware: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"root={tmp_path / 'outputs'}", *_given_by_the_user(recipe, tmp_path)]
    config = compose_config([f"recipe={recipe}", f"hardware={hardware}", *given])
    stages = build_graph(config)
    assert unguarded(stages) == []
    absent = [path for stage in stages for path in external_paths(stage.config) if not path.exists()]
    if absent:
        pytest.skip(f"recipe={recipe} reads {absent[0]}, which is not here")
    assert dry_run(prepare(config)) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("# ")] == [s.name for s in stages]
    assert print_pipeline_plan(config) == 0
    table = capsys.readouterr().out
    assert all(stage.name in table for stage in stages if stage.type.run in SEQUENCES_PER_ROW)
    assert not (tmp_path / "outputs").exists()


def test_the_demo_of_kto_takes_what_the_demo_made() -> None:
    made, wanted = (
        {stage.name: stage for stage in build_graph(compose_config([f"recipe={recipe}"]))}
        for recipe in ("demo", "demo_kto")
    )
    shared = ("sources", "texts", "demonstrations", "items", "untrained", "text_tokens", "base", "demonstration_tokens")
    for name in (*shared, "sft", "evaluate_base", "evaluate_sft"):
        assert (wanted[name].type, wanted[name].config) == (made[name].type, made[name].config), name
        assert wanted[name].inputs == made[name].inputs, name


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_every_hardware_with_an_adapter(recipe: str, hardware: str, tmp_path: Path) -> None:
    groups = [f"recipe={recipe}", f"hardware={hardware}", "adapter=lora"]
    assert build_graph(compose_config([*groups, *_given_by_the_user(recipe, tmp_path)]))


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.startswith("own/")])
def test_items_of_ones_own_are_evaluated_and_held_out(recipe: str, tmp_path: Path) -> None:
    given = _given_by_the_user(recipe, tmp_path)
    without = {stage.name: stage for stage in build_graph(compose_config([f"recipe={recipe}", *given]))}
    config = compose_config([f"recipe={recipe}", *given, "paths.items=items.jsonl"])
    stages = {stage.name: stage for stage in build_graph(config)}
    assert stages.keys() - without.keys() == {"items"}
    assert stages["items"].config.sources[0].path == "items.jsonl"
    judged = {name for name, stage in stages.items() if stage.type.run in ("evaluate.policy", "evaluate.report")}
    knowing = {name for name, stage in stages.items() if stage.type.run == "data.curate"} - {"items"}
    assert len(judged) >= 3 and "demonstrations" in knowing
    for name, stage in stages.items():
        assert (stage.inputs.get("items") == "items") == (name in judged | knowing), name
        assert name == "items" or "items" not in without[name].inputs
    assert unguarded(list(stages.values())) == []


def test_several_files_and_a_model_of_the_hub_are_a_knob_each() -> None:
    given = ["paths.demonstrations=[one.jsonl,more/two.csv]", "paths.model=some-org/some-model"]
    columns = "columns.demonstrations={prompt: question, completion: answer}"
    (config,) = compose_sweep(["recipe=own/sft", *given, columns]).values()
    stages = {stage.name: stage.config for stage in build_graph(config)}
    (source,) = stages["demonstrations"].sources
    assert source.path == ["one.jsonl", "more/two.csv"]
    assert source.columns == {"prompt": "question", "completion": "answer"}
    assert (stages["base"].hub_name, stages["base"].path) == ("some-org/some-model", None)


def _given_by_the_user(recipe: str, directory: Path) -> list[str]:
    """Overrides for what a recipe leaves to its user: a model folder that states a shape, and files."""
    values = yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    overrides = []
    for name, value in values.get("paths", {}).items():
        if value == "???":
            (directory / name).mkdir()
            (directory / name / "config.json").write_text(json.dumps(TINY_LLAMA), encoding="utf-8")
            overrides.append(f"paths.{name}={directory / name}")
    return overrides


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes(option: str) -> None:
    assert build_graph(compose_config([f"recipe={REAL[0]}", option]))


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_an_adapter_reaches_every_stage_that_trains(kind: str) -> None:
    stages = build_graph(compose_config([f"recipe={REAL[0]}", f"adapter={kind}"]))
    chosen = {stage.name: stage.config.adapter.kind for stage in stages if hasattr(stage.config, "adapter")}
    assert chosen == dict.fromkeys(("sft", "reward", "dpo"), kind)
    (reference,) = (stage.config for stage in stages if stage.type.run == "train.reference")
    assert reference.four_bit == (kind == "qlora")


@pytest.mark.parametrize("recipe", REAL)
def test_a_recipe_opens_with_its_launch_command(recipe: str) -> None:
    header = (CONF / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    assert re.search(rf"^#   posttrain run recipe={re.escape(recipe)}$", header, re.MULTILINE)


def test_zero3_reaches_every_training_stage() -> None:
    config = compose_config(["recipe=llama3_1_8b_zero3/sft_dpo", "distributed.num_processes=8"])
    stages = {stage.name: stage for stage in build_graph(config)}
    asked = local_launcher(config, []).distributed(stages["sft"])
    assert (asked.kind, asked.num_processes) == ("deepspeed", 8)
    assert asked.deepspeed is not None
    assert asked.deepspeed["zero_optimization"]["stage"] == 3
    assert stages["demonstrations"].distributed.kind == "single"


# One row of each dataset that the recipes name, as its page on the Hub shows them.
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
OTHER = [CHAT[0], {"role": "assistant", "content": "Go away."}]
PUBLISHED_ROWS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/smol-smoltalk": {"messages": CHAT, "source": "smol-magpie-ultra-short"},
    "HuggingFaceTB/smoltalk": {"messages": CHAT, "source": "smol-constraints"},
    "HuggingFaceH4/ultrachat_200k": {"prompt": "Hi", "prompt_id": "f0e3", "messages": CHAT},
    "allenai/tulu-3-sft-mixture": {"id": "oasst1_1", "messages": CHAT, "source": "ai2-adapt-dev/oasst1_converted"},
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "Hi",
        "prompt_id": "8ab2",
        "chosen": CHAT,
        "rejected": OTHER,
        "messages": CHAT,
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": {
        "id": "1",
        "source": "wildchat",
        "prompt": "Hi",
        "chosen": CHAT,
        "rejected": OTHER,
    },
    "openai/gsm8k": {"question": "What is 2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
}


@pytest.mark.parametrize("recipe", REAL)
def test_the_adapters_take_the_published_rows(recipe: str) -> None:
    for stage in build_graph(compose_config([f"recipe={recipe}"])):
        if stage.type.run != "data.curate":
            continue
        for source in stage.config.sources:
            row = PUBLISHED_ROWS[source.dataset]
            adapter = ADAPTERS[source.adapter]
            adapter.check(row)
            payload = adapter.converter(stage.config.record_type)(row)
            assert not isinstance(payload, Drop), f"{recipe}: {source.dataset} is dropped"
            assert payload["prompt"][-1]["role"] == "user"


def test_absent_weights_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    rows = {
        "demonstrations": ("messages", {"messages": CHAT}),
        "items": ("question_answer", PUBLISHED_ROWS["openai/gsm8k"]),
    }
    sources = []
    for stage, (adapter, row) in rows.items():
        path = tmp_path / f"{stage}.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        sources.append(f"stages.{stage}.with.sources=[{{name: own, path: {path}, adapter: {adapter}}}]")
    command = [sys.executable, "-m", "posttrain.pipeline.cli", "run", "recipe=qwen3_0_6b/sft_dpo"]
    graph = [f"stages.{name}=null" for name in ("comparisons", "comparison_tokens", "reference", "dpo", "evaluate_dpo")]
    graph += ["stages.report=null", f"root={tmp_path / 'outputs'}", "tracking=none"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *sources, *graph], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert errors[0].startswith("error: base: train.base.hub_name=Qwen/Qwen3-0.6B-Base: not in the local cache")
    assert "Traceback" not in done.stderr
