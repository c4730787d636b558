"""What became of every row: the accounting of each dataset and tokens artifact, as table rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

ACCOUNTING_FILE = "accounting.json"
TOTAL = "total"
TERMS = {
    "url": "published at",
    "published_revision": "revision",
    "generator": "generator",
    "generator_uses": "its terms allow",
    "uses": "the owner allows",
}
"""What a manifest may say of a source → how people say it."""


@dataclasses.dataclass(frozen=True)
class AccountRow:
    """One source of one artifact, or all of them (`TOTAL`)."""

    source: str
    rows_in: int
    kept: int
    dropped: dict[str, int]
    """Reason → rows, the most frequent reason first."""
    noted: dict[str, int]
    """What a reader should know of rows that did not drop for it: reason → rows, the most frequent reason first."""
    train: int
    eval: int
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    """Column that nobody uses → rows, those that look like content first."""

    @property
    def balanced(self) -> bool:
        """Whether every row that came in was either kept or dropped for a reason."""
        return self.rows_in == self.kept + sum(self.dropped.values())


@dataclasses.dataclass(frozen=True)
class Account:
    """The accounting of one artifact."""

    label: str
    kind: str
    rows: list[AccountRow]
    truncated: int | None
    """Rows cut to the longest allowed length; None where nothing is ever cut."""
    max_length: int | None
    """The longest allowed length in tokens; None for datasets."""
    responses_dropped: int | None
    """Responses left out of comparisons whose other responses were kept."""
    tokens: dict[str, Any] | None
    """Total, percentiles and figures per language; None for datasets."""

    def as_dict(self) -> dict[str, Any]:
        """Return the accounting as plain values."""
        return dataclasses.asdict(self)


def read_accounting(directory: Path) -> dict[str, Any]:
    """Return the accounting of an artifact as it is written there."""
    raw: dict[str, Any] = json.loads((directory / ACCOUNTING_FILE).read_text(encoding="utf-8"))
    return raw


def read_account(directory: Path, label: str, kind: str) -> Account | None:
    """Return the accounting of a dataset or tokens artifact, or None when it has none."""
    if not (directory / ACCOUNTING_FILE).exists():
        return None
    raw = read_accounting(directory)
    rows = [_row(name, entry) for name, entry in sorted(raw["by_source"].items())]
    if len(rows) != 1:
        sides = {side: sum(entry[side] for entry in raw["by_source"].values()) for side in ("train", "eval")}
        rows.append(_row(TOTAL, raw | sides))
    limit = _max_length(directory) if "tokens" in raw else None
    return Account(label, kind, rows, raw.get("truncated"), limit, raw.get("responses_dropped"), raw.get("tokens"))


def _max_length(directory: Path) -> int | None:
    path = directory / "tokens.json"
    limit: int | None = json.loads(path.read_text(encoding="utf-8")).get("max_length") if path.exists() else None
    return limit


def _row(source: str, entry: dict[str, Any]) -> AccountRow:
    dropped, noted = _by_frequency(entry["dropped"]), _by_frequency(entry.get("noted", {}))
    ignored = {**entry.get("ignored_content", {}), **entry.get("ignored_columns", {})}
    return AccountRow(source, entry["rows_in"], entry["kept"], dropped, noted, entry["train"], entry["eval"], ignored)


def _by_frequency(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
