"""Time and host memory of packing demonstrations on every rank of a machine.

    python scripts/bench_packing.py --tokens 20000000 --ranks 4

Makes rows of 20 to 2,000 tokens, then starts as many processes as ranks, at once, each of which reads them, packs them
and puts its first micro-batch together. Memory is what a process has of its own (USS) once it stands ready to train,
less what it had before it read the rows, and the peak of its resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAPACITY, BATCH = 4096, 4


def make_rows(directory: Path, tokens: int) -> None:
    """Write rows of so many tokens altogether."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.5, 0.8, tokens // 100), 20, 2000).astype(np.int64)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    ids = pa.array(draw.integers(5, 128_000, int(lengths.sum()), np.int32))
    lists = pa.ListArray.from_arrays(offsets, ids)
    names = [f"row/{number}" for number in range(len(lengths))]
    pq.write_table(pa.table({"id": names, "input_ids": lists, "labels": lists}), directory / "train.parquet")


def own_memory() -> float:
    """Return the megabytes that no other process shares with this one."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def be_a_rank(directory: Path, rank: int, ranks: int) -> None:
    """Read, pack, and put a micro-batch together; prints seconds and megabytes."""
    from posttrain.train.engine.batching import StepBatchSampler, plan_batches
    from posttrain.train.rows.collate import collate_packs
    from posttrain.train.rows.columns import lengths_of
    from posttrain.train.rows.dataset import read_demonstrations
    from posttrain.train.rows.packs import pack_demonstrations

    before, started = own_memory(), time.monotonic()
    packs = pack_demonstrations(read_demonstrations(directory, "train"), CAPACITY)
    plan = plan_batches(len(packs), BATCH * ranks, BATCH, ranks, 1, None)
    first = next(iter(StepBatchSampler(plan, lengths_of(packs), 1, rank)))
    collate_packs([packs[row] for row in first], 0, flatten=False)
    seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "own": own_memory() - before, "peak": peak, "packs": len(packs)}))


def main() -> None:
    """Start the ranks and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, default=None, help="a folder with rows that were made before")
    asked = parser.parse_args()
    if asked.rank is not None:
        be_a_rank(asked.rows, asked.rank, asked.ranks)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = asked.rows or Path(folder)
        if not (rows / "train.parquet").exists():
            make_rows(rows, asked.tokens)
        call = [sys.executable, __file__, "--rows", str(rows), "--ranks", str(asked.ranks)]
        running = [
            subprocess.Popen([*call, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(asked.ranks)
        ]
        found = [json.loads(process.communicate()[0]) for process in running]
    seconds, own, peak = (max(rank[name] for rank in found) for name in ("seconds", "own", "peak"))
    packs = found[0]["packs"]
    print(f"{packs:,} packs on {asked.ranks} ranks: {seconds:.1f} s, {own:,.0f} MB a rank, peak {peak:,.0f} MB")


if __name__ == "__main__":
    main()
