"""What a batch takes of memory, prompts that begin alike or are long, and what happens when memory runs out."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from byte_models import VOCABULARY, build, byte_tokenizer, prompts_of
from torch import Tensor

from posttrain.sample.engine import decoder as decoder_module
from posttrain.sample.engine.decoder import Decoder
from posttrain.sample.engine.kv_cache import RowCache
from posttrain.sample.engine.requests import length_groups
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import PosttrainError


def tokens_of(name: str, prompts: list[list[int]], params: Any, rows: int = 64) -> list[list[list[int]]]:
    sampler = Sampler(build(name).double(), byte_tokenizer(), max_batch_size=rows)
    return [[sample.token_ids for sample in samples] for samples in sampler.generate(prompts, params)]


class Watched:
    """Notes how many tokens each cache has room for, and how large masks are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.mask, self.run = 0, 0, 0
        move, forward = RowCache.move_columns, Decoder._forward

        def moved(cache: RowCache, rows: slice, source: slice, target: slice, columns: int) -> None:
            self.room = max(self.room, cache.rows * columns)
            move(cache, rows, source, target, columns)

        def ran(own: Decoder, cache: RowCache, ids: Tensor, mask: Tensor, positions: Tensor, last: int) -> Tensor:
            self.mask = max(self.mask, ids.shape[0] * ids.shape[1] * mask.shape[1])
            self.run += ids.numel() if ids.shape[1] > 1 else 0
            return forward(own, cache, ids, mask, positions, last)

        monkeypatch.setattr(RowCache, "move_columns", moved)
        monkeypatch.setattr(Decoder, "_forward", ran)


def long_model() -> Any:
    model = build("llama")
    model.config.max_position_embeddings = 8192
    return model


def test_one_long_prompt_does_not_lengthen_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    prompts = [prompts_of(1, 3000, 3000)[0], *prompts_of(63)]
    samples = Sampler(long_model(), byte_tokenizer()).generate(prompts, SamplingParams(max_tokens=8))
    needed = sum(len(prompt) + 8 for prompt in prompts)
    assert [len(own) for own in samples] == [1] * 64
    assert watched.room <= 1.5 * needed  # of one cache; the other is gone by then
    assert watched.mask <= decoder_module.CHUNK_TOKENS * 3008


def test_samples_that_all_run_at_once_take_no_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    prompts, params = prompts_of(16, 20, 40), [SamplingParams(max_tokens=8 + 3 * n, seed=n) for n in range(16)]
    samples = Sampler(build("llama").double(), byte_tokenizer()).generate(prompts, params)
    longest = max(len(prompt) + own.max_tokens for prompt, own in zip(prompts, params, strict=True))
    assert watched.room == 16 * longest
    alone = [tokens_of("llama", [prompt], own) for prompt, own in zip(prompts, params, strict=True)]
    assert [[own[0].token_ids] for own in samples] == [found[0] for found in alone]


def test_a_cache_is_freed_as_soon_as_nobody_needs_it() -> None:
    cache = RowCache(1, 2, 3)
    layer = weakref.ref(cache.layers[0])
    gc.disable()  # whose turn may come after the next batch has its buffers
    try:
        del cache
        assert layer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("budget", "most"), [(None, 16), (400, 4), (100, 1), (10, 1)])
def test_a_budget_of_tokens_admits_fewer_long_samples(
    budget: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = Decoder.step

    def stepped(decoder: Decoder, tokens: Tensor) -> Tensor:
        rows.append(len(decoder.starts))
        return step(decoder, tokens)

    monkeypatch.setattr(Decoder, "step", stepped)
    prompts, params = prompts_of(16, 92, 92), SamplingParams(max_tokens=8)
    sampler = Sampler(build("llama").double(), byte_tokenizer(), max_batch_tokens=budget)
    found = [[sample.token_ids for sample in own] for own in sampler.generate(prompts, params)]
    assert max(rows) == most
    monkeypatch.undo()
    assert found == tokens_of("llama", prompts, params)


def test_samples_of_similar_length_stay_together() -> None:
    prompts = [[3] * length for length in (40, 900, 30, 500, 20)]
    assert length_groups(prompts, [SamplingParams(max_tokens=100)] * 5, 64) == [[1, 3, 0, 2, 4]]
    many = [*prompts, *[[3] * 10] * 100]
    assert length_groups(many, [SamplingParams(max_tokens=100)] * 105, 64)[0] == [1, 3]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_window"])
def test_a_prompt_in_chunks_and_behind_a_shared_beginning_gives_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = prompts_of(1, 40, 40)[0]
    prompts = [beginning + end for end in ([5], [9, 9, 8], [7] * 20, [5], prompts_of(1, 12, 12)[0])]
    params = SamplingParams(max_tokens=12, num_samples=2)
    whole = tokens_of(name, prompts, params)
    monkeypatch.setattr(decoder_module, "CHUNK_TOKENS", 7)
    assert tokens_of(name, prompts, params) == whole
    assert tokens_of(name, [*prompts, *prompts_of(6)], params, 4)[:5] == whole
    monkeypatch.setattr(decoder_module, "MIN_SHARED", 16)
    assert tokens_of(name, prompts, params) == whole
    assert tokens_of(name, prompts, params, 4) == whole  # later ones find the beginning run


def test_a_shared_beginning_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MIN_SHARED", 32)
    watched = Watched(monkeypatch)
    beginning = prompts_of(1, 80, 80)[0]
    prompts = [[*beginning, number] for number in range(3, 35)]
    Sampler(build("llama"), byte_tokenizer(), max_batch_size=8).generate(prompts, SamplingParams(max_tokens=4))
    assert watched.run <= 2 * len(beginning)


def test_a_prompt_of_as_many_samples_as_rows_need_not_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = Decoder.step

    def stepped(decoder: Decoder, tokens: Tensor) -> Tensor:
        rows.append(len(decoder.starts))
        return step(decoder, tokens)

    monkeypatch.setattr(Decoder, "step", stepped)
    prompts = prompts_of(6)
    ends = tuple(range(3, VOCABULARY, 12))
    tokens_of("llama", prompts, SamplingParams(max_tokens=60, num_samples=8, stop_token_ids=ends), 8)
    before_the_last = rows[: -len(rows) // 6]
    assert sum(before_the_last) / len(before_the_last) > 6


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_where_memory_runs_out_fewer_samples_run_at_once(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, params = prompts_of(12), SamplingParams(max_tokens=10, num_samples=2)
    whole = tokens_of("llama", prompts, params)
    step, room = Decoder.step, 5

    def short(decoder: Decoder, tokens: Tensor) -> Tensor:
        if len(decoder.starts) > room:
            raise error
        return step(decoder, tokens)

    monkeypatch.setattr(Decoder, "step", short)
    assert tokens_of("llama", prompts, params, 16) == whole
    assert "going on with 4 samples at once" in caplog.text
    room = 0
    with pytest.raises(PosttrainError, match="out of memory at one sample"):
        tokens_of("llama", prompts, params, 16)
