"""Packs are full, hold each row once, and rows in a pack do not see each other."""

import random

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.models.packing import best_fit_decreasing
from posttrain.stage.errors import UsageError
from posttrain.train.rows.collate import collate_packs, collate_sft
from posttrain.train.rows.dataset import as_dataset
from posttrain.train.rows.packs import pack_demonstrations

ROWS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14], [15, 16, 17, 18]]


def rows() -> Dataset:
    columns = {
        "id": [f"row/{i}" for i in range(len(ROWS))],
        "input_ids": pa.array(ROWS, pa.list_(pa.int32())),
        "labels": pa.array(ROWS, pa.list_(pa.int32())),
    }
    return as_dataset(pa.table(columns), pa.array([len(row) for row in ROWS]))


def test_best_fit_decreasing_by_hand() -> None:
    # capacity 10, longest first: 7 -> A(3 left); 6 -> B(4 left); 4 -> B, the fullest that takes it (0 left);
    # 3 -> A (0 left); 2 -> C
    assert best_fit_decreasing([3, 7, 2, 6, 4], 10) == [[1, 0], [3, 4], [2]]


def test_packing_keeps_every_row_once_and_beats_first_fit_in_order() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(8, 400) for _ in range(3000)]
    packs = best_fit_decreasing(lengths, 512)
    assert sorted(row for pack in packs for row in pack) == list(range(3000))
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 512
    # no packing can use fewer packs than the tokens fill; best fit comes within 1 % here
    assert len(packs) <= 1.01 * sum(lengths) / 512 + 1


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(UsageError, match="row 1 has 11 tokens, but pack_length=10"):
        best_fit_decreasing([3, 11], 10)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_get_the_logits_that_they_get_alone(attention: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            attn_implementation=attention,
        )
    ).eval()
    packed = pack_demonstrations(rows(), 9)
    batch = collate_packs(list(packed), pad_token_id=0, flatten=False)
    with torch.no_grad():
        logits_BTV = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for row, pack in enumerate(best_fit_decreasing([len(row) for row in ROWS], 9)):
            start = 0
            for index in pack:
                alone_TV = model(input_ids=torch.tensor([ROWS[index]]), use_cache=False).logits[0]
                end = start + len(ROWS[index])
                torch.testing.assert_close(logits_BTV[row, start:end], alone_TV, atol=1e-5, rtol=1e-5)
                start = end


def test_the_first_token_of_a_packed_row_is_never_a_target_and_padding_is_not_trained() -> None:
    packed = pack_demonstrations(rows(), 9)
    batch = collate_packs(list(packed), pad_token_id=0, flatten=False)
    starts = batch["position_ids"] == 0
    assert (batch["labels"][starts] == -100).all()
    trained = int((batch["labels"] != -100).sum())
    assert trained == sum(len(row) - 1 for row in ROWS)


def test_flattened_packs_hold_the_same_tokens_end_to_end() -> None:
    packed = pack_demonstrations(rows(), 9)
    flat = collate_packs(list(packed), pad_token_id=0, flatten=True)
    assert flat["input_ids"].tolist() == [[token for pack in packed for token in pack["input_ids"]]]
    assert int(flat["num_tokens"]) == flat["input_ids"].numel() == 14


def test_unpacked_rows_are_padded_on_the_right() -> None:
    batch = collate_sft([rows()[2], rows()[1]], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[13, 14, 0], [10, 11, 12]]
    assert batch["labels"].tolist() == [[13, 14, -100], [10, 11, 12]]
    assert "attention_mask" not in batch
    masked = collate_sft([rows()[2], rows()[1]], pad_token_id=0, with_mask=True)
    assert masked["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
