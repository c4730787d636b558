"""The reward of samples under a reward model or several, as a score that `choose.select` takes.

M models, N sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.models.batching import by_length
from posttrain.models.load import load_reward_model, reward_moments
from posttrain.models.processes import device
from posttrain.models.reward_scores import score_sequences
from posttrain.sample.sampling import Prompts, Sample, Score
from posttrain.stage.errors import UsageError


def by_reward(model: PreTrainedModel, pad_token_id: int, batch_size: int) -> Score:
    """Return a score that is the raw reward of prompt and sample under a reward model with the sampler's tokenizer."""

    def score(prompts: Prompts, samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
        sequences = [[*prompt, *s.token_ids] for prompt, own in zip(prompts, samples, strict=True) for s in own]
        rewards = iter(score_sequences(model, sequences, pad_token_id, by_length(sequences, batch_size)))
        return [[next(rewards) for _ in own] for own in samples]

    return score


def members(inputs: Mapping[str, Path], name: str) -> list[Path]:
    """Return the artifacts of an ensemble: the input of that name, and those called by it, ``_`` and anything."""
    return [inputs[key] for key in sorted(inputs) if key == name or key.startswith(f"{name}_")]


def require_tokenizer(directories: Sequence[Path], digest: str, where: str) -> None:
    """Raise UsageError, with the artifact's name, where a reward model reads other tokens than it will be given."""
    for directory in directories:
        if tokenizer_digest(load_tokenizer(directory)) != digest:
            raise UsageError(f"{where}: {directory.name} differs in tokenizer from the others; train all from one base")


def member_rewards(
    directories: Sequence[Path],
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    batch_size: int,
    dtype: str,
    *,
    normalize: bool = True,
) -> NDArray[np.float64]:
    """Return the rewards ``MN`` of token sequences, one model after the other in memory.

    They count from each model's own mean, in its standard deviations, unless ``normalize`` leaves them as they are.
    """
    rows = []
    for directory in directories:
        model = load_reward_model(directory, dtype).eval().to(device())
        rewards_N = np.array(score_sequences(model, sequences, pad_token_id, by_length(sequences, batch_size)))
        mean, std = reward_moments(model) if normalize else (0.0, 1.0)
        rows.append((rewards_N - mean) / std)
    return np.stack(rows)
