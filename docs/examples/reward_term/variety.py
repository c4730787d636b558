"""A reward of your own: the share of a response's words that it has not said before.

posttrain run recipe=… 'train.ppo.rewards=[{kind: reward_model}, {kind: python, function: "variety:variety"}]'

The module is found in the folder where `posttrain` is started, or on PYTHONPATH; its file is part of the key.
"""

from __future__ import annotations


def variety(messages: list[dict[str, str]], response: str, reference: str | None) -> float:
    """Return 1 for a response without repetition, less the more it repeats, and 0 for an empty one."""
    words = response.casefold().split()
    return len(set(words)) / len(words) if words else 0.0
