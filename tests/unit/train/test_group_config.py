"""Knobs of RLOO and GRPO, and the pipeline that runs them."""

import pytest

from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.graph import build_graph
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build
from posttrain.train.config.grpo import GrpoConfig
from posttrain.train.config.rloo import RlooConfig

WRONG = [
    (
        RlooConfig,
        {"samples_per_prompt": 1},
        "train.x.samples_per_prompt: 1: input should be greater than or equal to 2",
    ),
    (RlooConfig, {"rollout_batch_size": 60}, "rollout_batch_size=60 is not a multiple of global_batch_size=64; use 64"),
    (RlooConfig, {"eval_steps": 5}, "eval_steps=5: prompts are not held out"),
    (RlooConfig, {"loss": "grpo"}, "train.x.loss: unknown key"),
    (GrpoConfig, {"rollout_batch_size": 64, "samples_per_prompt": 3}, "=64 is not a multiple of samples_per_prompt=3"),
    (GrpoConfig, {"loss": "ppo"}, "train.x.loss: 'ppo': input should be 'grpo'"),
    (GrpoConfig, {"delta": 1.1}, "delta=1.1 must be above 1 + the upper clip range"),
    (GrpoConfig, {"loss": "luspo"}, "loss=luspo is defined for importance_sampling=sequence"),
    (GrpoConfig, {"loss": "cispo"}, "loss=cispo cuts ratios at clip_range_high, counted from 0; give one"),
    (GrpoConfig, {"beta": 0, "alarms": {"max_kl": 5.0}}, "alarms.max_kl=5.0 needs the reference, which beta=0"),
]


@pytest.mark.parametrize(("schema", "values", "said"), WRONG)
def test_bad_knobs_get_one_clear_line(schema: type, values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        build(schema, values, "train.x")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["train.grpo", "train.rloo"])
def test_the_pipeline_shape_runs_either(stage: str) -> None:
    config = compose_config(["recipe=real_small", "pipeline=sft_reward_grpo", f"stages.grpo.run={stage}"])
    (made,) = [planned for planned in build_graph(config) if planned.name == "grpo"]
    assert made.type.run == stage
    assert made.inputs == {"model": "sft", "data": "prompt_tokens", "reward": "reward"}
