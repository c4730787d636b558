"""What a configuration declares is found whatever its family calls it."""

from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    MambaConfig,
    MptConfig,
    PretrainedConfig,
)

from posttrain.models.declared import context_length, end_token_ids

PICTURES = LlavaConfig(text_config={"model_type": "llama", "max_position_embeddings": 77})


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(max_position_embeddings=77), GPT2Config(n_positions=77), MptConfig(max_seq_len=77), PICTURES],
    ids=lambda config: config.model_type,
)
def test_positions_have_many_names(config: PretrainedConfig) -> None:
    assert context_length(config) == 77


@pytest.mark.parametrize("config", [MambaConfig(), BloomConfig()], ids=lambda config: config.model_type)
def test_some_families_have_no_limit(config: PretrainedConfig) -> None:
    assert context_length(config) is None


def test_end_tokens_come_once_in_order() -> None:
    assert end_token_ids(5, None, [7, 5], [9]) == [5, 7, 9]
    assert end_token_ids(None) == []
