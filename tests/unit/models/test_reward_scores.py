"""A reward is read at a sequence's last token, whatever stands beside it in the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from posttrain.models.reward_scores import score_sequences


def test_rewards_are_those_of_each_sequence_alone() -> None:
    shape = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(shape).eval()
    torch.nn.init.normal_(model.score.weight)
    prompt = list(range(3, 23))
    sequences = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [*prompt, 7], prompt, [*prompt, 30, 31]]
    with torch.no_grad():
        alone = [float(model(torch.tensor([ids])).logits) for ids in sequences]
    assert score_sequences(model, sequences, 0, [[0, 1, 4], [2, 3, 5]]) == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.1
