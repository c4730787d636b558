"""Responses that were generated before, in one SQLite file: the same request need not be computed twice.

A request is what fixes its response: the digest of the model, the prompt, the sampling parameters and the seed. Many
processes may read and write one file at a time (write-ahead log); not on a network file system, which has no shared
memory for that log. Of old responses, the least recently used go first.

Near-duplicate prompts are found by MinHash over word shingles (Broder 1997) with locality-sensitive bands, and
confirmed by the exact Jaccard similarity, so a similarity is never reported wrongly, only now and then missed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, sha256_text

BUSY_SECONDS = 60.0
"""How long one process waits for another one's write."""
SHINGLE_WORDS = 3
BANDS, ROWS = 16, 4
"""Two prompts of similarity s share a band with probability 1 − (1 − s⁴)¹⁶: 0.66 at 0.5, 0.9998 at 0.8."""
EVICTED_SHARE = 16
"""One in so many responses goes at once when the file is full."""

_MULTIPLIERS = np.random.default_rng(0).integers(0, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, used INTEGER NOT NULL, text TEXT, response TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used);
CREATE TABLE IF NOT EXISTS bands (
    band INTEGER NOT NULL, id INTEGER NOT NULL REFERENCES responses (id) ON DELETE CASCADE, PRIMARY KEY (band, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS bands_by_response ON bands (id);
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """All that decides a response."""

    model_digest: str
    prompt: str | Sequence[int]
    """Text, or token ids."""
    params: Mapping[str, Any]
    """Plain values."""
    seed: int

    @property
    def key(self) -> str:
        """SHA-256 over everything."""
        return sha256_text(canonical_json([self.model_digest, self.prompt, dict(self.params), self.seed]))

    @property
    def scope(self) -> str:
        """SHA-256 over everything but the prompt: near duplicates are looked for among equal scopes only."""
        return sha256_text(canonical_json([self.model_digest, dict(self.params), self.seed]))


@dataclasses.dataclass(frozen=True)
class NearDuplicate:
    """The response to a prompt much like the one asked for."""

    text: str
    similarity: float
    """Jaccard similarity of the word shingles, up to 1."""
    response: str


class ResponseCache:
    """One open file; a process, and a thread, opens its own.

    ``max_bytes`` bounds the file; the write-ahead log beside it adds some MB while it is open.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            _write_ahead(self._connection)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise UsageError(f"{path}: not a response cache ({error}); give another file or remove it") from None
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(_SCHEMA)
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        self._max_pages = max_bytes // page_bytes
        if self._used_pages() > self._max_pages:
            with self._write():
                self._evict()

    def __enter__(self) -> ResponseCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __len__(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM responses").fetchone()
        return int(count)

    def get(self, request: Request) -> str | None:
        """Return the response to a request, or None, and count it as used just now."""
        row = self._connection.execute("SELECT id, response FROM responses WHERE key = ?", [request.key]).fetchone()
        if row is None:
            return None
        self._connection.execute(
            "UPDATE responses SET used = (SELECT max(used) + 1 FROM responses) "
            "WHERE id = ? AND used < (SELECT max(used) FROM responses)",
            [row[0]],
        )
        return str(row[1])

    def put(self, request: Request, response: str, text: str | None = None) -> None:
        """Keep a response, and index it by the words of ``text`` for near duplicates, if that is given.

        Where another process was faster, its response stays.
        """
        with self._write():
            made = self._connection.execute(
                "INSERT OR IGNORE INTO responses (key, used, text, response) "
                "VALUES (?, (SELECT coalesce(max(used), 0) + 1 FROM responses), ?, ?) RETURNING id",
                [request.key, text, response],
            ).fetchone()
            if made is not None and text is not None:
                bands = [(band, made[0]) for band in set(_bands(request.scope, _shingles(text)))]
                self._connection.executemany("INSERT INTO bands VALUES (?, ?)", bands)
            self._evict()

    def nearest(self, request: Request, text: str, threshold: float = 0.9) -> NearDuplicate | None:
        """Return the response whose text is most like this one, if its similarity reaches the threshold.

        It comes from the request's scope: all but the prompt is equal.
        """
        wanted = _shingles(text)
        bands = _bands(request.scope, wanted)
        rows = self._connection.execute(
            "SELECT text, response FROM responses WHERE id IN "
            f"(SELECT id FROM bands WHERE band IN ({','.join('?' * len(bands))}))",
            bands,
        )
        found = [NearDuplicate(known, _jaccard(wanted, _shingles(known)), response) for known, response in rows]
        best = max(found, key=lambda near: near.similarity, default=None)
        return best if best is not None and best.similarity >= threshold else None

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        """Hold the one write lock from the start: a read that turns into a write could find it taken."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _used_pages(self) -> int:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free)

    def _evict(self) -> None:
        while self._used_pages() > self._max_pages and (count := len(self)):
            self._connection.execute(
                "DELETE FROM responses WHERE id IN (SELECT id FROM responses ORDER BY used LIMIT ?)",
                [-(-count // EVICTED_SHARE)],
            )


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on; SQLite does not wait here for others that open a new file at the same time."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _shingles(text: str) -> set[str]:
    """Return the runs of three words of a text, or the whole of a shorter one."""
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _bands(scope: str, shingles: set[str]) -> list[int]:
    """Return one number per band: a hash of its rows of the MinHash signature, its place and the scope."""
    hashes = np.array([_hash(shingle.encode()) for shingle in shingles], dtype=np.uint64)
    # Multiplication modulo 2⁶⁴ by odd numbers stands for random permutations; its high half is the better mixed one.
    signature = ((hashes[:, None] * _MULTIPLIERS) >> np.uint64(32)).min(axis=0).reshape(BANDS, ROWS)
    named = [f"{scope}/{place}/".encode() + band.tobytes() for place, band in enumerate(signature)]
    return [_hash(name) - 2**63 for name in named]


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
