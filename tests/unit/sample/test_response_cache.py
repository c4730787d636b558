"""The response cache: what its key covers, its bound, and many processes on one file."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import random
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.sample.backends.cached import CachedSampler, engine
from posttrain.sample.backends.response_cache import Request, ResponseCache
from posttrain.sample.sampling import Accept, Prompts, Sample, SamplingParams
from posttrain.stage.errors import UsageError

MIB = 1 << 20


def request(prompt: str | tuple[int, ...] = "Who is there?", seed: int = 0, **params: Any) -> Request:
    return Request("digest", prompt, {"temperature": 0.5, **params}, seed)


def test_the_same_request_gets_its_response_and_any_other_none(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache", MIB) as cache:
        cache.put(request(), "Nobody.")
    with ResponseCache(tmp_path / "cache", MIB) as cache:
        assert cache.get(request()) == "Nobody."
        others = [
            request(seed=1),
            request("Who is there"),
            request((1, 2)),
            request(top_p=0.9),
            request(temperature=0.7),
            Request("other digest", "Who is there?", {"temperature": 0.5}, 0),
        ]
        assert [cache.get(other) for other in others] == [None] * 6


def test_the_first_response_stays(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache", MIB) as cache:
        cache.put(request(), "one")
        cache.put(request(), "two")
        assert (cache.get(request()), len(cache)) == ("one", 1)


@pytest.mark.parametrize("size", [300, 20_000])
def test_the_file_stays_within_its_bound_and_keeps_what_was_used_last(tmp_path: Path, size: int) -> None:
    bound = 40 * size + 65_536
    rng = random.Random(0)
    with ResponseCache(tmp_path / "cache", bound) as cache:
        favourite = request("the favourite")
        cache.put(favourite, "kept")
        for number in range(1000):
            text = "".join(rng.choices("abcdefgh ", k=size))
            cache.put(request(f"prompt {number}"), text)
            assert cache.get(favourite) == "kept", number
        assert cache.get(request("prompt 999")) == text
        assert cache.get(request("prompt 0")) is None
        assert 10 <= len(cache) < 1000
        assert (tmp_path / "cache").stat().st_size <= bound, number
    assert (tmp_path / "cache").stat().st_size <= bound


def test_a_smaller_bound_takes_effect_when_the_file_is_opened(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache", MIB) as cache:
        for number in range(100):
            cache.put(request(f"{number}"), "x" * 5000)
    with ResponseCache(tmp_path / "cache", 200_000) as cache:
        assert len(cache) < 40
        assert cache.get(request("99")) is not None
    assert (tmp_path / "cache").stat().st_size <= 200_000


def test_a_response_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache", 100_000) as cache:
        cache.put(request(), "small")
        cache.put(request("large"), "x" * 200_000)
        assert cache.get(request("large")) is None
        assert cache.get(request()) == "small"
    assert (tmp_path / "cache").stat().st_size <= 100_000


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at as one\n" * 40)
    with pytest.raises(UsageError, match=r"notes\.txt: not a response cache"):
        ResponseCache(tmp_path / "notes.txt", MIB)


def worker(path: Path, seed: int, rounds: int, results: Any) -> None:
    rng = random.Random(seed)
    hits = 0
    with ResponseCache(path, 300_000) as cache:
        for _ in range(rounds):
            number = rng.randrange(80)
            found = cache.get(request(f"question {number}"))
            if found is None:
                cache.put(request(f"question {number}"), json.dumps([number] * 1500))
            else:
                assert json.loads(found) == [number] * 1500
                hits += 1
    results.put(hits)


def test_processes_read_and_write_one_file_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=worker, args=(tmp_path / "cache", seed, 300, results)) for seed in range(4)]
    for process in processes:
        process.start()
    hits = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(hits) > 100
    with sqlite3.connect(tmp_path / "cache") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        keys = connection.execute("SELECT count(*), count(DISTINCT key) FROM responses").fetchone()
    assert keys[0] == keys[1]


def opener(directory: Path, barrier: Any) -> None:
    for number in range(25):
        barrier.wait(timeout=60)
        with ResponseCache(directory / str(number), MIB) as cache:
            cache.put(request(), "x")


def test_processes_make_a_new_file_at_the_same_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=opener, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 3


WRITER = """
import sys
from pathlib import Path
from posttrain.sample.backends.response_cache import Request, ResponseCache
cache = ResponseCache(Path(sys.argv[1]), 1 << 20)
for number in range(10**6):
    cache.put(Request("digest", str(number), {}, 0), str(number) * 100)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(60)]
    process.kill()
    process.communicate()
    with ResponseCache(path, MIB) as cache:
        for line in lines:
            number = line.strip()
            assert cache.get(Request("digest", number, {}, 0)) == number * 100


class CountingSampler:
    """A sampler whose text says what it was asked, and which counts its calls."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        self.asked += [list(prompt) for prompt in prompts]
        return [
            [
                Sample([n], [-0.5], [-0.25], "stop", f"{list(prompt)} {own.seed}.{n}", 0.0)
                for n in range(own.num_samples)
            ]
            for prompt, own in zip(prompts, each, strict=True)
        ]


def test_a_cached_sampler_asks_only_for_what_is_new(tmp_path: Path) -> None:
    sampler = CountingSampler()
    params = SamplingParams(num_samples=2, seed=4, logit_bias={3: -math.inf}, stop=("x",))
    with ResponseCache(tmp_path / "cache", MIB) as cache:
        cached = CachedSampler(sampler, cache, "digest")
        first = cached.generate([[1], [2]], params)
        assert cached.generate([[2], [3], [1]], params) == [first[1], sampler.generate([[3]], params)[0], first[0]]
        assert sampler.asked == [[1], [2], [3], [3]]
        cached.generate([[1]], dataclasses.replace(params, seed=5))
        cached.generate([[1]], dataclasses.replace(params, stop=()))
        CachedSampler(sampler, cache, "another digest").generate([[1]], params)
        assert sampler.asked[4:] == [[1], [1], [1]]
        cached.generate([[1]], params, accept=lambda prompt, sample: True)
        assert sampler.asked[7:] == [[1]]


def test_samples_of_another_version_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = CountingSampler()
    with ResponseCache(tmp_path / "cache", MIB) as cache:
        for part in ("posttrain", "torch", "transformers", "code"):
            CachedSampler(sampler, cache, "digest").generate([[1]], SamplingParams())
            now = engine() | {part: "another"}
            with monkeypatch.context() as other:
                other.setattr("posttrain.sample.backends.cached.engine", lambda now=now: now)
                CachedSampler(sampler, cache, "digest").generate([[1]], SamplingParams())
    assert sampler.asked == [[1]] * 5
