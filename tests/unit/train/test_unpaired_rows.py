"""Unpaired rows: whose response stands in for whose, and what reaches the model."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from build_artifacts import build_model, write_tokens

from posttrain.train.methods.kto_trainer import LabelSums
from posttrain.train.rows.collate import collate_unpaired
from posttrain.train.rows.dataset import FILLER
from posttrain.train.rows.unpaired import MISMATCHED, OWN, mismatched, read_unpaired, with_reference


@pytest.mark.parametrize("answers", [[1] * 9, [2, 2, 2], [3, 1, 1, 1], [4, 1, 3]])
def test_every_row_gets_the_response_of_another_prompt_and_gives_its_own_once(answers: list[int]) -> None:
    prompts = [[7, number] for number, count in enumerate(answers) for _ in range(count)]
    others = mismatched(prompts)
    assert sorted(others) == list(range(len(prompts)))
    assert all(prompts[row] != prompts[other] for row, other in enumerate(others))


def test_where_one_prompt_has_most_rows_the_others_still_never_meet_their_own() -> None:
    prompts = [[1]] * 5 + [[2], [3]]
    others = mismatched(prompts)
    assert sorted(others) == list(range(7))
    assert all(prompts[row] != prompts[others[row]] for row in (5, 6))
    assert mismatched([[1]]) == [0]
    assert mismatched([]) == []


def test_who_gets_whose_does_not_follow_the_order_of_the_file() -> None:
    prompts = [[number] for number in range(64)]
    steps = [(other - row) % 64 for row, other in enumerate(mismatched(prompts))]
    assert len(set(steps)) > 16
    backwards = mismatched(prompts[::-1])
    assert [63 - other for other in backwards[::-1]] == mismatched(prompts)


def test_a_mismatched_response_is_cut_to_fit_and_finds_its_reference(tmp_path: Path) -> None:
    model = build_model(tmp_path)
    of_all = {"source": "s", "language": "en", "task": "t"}
    rows = [
        {"id": "a", "prompt_ids": [5] * 120, "response_ids": [6] * 4, "label": True, **of_all},
        {"id": "b", "prompt_ids": [7], "response_ids": [8] * 100, "label": False, **of_all},
    ]
    tokens = write_tokens(tmp_path / "artifacts" / "labelled-0001", model, "unpaired", {"train": rows, "eval": []})
    read = read_unpaired(tokens, "train")
    assert list(read["mismatched_ids"]) == [[8] * 8, [6] * 4]  # 128 tokens are a row's most
    assert list(read["length"]) == [124, 101]
    assert len(read_unpaired(tokens, "eval")) == 0
    names = [("b", MISMATCHED, -4.0), ("b", OWN, -3.0), ("a", MISMATCHED, -2.0), ("a", OWN, -1.0)]
    reference = pa.table(dict(zip(("id", "response", "logp"), map(list, zip(*names, strict=True)), strict=True)))
    whole = with_reference(read, reference)
    assert (list(whole["ref_logps"]), list(whole["ref_mismatched_logps"])) == ([-1.0, -3.0], [-2.0, -4.0])


def test_a_batch_trains_responses_alone_and_does_not_count_fillers() -> None:
    rows = [
        {"row": 4, "prompt_ids": [1, 2], "response_ids": [3], "mismatched_ids": [4, 5], "label": True},
        {"row": FILLER, "prompt_ids": [6], "response_ids": [7, 8, 9], "mismatched_ids": [3], "label": False},
    ]
    rows = [{**row, "ref_logps": -1.5, "ref_mismatched_logps": -2.5} for row in rows]
    batch = collate_unpaired(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [6, 7, 8, 9]]
    assert batch["targets"].tolist() == [[-100, -100, 3, -100], [-100, 7, 8, 9]]
    assert batch["mismatched_ids"].tolist() == [[1, 2, 4, 5], [6, 3, 0, 0]]
    assert batch["mismatched_targets"].tolist() == [[-100, -100, 4, 5], [-100, 3, -100, -100]]
    assert (batch["desirable"].tolist(), batch["counted"].tolist()) == ([True, False], [True, False])
    assert (batch["ref_logps"].tolist(), batch["ref_mismatched_logps"].tolist()) == ([-1.5] * 2, [-2.5] * 2)
    assert (batch["row"].tolist(), int(batch["num_tokens"])) == ([4, FILLER], 7)
    assert not any("mask" in name for name in batch)
    masked = collate_unpaired(rows, pad_token_id=0, with_mask=True)
    assert masked["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert masked["mismatched_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_the_margin_is_between_means_and_absent_labels_leave_no_figure() -> None:
    sums = LabelSums(torch.device("cpu"))
    sums.add("train", "rewards/chosen", 6.0, 3)
    sums.add("train", "rewards/rejected", -1.0, 1)
    assert sums.take("train")["rewards/margins"] == 3.0
    sums.add("train", "rewards/chosen", 6.0, 3)
    sums.add("train", "rewards/rejected", 0.0, 0)
    assert sums.take("train") == {"rewards/chosen": 2.0}
