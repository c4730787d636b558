"""Work that ranks share out: the same chunks however many they are, each row once, whatever was cut before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.models.processes import Rank
from posttrain.sample.sampling import SamplingParams
from posttrain.sample.shares import sampling_chunks, shared_out

CHUNKS = [[4, 0], [2, 5], [1, 3], [6]]


class Worker:
    """Notes the chunks that it gets, and dies as a killed process would before the chunk of some number."""

    def __init__(self, dies_before: int = 99) -> None:
        self.chunks: list[list[int]] = []
        self.left = dies_before

    def __call__(self, rows: list[int]) -> list[Any]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.chunks.append(rows)
        return [[row, row / 3] for row in rows]


def run(work: Path, worker: Worker, number: int = 0, of: int = 1) -> list[Any] | None:
    return shared_out(Rank(number, of), work, "samples", CHUNKS, worker)


def test_ranks_take_chunks_in_turn_and_the_first_gathers_them_in_order(tmp_path: Path) -> None:
    workers = [Worker() for _ in range(3)]
    assert run(tmp_path, workers[2], 2, 3) is None
    assert run(tmp_path, workers[1], 1, 3) is None
    assert run(tmp_path, workers[0], 0, 3) == [[row, row / 3] for row in range(7)]
    assert [worker.chunks for worker in workers] == [[[4, 0], [6]], [[2, 5]], [[1, 3]]]


@pytest.mark.parametrize("ranks_then", [1, 2, 3])
def test_a_lost_rank_costs_no_row_twice_on_however_many_ranks_it_goes_on(tmp_path: Path, ranks_then: int) -> None:
    first, lost = Worker(1), Worker()
    run(tmp_path, lost, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first, 0, 2)
    with (tmp_path / "samples.0.jsonl").open("ab") as file:
        file.write(b"[[1, 3], [[1,")  # killed within a line
    again = [Worker() for _ in range(ranks_then)]
    for number in range(ranks_then - 1, 0, -1):
        run(tmp_path, again[number], number, ranks_then)
    assert run(tmp_path, again[0], 0, ranks_then) == [[row, row / 3] for row in range(7)]
    made = Counter(row for worker in (first, lost, *again) for chunk in worker.chunks for row in chunk)
    assert made == Counter(range(7))
    assert sorted(chunk for worker in again for chunk in worker.chunks) == [[1, 3]]


def test_chunks_are_whole_batches_and_as_many_as_share_evenly() -> None:
    params = [SamplingParams(num_samples=4)] * 10_000
    prompts = [[0] * (1 + row % 50) for row in range(10_000)]
    few, many = sampling_chunks(prompts[:100], params[:100], 16), sampling_chunks(prompts, params, 16)
    assert {len(chunk) for chunk in few[:-1]} == {8}  # two batches, lest the last samples of each run alone
    assert {len(chunk) for chunk in many[:-1]} == {32}
    assert sorted(row for chunk in many for row in chunk) == list(range(10_000))
    assert len(prompts[many[0][0]]) == 50 and len(prompts[many[-1][-1]]) == 1
    assert sampling_chunks([], [], 16) == []
