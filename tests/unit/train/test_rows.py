"""Token artifacts are read for the model that they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_artifacts import build_demonstrations, build_model

from posttrain.data.chat.tokenizer import load_tokenizer, require_tokens
from posttrain.stage.errors import UsageError
from posttrain.train.rows.dataset import FILLER, fill_up, read_demonstrations


def test_tokens_of_another_tokenizer_with_the_same_template_are_refused(tmp_path: Path) -> None:
    model, other = build_model(tmp_path), build_model(tmp_path, name="other-0001", vocab_size=300)
    tokens = build_demonstrations(tmp_path, model)
    require_tokens(tokens, "demonstration", load_tokenizer(model))
    with pytest.raises(UsageError, match=r"demos-0001: made with tokenizer .* tokenize with this model"):
        require_tokens(tokens, "demonstration", load_tokenizer(other))


def test_tokens_of_other_records_are_refused(tmp_path: Path) -> None:
    model = build_model(tmp_path)
    tokens = build_demonstrations(tmp_path, model)
    with pytest.raises(UsageError, match="holds demonstration tokens; this stage needs comparison tokens"):
        require_tokens(tokens, "comparison", load_tokenizer(model))


def test_fillers_complete_a_batch_and_say_that_they_are_none(tmp_path: Path) -> None:
    rows = read_demonstrations(build_demonstrations(tmp_path, build_model(tmp_path), count=40), "eval")
    assert list(rows["row"]) == [0, 1, 2, 3, 4]
    assert list(fill_up(rows, 4)["row"]) == [0, 1, 2, 3, 4, FILLER, FILLER, FILLER]
    assert list(fill_up(rows, 5)["row"]) == [0, 1, 2, 3, 4]
