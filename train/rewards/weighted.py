"""What PPO rewards: a reward model, checks of the answer, or a weighted sum of several.

N answers, B answers of a forward pass, T positions, H hidden size.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from posttrain.data.messages import Conversation
from posttrain.stage.errors import PosttrainError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response and what it answers."""

    conversation: Conversation
    """The conversation up to the response."""
    prompt_ids: list[int]
    """The same under the policy's template and tokenizer."""
    response_ids: list[int]
    text: str
    """What stands behind the reasoning, without special tokens."""
    ended: bool
    reference: str | None
    scorer: str | None
    reasoning: str = ""
    answered: bool = True
    """Whether the reasoning, where there is any, came to its end; if not, the text is empty."""


class Disputed(NamedTuple):
    """Rewards that several judges agreed on, more or less."""

    rewards: list[float]
    disagreement: list[float]
    """Standard deviation of what they say of each answer; logged, and no part of the reward."""


Reward = Callable[[Sequence[Answer]], list[float] | Disputed]


@dataclasses.dataclass(frozen=True)
class Component:
    """One term of the reward."""

    name: str
    weight: float
    clip: float | None
    reward: Reward
    is_penalty: bool = False
    """Whether 0 for all answers is as it should be."""


class Rewards:
    """The weighted sum of components."""

    def __init__(self, components: Sequence[Component]) -> None:
        self.components = components

    def score(self, answers: Sequence[Answer]) -> tuple[list[float], dict[str, list[float]]]:
        """Return the reward of each answer, and every component's share before its weight.

        Raises PosttrainError when a component is not finite, with counts; warns where one is the same for all answers,
        since then it teaches nothing.
        """
        totals = torch.zeros(len(answers), dtype=torch.float64)
        parts: dict[str, list[float]] = {}
        for component in self.components:
            found = component.reward(answers)
            if isinstance(found, Disputed):
                parts[f"{component.name}_disagreement"] = found.disagreement
                found = found.rewards
            values_N = torch.tensor(found, dtype=torch.float64)
            _check(component, values_N)
            if component.clip is not None:
                values_N = values_N.clamp(-component.clip, component.clip)
            totals += component.weight * values_N
            parts[component.name] = values_N.tolist()
        return totals.tolist(), parts


def _check(component: Component, values_N: torch.Tensor) -> None:
    name = component.name
    bad = int((~values_N.isfinite()).sum())
    if bad:
        raise PosttrainError(
            f"reward {name}: {bad} of {len(values_N)} values are not finite; look at the function or model behind it"
        )
    same = len(values_N) > 1 and bool((values_N == values_N[0]).all())
    if same and not (component.is_penalty and values_N[0] == 0):
        log.warning(
            "reward %s: all %d answers got %.4g, which teaches nothing", name, len(values_N), float(values_N[0])
        )
