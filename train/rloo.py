"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024): no critic.

accelerate launch -m posttrain.train.rloo inputs.model=DIR inputs.data=DIR inputs.reward=DIR output=DIR beta=0.05
"""

from __future__ import annotations

from functools import partial

from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.rloo import RlooConfig
from posttrain.train.maths.group_advantages import leave_one_out_advantages
from posttrain.train.methods.group import Method, run_group


def run(config: RlooConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    advantages = partial(
        leave_one_out_advantages, group_size=config.samples_per_prompt, normalize=config.normalize_advantages
    )
    return run_group(config, context, Method("train.rloo", "rloo", {}, advantages, kl_in_reward=True))


if __name__ == "__main__":
    stage_main(run, RlooConfig, kind="model")
