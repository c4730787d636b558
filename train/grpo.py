"""Group relative policy optimisation (Shao et al. 2024) with the losses that TRL has: no critic.

accelerate launch -m posttrain.train.grpo inputs.model=DIR inputs.data=DIR inputs.reward=DIR output=DIR loss=dr_grpo
"""

from __future__ import annotations

from functools import partial

from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.grpo import GrpoConfig
from posttrain.train.maths.group_advantages import group_relative_advantages
from posttrain.train.methods.group import Method, run_group


def run(config: GrpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    advantages = partial(group_relative_advantages, group_size=config.samples_per_prompt, scale=config.scale_rewards)
    loss_options = {
        "sequence": config.importance_sampling == "sequence",
        "delta": config.delta,
        "off_policy_threshold": config.off_policy_threshold,
    }
    method = Method("train.grpo", config.loss, loss_options, advantages, kl_in_reward=False)
    return run_group(config, context, method)


if __name__ == "__main__":
    stage_main(run, GrpoConfig, kind="model")
