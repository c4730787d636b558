"""What a sampled response is given for a score, and what the reward gets to see of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

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
