"""The stage graph: order, kinds, and messages that name the place to mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.overlap import unguarded
from posttrain.pipeline.local.launch import local_launcher
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build

SOURCES = [{"name": "mine", "path": "rows.jsonl"}]


def chain(**changes: Any) -> dict[str, Any]:
    """A valid SFT pipeline, as the configuration states it, with stages replaced or added."""
    stages: dict[str, Any] = {
        "sft": {"run": "train.sft", "inputs": {"model": "base", "data": "tokens"}},
        "tokens": {"run": "data.tokenize", "inputs": {"data": "rows", "model": "base"}},
        "rows": {"run": "data.curate", "with": {"record_type": "demonstration", "sources": SOURCES}},
        "base": {"run": "train.base", "with": {"path": "model"}},
    }
    return {"stages": {**stages, **changes}}


def graph_of(values: dict[str, Any]) -> list[Any]:
    return build_graph(build(PipelineConfig, values, ""))


def message_of(values: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        graph_of(values)
    return str(caught.value)


def test_each_stage_stands_after_those_it_needs() -> None:
    names = [stage.name for stage in graph_of(chain())]
    assert sorted(names) == ["base", "rows", "sft", "tokens"]
    assert names.index("tokens") > max(names.index("rows"), names.index("base"))
    assert names[-1] == "sft"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sft": {"run": "train.stf", "inputs": {"model": "base", "data": "tokens"}}},
            "stages.sft.run: 'train.stf': no such stage type; did you mean 'train.sft'?",
        ),
        (
            {"sft": {"run": "train.sft", "inputs": {"model": "base", "data": "tokes"}}},
            "stages.sft.inputs.data: 'tokes': no such stage; did you mean 'tokens'?",
        ),
        (
            {"sft": {"run": "train.sft", "inputs": {"modle": "base", "data": "tokens"}}},
            "stages.sft.inputs.modle: train.sft has no such input; did you mean 'model'?",
        ),
        (
            {"sft": {"run": "train.sft", "inputs": {"model": "base"}}},
            "stages.sft.inputs.data: missing; name the stage that makes the tokens",
        ),
        (
            {"sft": {"run": "train.sft", "inputs": {"model": "rows", "data": "tokens"}}},
            "stages.sft.inputs.model: rows makes dataset, but train.sft takes model",
        ),
        (
            {"report": {"run": "evaluate.report", "inputs": {"anything": "demo"}}, "demo": {"run": "data.demo"}},
            "stages.report.inputs.anything: demo makes sources, but evaluate.report takes scores or drift or "
            "selection or judgement or verdict or model or reward_model or dataset or tokens or data_page",
        ),
        (
            {"base": {"run": "train.base", "inputs": {"data": "base"}, "with": {"path": "model"}}},
            "stages.base.inputs.data: base makes model, but train.base takes dataset",
        ),
        ({"a/b": {"run": "data.demo"}}, "stages.a/b: a stage's name is a folder's name; use letters, digits, - and _"),
    ],
)
def test_a_wrong_graph_is_one_line(changes: dict[str, Any], message: str) -> None:
    assert message_of(chain(**changes)) == message


def test_a_cycle_is_shown_as_one() -> None:
    looped = chain(
        base={"run": "train.sft", "inputs": {"model": "sft", "data": "tokens"}},
    )
    message = message_of(looped)
    assert "is a cycle" in message
    assert "base" in message and "sft" in message


def test_null_takes_away_what_a_graph_shape_gave() -> None:
    values = chain(sft=None, tokens=None)
    values["stages"]["evaluate"] = {"run": "evaluate.policy", "inputs": {"model": "base", "items": None}}
    stages = {stage.name: stage for stage in graph_of(values)}
    assert set(stages) == {"rows", "base", "evaluate"}
    assert stages["evaluate"].inputs == {"model": "base"}


def test_a_stage_that_is_taken_away_takes_the_inputs_with_it_that_can_do_without() -> None:
    evaluate = {"run": "evaluate.policy", "inputs": {"model": "base", "items": "items"}}
    items = {"run": "data.curate", "with": {"record_type": "evaluation", "sources": SOURCES}}
    for taken_away in (None, {**items, "if_given": None}):
        stages = {stage.name: stage for stage in graph_of(chain(evaluate=evaluate, items=taken_away))}
        assert "items" not in stages
        assert stages["evaluate"].inputs == {"model": "base"}
    stages = {stage.name: stage for stage in graph_of(chain(evaluate=evaluate, items={**items, "if_given": "a.jsonl"}))}
    assert stages["evaluate"].inputs == {"model": "base", "items": "items"}
    needed = message_of(chain(base=None, rows=None))
    assert needed == "stages.sft.inputs.model: missing; name the stage that makes the model"


def test_datasets_can_be_given_to_curation_under_any_name() -> None:
    rows = {"run": "data.curate", "with": {"record_type": "demonstration", "sources": SOURCES}}
    stages = {stage.name: stage for stage in graph_of(chain(more={**rows, "inputs": {"before": "rows"}}))}
    assert stages["more"].inputs == {"before": "rows"}
    message = message_of(chain(more={**rows, "inputs": {"before": "base"}}))
    assert message == "stages.more.inputs.before: base makes model, but data.curate takes dataset"


def test_datasets_that_do_not_know_the_items_of_their_models_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"run": "data.curate", "with": {"record_type": "demonstration", "sources": SOURCES}}
    items = {"run": "data.curate", "with": {"record_type": "evaluation", "sources": SOURCES}}
    evaluate = {"run": "evaluate.policy", "inputs": {"model": "sft", "items": "items"}}
    gold = {"run": "data.curate", "with": {"record_type": "comparison", "sources": [{**SOURCES[0], "split": "eval"}]}}
    open_to_it = chain(items=items, evaluate=evaluate, gold=gold, again=evaluate)
    line = "rows: may train on what items asks; stages.rows.inputs.items=items holds that out"
    assert unguarded(graph_of(open_to_it)) == [line]
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        prepare(build(PipelineConfig, {**open_to_it, "seed": seed}, ""))
    assert capsys.readouterr().err.splitlines() == [f"note: {line}"]
    guarded = chain(items=items, evaluate=evaluate, rows={**rows, "inputs": {"items": "items"}})
    assert unguarded(graph_of(guarded)) == []


def test_a_stage_takes_the_defaults_then_its_node_then_its_own_overrides() -> None:
    values = chain()
    values["train"] = {"sft": {"epochs": 3, "optimizer": {"learning_rate": 0.5, "weight_decay": 0.1}}}
    values["stages"]["sft"]["with"] = {"optimizer": {"learning_rate": 0.25}}
    sft = graph_of(values)[-1].config
    assert (sft.epochs, sft.optimizer.learning_rate, sft.optimizer.weight_decay) == (3, 0.25, 0.1)
    assert sft.global_batch_size == 64


def test_messages_name_the_place_where_the_knob_was_given() -> None:
    values = chain()
    values["train"] = {"sft": {"epocs": 3}}
    values["stages"]["sft"]["with"] = {"global_batch_size": "many", "optimizer": {"learnin_rate": 1}}
    values["data"] = {"tokenize": {"max_length": 1}}
    assert sorted(message_of(values).splitlines()) == [
        "data.tokenize.max_length: 1: input should be greater than or equal to 8",
        "stages.sft.with.global_batch_size: 'many': input should be a valid integer, unable to parse string as an "
        "integer",
        "stages.sft.with.optimizer.learnin_rate: unknown key; did you mean 'learning_rate'?",
        "train.sft.epocs: unknown key; did you mean 'epochs'?",
    ]


def test_a_knob_deep_in_a_list_is_named_with_the_nearest_one() -> None:
    values = chain(
        rows={"run": "data.curate", "with": {"record_type": "prompt", "sources": [{"name": "a", "paht": "x"}]}}
    )
    assert "stages.rows.with.sources.0.paht: unknown key; did you mean 'path'?" in message_of(values).splitlines()


def test_a_misspelt_knob_of_a_stage_type_outside_the_graph_is_refused() -> None:
    given = ["recipe=own/sft", "paths.model=m", "paths.demonstrations=d"]
    assert build_graph(compose_config([*given, "train.dpo.beta=0.2", "adapter=lora"]))
    with pytest.raises(UsageError, match=r"^train\.dpo\.betta: unknown key; did you mean 'beta'\?$"):
        build_graph(compose_config([*given, "train.dpo.betta=0.2"]))
    with pytest.raises(UsageError, match=r"^train\.ppo\.clip_range: 'x': "):
        build_graph(compose_config([*given, "train.ppo.clip_range=x"]))


@pytest.mark.parametrize(("group", "kinds"), [("fsdp2", ("fsdp", "ddp")), ("ddp", ("ddp", "ddp"))])
def test_stages_that_sample_have_as_many_processes_as_those_that_train(group: str, kinds: tuple[str, str]) -> None:
    spread = [f"distributed={group}", "distributed.num_processes=2", "distributed.device=cpu"]
    config = compose_config(["recipe=demo_distill", *spread, "stages.evaluate_dpo.distributed=single"])
    stages = {stage.name: stage for stage in build_graph(config)}
    launcher = local_launcher(config, list(stages.values()))
    found = {name: launcher.distributed(stage) for name, stage in stages.items()}
    assert (found["sft"].kind, found["best"].kind) == kinds
    assert (found["best"].num_processes, found["best"].fsdp) == (2, None)
    assert {found[name].num_processes for name in ("evaluate_dpo", "drift_sft", "items")} == {1}
    of_many, of_one = (launcher.command(stages[name], []).arguments for name in ("best", "evaluate_dpo"))
    assert "accelerate.commands.launch" in of_many and of_many[of_many.index("--num_processes") + 1] == "2"
    assert of_one[1:] == ["-m", "posttrain.evaluate.policy"]


def test_an_ensemble_has_as_many_inputs_as_one_likes_and_no_others() -> None:
    judged = {
        "pairs": {"run": "data.curate", "with": {"record_type": "comparison", "sources": SOURCES}},
        "pair_tokens": {"run": "data.tokenize", "inputs": {"data": "pairs", "model": "base"}},
        **{
            f"reward_{n}": {"run": "train.reward", "inputs": {"model": "sft", "data": "pair_tokens"}, "seed": n}
            for n in (1, 2)
        },
    }
    inputs = {"model": "reward_1", "model_2": "reward_2", "data": "pair_tokens"}
    stages = graph_of(chain(**judged, together={"run": "evaluate.reward", "inputs": inputs}))
    assert {stage.name: stage.seed for stage in stages if stage.type.run == "train.reward"} == {
        "reward_1": 1,
        "reward_2": 2,
    }
    wrong = {**inputs, "model_2": "sft"}
    said = message_of(chain(**judged, together={"run": "evaluate.reward", "inputs": wrong}))
    assert said.startswith("stages.together.inputs.model_2: sft makes model, but evaluate.reward takes reward_model")
    misnamed = {**inputs, "models": "reward_2"}
    said = message_of(chain(**judged, together={"run": "evaluate.reward", "inputs": misnamed}))
    assert "stages.together.inputs.models: evaluate.reward has no such input" in said


def test_a_judge_of_ours_takes_the_device_and_one_behind_a_server_does_not() -> None:
    scores = {"run": "evaluate.policy", "inputs": {"model": "sft", "data": "tokens"}}
    inputs = {"before": "scores", "after": "scores"}
    judged = {"run": "evaluate.judge", "inputs": inputs, "with": {"judge": {"model": "m"}}}
    local = {**judged, "inputs": {**inputs, "judge": "sft"}}
    stages = {stage.name: stage for stage in graph_of(chain(scores=scores, served=judged, local=local))}
    assert (stages["served"].on_device, stages["local"].on_device, stages["sft"].on_device) == (False, True, True)
