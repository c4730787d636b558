"""Policy and critic as one module, so that one engine trains, shards and saves both.

B episodes, T positions, N response tokens, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.models.adapters import without_adapter_wrapper
from posttrain.models.load import reward_moments
from posttrain.models.token_log_probs import backbone_and_head, head_log_probs, states_before


class Critic(nn.Module):
    """Values of states: a trunk of its own, or none where it sits on the policy's, and a head of one output.

    Its values are those of a reward model after ``(score - mean) / std``.
    """

    def __init__(self, trunk: nn.Module | None, head: nn.Module, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.mean = mean
        self.std = std

    def forward(self, ids_BT: Tensor, chosen_BT: Tensor, policy_hidden_NH: Tensor | None = None) -> Tensor:
        """Return ``values_N``: the value of the state in which each chosen token is taken, so before it.

        ``policy_hidden_NH`` are the policy's hidden states there, for a critic without a trunk.
        """
        hidden_NH = policy_hidden_NH if self.trunk is None else states_before(self.trunk, ids_BT, chosen_BT)
        values_N: Tensor = self.head(hidden_NH).squeeze(-1)
        precise_N = values_N.to(torch.promote_types(values_N.dtype, torch.float32))
        return (precise_N - self.mean) / self.std


class ActorCritic(nn.Module):
    """What PPO trains."""

    def __init__(self, policy: Any, critic: Critic) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.config = policy.config  # `transformers.Trainer` looks into it
        self._no_split_modules = policy._no_split_modules  # FSDP wraps these

    def forward(self, input_ids: Tensor, chosen: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value, each ``_N``, of the chosen tokens of a batch."""
        backbone, head = backbone_and_head(self.policy)
        hidden_NH = states_before(backbone, input_ids, chosen)
        logps_N, entropies_N = head_log_probs(self.policy, head, hidden_NH, input_ids[chosen], temperature)
        return logps_N, entropies_N, self.critic(input_ids, chosen, hidden_NH)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward pass, in both trunks."""
        for model in (self.policy, self.critic.trunk):
            if model is not None:
                enable: Any = model.activation_checkpointing_enable
                enable(**kwargs)


def critic_from_reward_model(model: Any) -> Critic:
    """Return a critic with a reward model's trunk and head, whose first values are the model's own rewards."""
    inner = without_adapter_wrapper(model)
    mean, std = reward_moments(model)
    return Critic(inner.base_model, inner.score, mean, std)


def fresh_head(policy: Any) -> nn.Linear:
    """Return a value head of zeros for hidden states of a policy's trunk."""
    head = nn.Linear(policy.config.get_text_config().hidden_size, 1, bias=False, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    return head
