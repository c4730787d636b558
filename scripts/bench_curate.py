"""Rows a second of steps of curation beside datatrove's, on the same synthetic rows, in turns within one process.

    pip install --target DIR datatrove==0.10.1 'xxhash<4' humanize nltk
    PYTHONPATH=DIR python scripts/bench_curate.py [--rows 4000] [--turns 3] [--near 1000000]

datatrove is given a tokenizer that splits at spaces, the cheapest that there is, in place of spaCy's; without datatrove
only our side is measured. CPU time of this process, the best of the turns. ``--near N`` also takes exact and near
duplicates out of N rows, and tells MB/s, rows/s and the peak of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.data.config.steps import QualityConfig
from posttrain.data.messages import Message
from posttrain.data.records import Demonstration
from posttrain.data.rows.shelf import BATCH
from posttrain.data.steps.fates import Surroundings
from posttrain.data.steps.minhash import fingerprint, joined, shingles
from posttrain.data.steps.near_duplicates import lost_to
from posttrain.data.steps.pii_patterns import find
from posttrain.data.steps.quality import quality

Work = Callable[[list[str]], Any]


def texts(count: int, least: int, most: int, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    known = np.array(["".join(rng.choices("aeioubdfgklmnprstv", k=rng.randint(2, 9))) for _ in range(20_000)])
    weights = 1 / (np.arange(len(known)) + 10)
    drawn = np.random.default_rng(seed)
    weights /= weights.sum()
    for start in range(0, count, 1000):
        lengths = drawn.integers(least, most + 1, size=min(1000, count - start))
        words = known[drawn.choice(len(known), size=int(lengths.sum()), p=weights)].tolist()
        place = 0
        for length in lengths.tolist():
            yield " ".join(words[place : place + length]) + "."
            place += length


def ours() -> dict[str, Work]:
    def form(rows: list[str]) -> object:
        records = [
            Demonstration(id="r", source="s", prompt=[], completion=[Message(role="assistant", content=row)])
            for row in rows
        ]
        return list(quality(records, QualityConfig(), Surroundings()).fates)

    kinds = frozenset(("email", "ip"))
    return {
        "MinHash": lambda rows: [fingerprint(rows[at : at + BATCH], 5) for at in range(0, len(rows), BATCH)],
        "form": form,
        "email, IP": lambda rows: [find(row, kinds) for row in rows],  # type: ignore[arg-type]  # of literals
        "all personal data": lambda rows: [
            find(row, frozenset(("email", "ip", "phone", "card", "iban", "key", "national_id"))) for row in rows
        ],
    }


def theirs() -> dict[str, Work]:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Spaces(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return text.split(".")

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return []

    spaces: Any = Spaces()
    hashing = MinhashDedupSignature("/tmp", MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=5), spaces)
    rules = [GopherRepetitionFilter(language=spaces), GopherQualityFilter(language=spaces)]
    hidden = PIIFormatter()
    return {
        "MinHash": lambda rows: [hashing.get_signature(hashing.get_shingles(row)) for row in rows],
        "form": lambda rows: [[rule.filter(Document(text=row, id="r")) for rule in rules] for row in rows],
        "email, IP": lambda rows: [hidden.format(row) for row in rows],
    }


def seconds(work: Work, rows: list[str]) -> float:
    begun = time.process_time()
    work(rows)
    return time.process_time() - begun


def near(count: int) -> None:
    """Take duplicates out of ``count`` rows, of which one in ten is an exact copy and one in ten nearly one.

    Rows lie in a file that Arrow maps into memory, so that the peak is that of the steps and not of the rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arrow"
        making = time.process_time()
        size = write(path, count)
        begun = time.process_time()
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
        prints, seen, places = [], set(), array("q")
        for number, chunk in enumerate(column.chunks):
            batch = []
            for place, said in enumerate(chunk.to_pylist()):
                digest = hashlib.blake2b(said.encode(), digest_size=12).digest()
                if digest not in seen:
                    seen.add(digest)
                    batch.append(said)
                    places.append(number * BATCH + place)
            prints.append(fingerprint(batch, 5))
        exact = count - len(seen)
        seen.clear()
        lost = lost_to(
            joined(prints),
            range(len(places)),
            0.8,
            lambda place: shingles(column[places[place]].as_py(), 5),
            lambda one, other: True,
        )
        spent = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n{count:,} rows of 60 to 200 words, {size / 1e6:,.0f} MB: {exact:,} exact and {len(lost):,} near")
    print(f"{count / spent:,.0f} rows/s, {size / 1e6 / spent:.1f} MB/s on one core, peak {peak:.2f} GB")
    print(f"(making and writing the rows took {begun - making:,.0f} s more)")


def write(path: Path, count: int) -> int:
    """Write the rows of `near` in batches, and return their bytes."""
    schema = pa.schema([("text", pa.string())])
    size, before = 0, ""
    with pa.ipc.new_file(str(path), schema) as file:
        batch: list[str] = []
        for place, row in enumerate(texts(count, 60, 200)):
            said = before if place % 10 == 1 else f"{before} indeed" if place % 10 == 2 else row
            before = row if place % 10 == 0 else before
            size += len(said)
            batch.append(said)
            if len(batch) == BATCH or place == count - 1:
                file.write_batch(pa.record_batch([batch], schema))
                batch = []
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--near", type=int, metavar="N")
    options = parser.parse_args()
    rows = list(texts(options.rows, 60, 200))
    try:
        other = theirs()
    except ImportError as error:
        print(f"without datatrove: {error}")
        other = {}
    print(f"{'step':18} {'ours, rows/s':>14} {'datatrove':>12} {'ratio':>7}")
    for name, work in ours().items():
        both = [work, other[name]] if name in other else [work]
        turns = [[seconds(one, rows) for one in both] for _ in range(options.turns)]
        best = [min(found) for found in zip(*turns, strict=True)]
        figures = [f"{len(rows) / spent:,.0f}" for spent in best] + ["–"] * (2 - len(best))
        ratio = f"{best[1] / best[0]:.1f}" if len(best) == 2 else "–"
        print(f"{name:18} {figures[0]:>14} {figures[1]:>12} {ratio:>7}", flush=True)
    if options.near:
        near(options.near)
    return 0


if __name__ == "__main__":
    sys.exit(main())
