"""RLOO's and GRPO's updates; losses and metrics cost no synchronisation before they are logged.

B responses of a micro-batch, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from posttrain.train.config.group import GroupConfig
from posttrain.train.maths.group_losses import GroupOptions, group_losses, reduced, response_losses
from posttrain.train.methods.group_episodes import Advantages, collate_groups, finish_groups
from posttrain.train.nets.policy import balance_coefficient
from posttrain.train.rollouts.collect import Rollout
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rollouts.phases import PhaseTrainer


class GroupTrainer(PhaseTrainer):
    """Trains a policy with a fused output layer; a step is the same however it is cut into micro-batches."""

    loss_is_scaled_for_ga = True  # by the responses or tokens of the whole step

    def __init__(
        self,
        *,
        config: GroupConfig,
        advantages: Advantages,
        options: GroupOptions,
        kl_in_reward: float,
        where: str,
        **theirs: Any,
    ) -> None:
        """``theirs`` are the arguments of `PhaseTrainer`.

        ``kl_in_reward`` is what the KL to the reference is multiplied by where it is taken from the reward.
        """
        super().__init__(rollouts=config, passes=config.num_iterations, where=where, **theirs)
        self.options = options
        self.balance = balance_coefficient(self.model)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self.finish = partial(
            finish_groups, group_size=config.samples_per_prompt, advantages=advantages, kl_coef=kl_in_reward
        )

    def collect(self) -> Rollout:
        """Return the next rollout."""
        rest = self.rest_sampling_model
        return self.collector.collect(self.phase, self.sampling_model(), self.finish, self.stop, let_go=rest)

    def collate(self, episodes: Sequence[Episode], step_tokens: int) -> dict[str, Tensor]:
        """Return a micro-batch of a step that has so many response tokens over all ranks."""
        rollout_tokens = sum(len(episode.response_ids) for episode in self.episodes)
        return collate_groups(episodes, self.pad_token_id, step_tokens, rollout_tokens, with_mask=bool(self.balance))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return a micro-batch's part of the loss of the step, and log how far the policy moved."""
        mask = {name: inputs[name] for name in ("attention_mask",) if name in inputs}
        asked = {"output_router_logits": True} if self.balance else {}
        outputs = model(
            input_ids=inputs["input_ids"], labels=inputs["labels"], use_cache=False, fused_lm_head=True, **mask, **asked
        )
        mask_BT, old_BT = inputs["labels"][:, 1:] >= 0, inputs["old_logps"]
        given = outputs.log_probs, old_BT, mask_BT, inputs["advantages"], self.options
        if self.options.name == "rloo":
            terms = response_losses(*given)
        else:
            terms = group_losses(*given, inputs.get("reference_logps"))
        loss = reduced(terms.losses, mask_BT, self.options.name, self._parts(inputs), self.rollouts.max_new_tokens)
        if self.balance:
            loss = loss + self.balance * outputs.aux_loss / self.plan.accumulation
            self.sums.add("train", "aux_loss", outputs.aux_loss, 1)
        self.note_move(outputs.log_probs.detach() - old_BT, outputs.entropy.detach(), mask_BT)
        for name, values in terms.metrics.items():
            of_tokens = values.shape[1] > 1
            total = (values * mask_BT).double().sum() if of_tokens else values.double().sum()
            self.sums.add("train", name, total, mask_BT.sum() if of_tokens else len(values))
        return loss

    def _parts(self, inputs: dict[str, Any]) -> dict[str, Tensor | float]:
        """Return what losses are divided by: a rank's share of it, since engines average over ranks."""
        world = self.plan.world_size
        return {
            "step": inputs["step_tokens"].clamp(min=1) / world,
            "rollout": inputs["rollout_tokens"].clamp(min=1) / (world * self.rollouts.mini_batches),
            "responses": float(len(inputs["input_ids"]) * self.plan.accumulation),
        }
