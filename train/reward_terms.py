"""Build the components of a reward from their configuration; whatever is wrong with one is said before a rollout."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.scorers import SCORERS, score
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.train.ppo_config import RewardTerm
from posttrain.train.reward_model_score import RewardModelScore
from posttrain.train.rewards import Answer, Component, Reward, Rewards


def build_rewards(
    terms: Sequence[RewardTerm],
    reward_model: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    scoring_tokens: int,
    where: str,
) -> Rewards:
    """Return the reward of a stage; ``where`` is its configuration path, for messages.

    Raises UsageError for a term that cannot be built, or two of the same name.
    """
    components = []
    for number, term in enumerate(terms):
        path = f"{where}.rewards.{number}"
        if term.kind == "reward_model":
            if reward_model is None:
                raise UsageError(f"{path}.kind: 'reward_model', but there is no inputs.reward; give one")
            reward: Reward = RewardModelScore(reward_model, tokenizer, device, scoring_tokens, term.normalize)
        else:
            reward = _BUILDERS[term.kind](term, path)
        components.append(Component(term.name or term.kind, term.weight, term.clip, reward))
    names = [component.name for component in components]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{where}.rewards: two terms are called {doubled!r}; give them names")
    return Rewards(components)


def _scorer(term: RewardTerm, path: str) -> Reward:
    if term.scorer is not None and term.scorer not in SCORERS:
        raise UsageError(f"{path}.scorer: {term.scorer!r}: unknown{did_you_mean(term.scorer, SCORERS)}")

    def one(answer: Answer) -> float:
        name = term.scorer or answer.scorer
        if name is None or answer.reference is None:
            raise UsageError(
                f"{path}: a prompt without {'scorer' if name is None else 'reference'}; use evaluation records as "
                "prompts, or name a scorer and give references"
            )
        return score(name, answer.text, answer.reference)

    return _each(one)


def _regex(term: RewardTerm, path: str) -> Reward:
    assert term.pattern is not None
    try:
        pattern = re.compile(term.pattern)
    except re.error as error:
        raise UsageError(f"{path}.pattern: {term.pattern!r}: {error}; mend the expression") from None
    return _each(lambda answer: float(pattern.search(answer.text) is not None))


def _python(term: RewardTerm, path: str) -> Reward:
    assert term.function is not None
    module, _, name = term.function.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{path}.function: {term.function!r}: {error}; give package.module:function") from None
    return _each(lambda answer: float(function(answer.messages, answer.text, answer.reference)))


def _length(term: RewardTerm, path: str) -> Reward:
    assert term.max_tokens is not None
    free = term.max_tokens
    return _each(lambda answer: -min(max(len(answer.response_ids) - free, 0) / free, 1.0))


def _each(one: Callable[[Answer], float]) -> Reward:
    return lambda answers: [one(answer) for answer in answers]


_BUILDERS: dict[str, Callable[[RewardTerm, str], Reward]] = {
    "scorer": _scorer,
    "regex": _regex,
    "python": _python,
    "length": _length,
}
