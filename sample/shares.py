"""Work on many rows, shared out over the ranks of a stage and kept as it comes.

Rows are worked on in chunks that the rows and the batch size alone decide, each of them whole and by one rank. So
neither the number of ranks nor an interruption changes what else is in a batch, nor with it the rounding of a result.
A rank writes each chunk into a journal of its own in the stage's work folder, and the first one reads them all: what
an earlier attempt left there is not worked on again, on however many ranks the next one runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.models.batching import by_length
from posttrain.models.processes import Rank
from posttrain.sample.many import CHUNK_BATCHES
from posttrain.sample.sampling import Generates, Sample, SamplingParams
from posttrain.stage.progress import track

LEAST_BATCHES = 2
"""Batches of a chunk, at least: with one alone, its last samples would run by themselves."""
CHUNKS = 32
"""Chunks that many rows are cut into, so that ranks get equal shares; with fewer rows it is fewer chunks."""
LOOK_SECONDS = 0.2
"""Time between two looks at the journals of other ranks."""


def sample_shares(
    rank: Rank,
    work: Path,
    sampler: Generates,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    batch_size: int,
) -> list[list[Sample]] | None:
    """Return the samples of each prompt on the first rank, None on the others; ``params`` has one for each prompt.

    ``batch_size`` is how many samples run at once.
    """

    def make(rows: list[int]) -> list[Any]:
        own = sampler.generate([prompts[row] for row in rows], [params[row] for row in rows])
        return [[dataclasses.asdict(sample) for sample in samples] for samples in own]

    found = shared_out(rank, work, "samples", sampling_chunks(prompts, params, batch_size), make)
    return None if found is None else [[Sample(**sample) for sample in samples] for samples in found]


def sampling_chunks(
    prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], batch_size: int
) -> list[list[int]]:
    """Return prompts in chunks of some batches, of similar length each; within one, prompts enter as samples end."""
    most = max((request.num_samples for request in params), default=1)
    batches = sum(request.num_samples for request in params) // (CHUNKS * batch_size)
    batches = min(max(batches, LEAST_BATCHES), CHUNK_BATCHES)
    return by_length(prompts, max(1, batches * batch_size // most))


def shared_out(
    rank: Rank,
    work: Path,
    what: str,
    chunks: Sequence[list[int]],
    make: Callable[[list[int]], Sequence[Any]],
) -> list[Any] | None:
    """Return what ``make`` gives for each row of the chunks, by its number, on the first rank, and None on the others.

    ``make`` gets the rows of a chunk and returns a JSON value for each. ``what`` names the journals, and the progress.
    """
    journals = _Journals(work, what)
    own = work / f"{what}.{rank.number}.jsonl"
    _cut_torn_line(own)
    before = journals.read()
    mine = [[row for row in chunk if row not in before] for chunk in chunks[rank.number :: rank.of]]
    mine = [chunk for chunk in mine if chunk]
    with own.open("ab") as file:
        for chunk in track(mine, sum(map(len, mine)), what):
            file.write(json.dumps([chunk, list(make(chunk))]).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    if rank.number > 0:
        return None
    rows = sum(map(len, chunks))
    while len(found := journals.read()) < rows:  # without a sign of life: one that waits does not get on
        time.sleep(LOOK_SECONDS)
    return [found[row] for row in range(rows)]


class _Journals:
    """What all ranks have written so far, of this attempt and of those before."""

    def __init__(self, work: Path, what: str) -> None:
        self._work, self._what = work, what
        self._read: dict[Path, int] = {}
        self._found: dict[int, Any] = {}

    def read(self) -> dict[int, Any]:
        """Return the value of each row; a line that is being written, or was cut while it was, does not count."""
        for path in sorted(self._work.glob(f"{self._what}.*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                self._found.update(zip(*json.loads(line), strict=True))
        return self._found


def _cut_torn_line(journal: Path) -> None:
    if journal.exists():
        lines = journal.read_bytes()
        if not lines.endswith(b"\n"):
            os.truncate(journal, lines.rfind(b"\n") + 1)
