"""Right-padded rows without a mask: the same losses and rewards, so that nothing keeps the fast kernels out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posttrain.train.nets.policy import wants_mask
from posttrain.train.rows.collate import collate_pairs, collate_sft

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
}
ROWS = [
    {"row": n, "input_ids": list(range(3, 3 + length)), "labels": list(range(3, 3 + length))}
    for n, length in enumerate((9, 4, 6))
]


def config_of(family: str, **more: Any) -> Any:
    return CONFIG_MAPPING[family](**{**SHAPE, **FAMILIES.get(family, {}), **more})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_row_has_the_loss_that_a_mask_gives_it(family: str, attention: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation=attention).eval()
    plain, masked = (collate_sft(ROWS, 0, with_mask=with_mask) for with_mask in (False, True))
    assert "attention_mask" not in plain
    losses = [
        model(**{name: batch[name] for name in batch if name not in ("row", "num_tokens")}).loss
        for batch in (plain, masked)
    ]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)


def test_a_reward_is_read_at_the_last_token_without_a_mask() -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of("llama", num_labels=1)).eval()
    batch = collate_sft(ROWS, 0, with_mask=True)
    plain = model(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(
        plain, model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    )
    alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in ROWS]
    torch.testing.assert_close(plain, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_pair_hides_nothing_from_the_model_but_counts_its_real_tokens() -> None:
    pairs = [
        {
            "row": 0,
            "prompt_ids": [5, 6],
            "chosen_ids": [7, 8, 9],
            "rejected_ids": [7],
            "ref_chosen_logps": 0.0,
            "ref_rejected_logps": 0.0,
        }
    ]
    plain, masked = (collate_pairs(pairs, 0, with_mask=with_mask) for with_mask in (False, True))
    assert "attention_mask" not in plain
    assert masked["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert int(plain["num_tokens"]) == int(masked["num_tokens"]) == 8


def test_models_that_balance_experts_keep_their_masks() -> None:
    mixtral = AutoModelForCausalLM.from_config(config_of("mixtral", num_local_experts=2, output_router_logits=True))
    assert wants_mask(mixtral)
    assert not wants_mask(AutoModelForCausalLM.from_config(config_of("llama")))
