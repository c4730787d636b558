"""RLOO's and GRPO's updates: the losses are TRL's; rollouts, order, checkpoints and metrics are ours.

B responses of a micro-batch, T positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import trl
from torch import Tensor
from transformers import Trainer

from posttrain.models.adapters import without_adapter_wrapper
from posttrain.train.config.group import GroupConfig
from posttrain.train.methods.group_episodes import Advantages, collate_groups, finish_groups
from posttrain.train.rollouts.collect import Rollout
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rollouts.phases import PhaseTrainer

_OUR_NAMES = {"clip_ratio/region_mean": "policy/clipfrac", "kl": "policy/kl"}
_DUPLICATE = "entropy"


class GroupTrainer(PhaseTrainer):
    """Mixin in front of TRL's trainers; a step is the same however it is cut into micro-batches."""

    def __init__(
        self, *, config: GroupConfig, advantages: Advantages, kl_in_reward: bool, where: str, **theirs: Any
    ) -> None:
        """``theirs`` are the arguments of `PhaseTrainer`.

        ``kl_in_reward`` says whether the pull to the reference is a part of the reward, or a term of TRL's loss.
        """
        super().__init__(rollouts=config, passes=config.num_iterations, where=where, **theirs)
        in_reward, in_loss = (config.beta, 0.0) if kl_in_reward else (0.0, config.beta)
        self.beta = in_loss  # given to TRL's constructor, it would have it load a reference of its own
        self.finish = partial(
            finish_groups, group_size=config.samples_per_prompt, advantages=advantages, kl_coef=in_reward
        )
        inner = without_adapter_wrapper(self.model)
        self.takes_positions = "position_ids" in inspect.signature(inner.forward).parameters

    def collect(self) -> Rollout:
        """Return the next rollout."""
        return self.collector.collect(self.phase, self.sampling_model(), self.finish, self.stop)

    def collate(self, episodes: Sequence[Episode], step_tokens: int) -> dict[str, Tensor]:
        """Return a micro-batch of a step that has so many response tokens over all ranks."""
        rollout_tokens = sum(len(episode.response_ids) for episode in self.episodes)
        return collate_groups(episodes, self.pad_token_id, step_tokens, rollout_tokens)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss of a micro-batch, and log how far the policy moved."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logps_BT, entropies_BT = self._computed
        chosen_BT = inputs["completion_mask"].bool()
        self.note_move((logps_BT - inputs["old_per_token_logps"])[chosen_BT], entropies_BT[chosen_BT])
        metrics = self._metrics["train"]
        for theirs, ours in _OUR_NAMES.items():
            if theirs in metrics:
                metrics[ours].extend(metrics.pop(theirs))
        metrics.pop(_DUPLICATE, None)
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> Any:
        """Compute as TRL does, but count positions from where a row begins, as it was when the response was sampled."""
        if self.takes_positions:
            positions_BT = (attention_mask.cumsum(1) - 1).clamp(min=0)
            model = partial(model, position_ids=positions_BT)
        inherited: Any = super()
        logps_BT, entropies_BT, auxiliary = inherited._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, **options
        )
        self._computed = logps_BT.detach(), entropies_BT.detach()
        return logps_BT, entropies_BT, auxiliary


class _ReadyBatches(Trainer):
    """Goes between our mixins and TRL's trainer, whose own `_prepare_inputs` samples; our batches are samples."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = Trainer._prepare_inputs(self, inputs)
        return prepared


class RlooTrainer(GroupTrainer, _ReadyBatches, trl.RLOOTrainer):
    """REINFORCE with a leave-one-out baseline."""


class GrpoTrainer(GroupTrainer, _ReadyBatches, trl.GRPOTrainer):
    """Group relative policy optimisation."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss, where need be with the share that a micro-batch has in the step's tokens."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.loss_type == "bnpo":  # TRL gives every micro-batch the same share, however many tokens it has
            micro_batches = self.plan.accumulation * self.plan.world_size
            loss = loss * inputs["completion_mask"].sum() * micro_batches / inputs["step_tokens"]
        return loss
