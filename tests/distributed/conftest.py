"""Inputs of the stages that run on several ranks, made once per module."""

from __future__ import annotations

import pytest
from rank_bench import Bench, make_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Without dropout: what is computed does not depend on how rows are spread over ranks."""
    return make_bench(tmp_path_factory.mktemp("bench"), attention_dropout=0.0)


@pytest.fixture(scope="module")
def dropout_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """With dropout: going on exactly needs the random state of every rank."""
    return make_bench(tmp_path_factory.mktemp("dropout"), attention_dropout=0.1)
