"""Score episodes: the critic's values, the reference's log-probabilities, the reward."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from posttrain.data.messages import Conversation
from posttrain.models.batching import by_tokens
from posttrain.models.token_log_probs import (
    backbone_and_head,
    response_batch,
    response_log_probs,
    split_by_response,
    states_before,
)
from posttrain.stage import heartbeat
from posttrain.train.nets.actor_critic import ActorCritic
from posttrain.train.rewards.weighted import Answer, Rewards
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rows.dataset import Row

Frozen = Callable[[], contextlib.AbstractContextManager[Any]]
"""Gives the reference model for the time of a ``with`` block."""


@dataclasses.dataclass(frozen=True)
class EpisodeScorer:
    """Fills in what the updates need of episodes that were sampled."""

    prompts: Sequence[Row]
    rewards: Rewards
    reference: Frozen | None
    temperature: float
    """Of the log-probabilities, as of sampling."""
    scoring_tokens: int
    """Tokens of a forward pass, padding included."""
    missing_eos_penalty: float
    reference_is_policy: bool = False
    """Whether the reference is the policy under another adapter, or none."""

    @torch.no_grad()
    def score(
        self,
        episodes: list[Episode],
        policy: Any,
        critic: ActorCritic | None,
        *,
        drawn_elsewhere: bool = False,
        let_go: Callable[[], None] | None = None,
    ) -> None:
        """Fill in values, reference log-probabilities and scores.

        Where a server drew the responses, ``drawn_elsewhere``, also the policy's own log-probabilities. ``let_go`` is
        called as soon as ``policy`` and ``critic`` are no more needed.
        """
        if drawn_elsewhere:
            for episode in episodes:
                episode.sampler_logps = episode.logps
            self._log_probs(episodes, policy, "logps")
        if critic is not None:
            self._value(episodes, critic)
        if let_go is not None and not self.reference_is_policy:
            let_go()
        if self.reference is not None:
            with self.reference() as reference:
                self._log_probs(episodes, reference, "reference_logps")
        if let_go is not None:
            let_go()
        self._reward(episodes)

    def _batches(self, episodes: Sequence[Episode]) -> list[list[int]]:
        return by_tokens([episode.length for episode in episodes], self.scoring_tokens)

    def _log_probs(self, episodes: list[Episode], model: Any, name: str) -> None:
        prompts, responses = [e.prompt_ids for e in episodes], [e.response_ids for e in episodes]
        found = response_log_probs(model, prompts, responses, self._batches(episodes), self.temperature)
        for number, logps in found.items():
            setattr(episodes[number], name, logps)

    def _value(self, episodes: list[Episode], model: ActorCritic) -> None:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        for rows in self._batches(episodes):
            part = [episodes[row] for row in rows]
            batch = response_batch([(episode.prompt_ids, episode.response_ids) for episode in part])
            ids_BT, chosen_BT = (tensor.to(device) for tensor in batch)
            hidden_NH = None
            if model.critic.trunk is None:
                hidden_NH = states_before(backbone_and_head(model.policy)[0], ids_BT, chosen_BT)
            values_N = model.critic(ids_BT, chosen_BT, hidden_NH)
            for episode, values in zip(part, split_by_response(values_N, [e.response_ids for e in part]), strict=True):
                episode.values = values
            heartbeat.pulse()
        model.train(was_training)

    def _reward(self, episodes: list[Episode]) -> None:
        totals, components = self.rewards.score([self._answer(episode) for episode in episodes])
        for number, episode in enumerate(episodes):
            episode.score = totals[number] - self.missing_eos_penalty * (not episode.ended)
            episode.components = {name: values[number] for name, values in components.items()}

    def _answer(self, episode: Episode) -> Answer:
        row = self.prompts[episode.row]
        return Answer(
            conversation=Conversation.from_json(row["conversation"]),
            prompt_ids=episode.prompt_ids,
            response_ids=episode.response_ids,
            text=episode.text,
            ended=episode.ended,
            reference=row["reference"],
            scorer=row["scorer"],
            reasoning=episode.reasoning,
            answered=episode.answered,
        )
