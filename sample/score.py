"""The reward of samples under a reward model, as a score that `choose.select` takes."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from posttrain.models.batching import by_length
from posttrain.models.reward_scores import score_sequences
from posttrain.sample.sampling import Prompts, Sample, Score


def by_reward(model: PreTrainedModel, pad_token_id: int, batch_size: int) -> Score:
    """Return a score that is the raw reward of prompt and sample under a reward model with the sampler's tokenizer."""

    def score(prompts: Prompts, samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
        sequences = [[*prompt, *s.token_ids] for prompt, own in zip(prompts, samples, strict=True) for s in own]
        rewards = iter(score_sequences(model, sequences, pad_token_id, by_length(sequences, batch_size)))
        return [[next(rewards) for _ in own] for own in samples]

    return score
