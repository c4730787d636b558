"""What is planted into rows is found, and what only looks like it stays: `scripts/check_curation.py`, in small."""

from __future__ import annotations

from pathlib import Path

from judged_curation import curated, missed, shares
from planted_rows import planted


def test_what_is_planted_is_found_and_what_looks_like_it_stays(tmp_path: Path) -> None:
    rows = planted(seed=1, rows=300, each=50)
    found = shares(rows, curated(tmp_path / "out", rows))
    assert {kind: odd for kind, (share, _, odd) in found.items() if missed(kind, share)} == {}
