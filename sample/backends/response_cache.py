"""Responses that were generated before, in one SQLite file: the same request need not be computed twice.

A request is what fixes its response: the digest of the model, the prompt, the sampling parameters and the seed. Many
processes may read and write one file at a time (write-ahead log); not on a network file system, which has no shared
memory for that log. Of old responses, the least recently used go first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, sha256_text

BUSY_SECONDS = 60.0
"""How long one process waits for another one's write."""
EVICTED_SHARE = 16
"""One in so many responses goes at once when the file is full."""

ROW_BYTES, LOG_BYTES = 512, 1 << 20
"""What a response takes besides its text, and what is left of the write-ahead log once it was worked off."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, used INTEGER NOT NULL, response TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used);
DROP TABLE IF EXISTS bands;
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


class ResponseCache:
    """One open file; a process, and a thread, opens its own.

    ``max_bytes`` bounds the file; the write-ahead log beside it adds up to the largest response, or a MB, while open.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            _write_ahead(self._connection)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise UsageError(f"{path}: not a response cache ({error}); give another file or remove it") from None
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        self._connection.executescript(_SCHEMA)
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        self._max_pages = max_bytes // page_bytes
        self._page_bytes = page_bytes
        with self._write():
            self._evict(0)
        if self._pages() > self._max_pages:  # a file of before, or of a larger bound, which keeps its free pages
            self._connection.execute("VACUUM")

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

    def put(self, request: Request, response: str) -> None:
        """Keep a response that is not larger than the file may be; older ones make room for it.

        Where another process was faster, its response stays.
        """
        pages = -(-(len(response.encode()) + ROW_BYTES) // self._page_bytes) + 3  # three trees may split
        if pages > self._max_pages:
            return
        with self._write():
            known = self._connection.execute("SELECT 1 FROM responses WHERE key = ?", [request.key]).fetchone()
            if known is None:
                self._evict(pages)
                self._connection.execute(
                    "INSERT INTO responses (key, used, response) "
                    "VALUES (?, (SELECT coalesce(max(used), 0) + 1 FROM responses), ?)",
                    [request.key, response],
                )

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

    def _pages(self) -> int:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        return int(pages)

    def _evict(self, wanted: int) -> None:
        """Delete responses until so many pages more fit: free pages of the file are used before it grows."""
        while True:
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if self._pages() - free + wanted <= self._max_pages or not (count := len(self)):
                return
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
