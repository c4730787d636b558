"""What a sampled response is given for a score, and what the reward gets to see of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.data.messages import Conversation
from posttrain.train.rewards.weighted import Answer, Component, Rewards
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rollouts.scoring import EpisodeScorer


def asking(text: str) -> Conversation:
    return Conversation([{"role": "user", "content": text}])


PROMPTS = [
    {"conversation": asking(name).to_json(), "reference": f"right {name}", "scorer": "exact"}
    for name in ("first", "second")
]


def episode(place: int, row: int, text: str, ended: bool) -> Episode:
    return Episode(place, row, [1, 2], [3, 4, 5], np.zeros(3, np.float32), ended, text)


def test_a_response_that_did_not_end_pays_for_it() -> None:
    reward = Component("words", 2.0, None, lambda answers: [float(len(answer.text.split())) for answer in answers])
    scorer = EpisodeScorer(PROMPTS, Rewards([reward]), None, 1.0, 64, missing_eos_penalty=0.5)
    episodes = [episode(0, 0, "one two", True), episode(1, 0, "one two", False), episode(2, 1, "one", True)]
    scorer.score(episodes, policy=None, critic=None)
    assert [made.score for made in episodes] == pytest.approx([4.0, 3.5, 2.0])
    assert [made.components for made in episodes] == [{"words": 2.0}, {"words": 2.0}, {"words": 1.0}]


def test_a_reward_sees_the_prompt_of_its_own_response() -> None:
    seen: list[Answer] = []

    def note(answers: Sequence[Answer]) -> list[float]:
        seen.extend(answers)
        return [0.0, 1.0]

    scorer = EpisodeScorer(PROMPTS, Rewards([Component("note", 1.0, None, note)]), None, 1.0, 64, 0.0)
    scorer.score([episode(0, 1, "b", True), episode(1, 0, "a", False)], policy=None, critic=None)
    asked = [answer.conversation.messages[0]["content"] for answer in seen]
    answered = [(answer.reference, answer.text, answer.ended) for answer in seen]
    assert [(prompt, *rest) for prompt, rest in zip(asked, answered, strict=True)] == [
        ("second", "right second", "b", True),
        ("first", "right first", "a", False),
    ]
    assert [(answer.prompt_ids, answer.response_ids, answer.scorer) for answer in seen] == [
        ([1, 2], [3, 4, 5], "exact")
    ] * 2


@pytest.mark.parametrize("is_policy", [False, True])
def test_the_policy_is_let_go_before_models_that_do_not_need_it(is_policy: bool) -> None:
    """Two whole models are never there at once, but where the reference is the policy without its adapter."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape))
    did: list[str] = []

    @contextlib.contextmanager
    def reference() -> Iterator[Any]:
        did.append("reference")
        yield model

    def reward(answers: Sequence[Answer]) -> list[float]:
        did.append("reward")
        return [0.0, 1.0]

    rewards = Rewards([Component("note", 1.0, None, reward)])
    scorer = EpisodeScorer(PROMPTS, rewards, reference, 1.0, 64, 0.0, reference_is_policy=is_policy)
    rows = [episode(0, 1, "b", True), episode(1, 0, "a", True)]
    scorer.score(rows, policy=None, critic=None, let_go=lambda: did.append("let go"))
    before = [] if is_policy else ["let go"]
    assert did == [*before, "reference", "let go", "reward"]
