"""Row accounting: for every source, rows in = rows kept + rows dropped by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.records import SPLITS, Split

FURTHER = ("noted", "ignored_columns", "ignored_content")
"""What is said of rows beside whether they are kept, by the name of the field."""


@dataclass
class SourceCounts:
    """What became of the rows of one source."""

    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    """Rows kept, by split."""
    noted: Counter[str] = field(default_factory=Counter)
    """What a reader should know of rows that were not dropped for it, by reason."""
    ignored_columns: Counter[str] = field(default_factory=Counter)
    """Rows with a column that nobody uses, by column."""
    ignored_content: Counter[str] = field(default_factory=Counter)
    """Those of them where the column looks like content."""

    def drop(self, reason: str) -> None:
        """Count one row as dropped."""
        self.dropped[reason] += 1

    def note(self, reason: str) -> None:
        """Count one row about which there is something to say; it may be dropped later, for another reason."""
        self.noted[reason] += 1

    def keep(self, split: Split) -> None:
        """Count one row as kept."""
        self.sides[split] += 1

    @property
    def kept(self) -> int:
        """Rows kept."""
        return self.sides.total()

    def check(self, name: str) -> None:
        """Assert that every row is accounted for once."""
        assert self.rows_in == self.kept + self.dropped.total(), f"{name}: rows lost or counted twice: {self}"

    def summary(self) -> dict[str, Any]:
        """Return the counts as `accounting.json` holds them."""
        sides = {"train": self.sides["train"], "eval": self.sides["eval"]}
        further = {name: dict(sorted(getattr(self, name).items())) for name in FURTHER}
        said = {name: counts for name, counts in further.items() if counts}
        dropped = dict(sorted(self.dropped.items()))
        return {"rows_in": self.rows_in, "kept": self.kept, "dropped": dropped, **sides, **said}


def accounting(by_source: dict[str, SourceCounts]) -> dict[str, Any]:
    """Return the contents of `accounting.json`, having checked the sum of every source and of the total."""
    total = SourceCounts()
    for name, counts in by_source.items():
        counts.check(name)
        total.rows_in += counts.rows_in
        total.dropped += counts.dropped
        total.noted += counts.noted
        total.sides += counts.sides
    total.check("total")
    summary = {name: value for name, value in total.summary().items() if name not in ("train", "eval")}
    return {**summary, "by_source": {name: counts.summary() for name, counts in by_source.items()}}


def row_metrics(account: dict[str, Any]) -> dict[str, int]:
    """Return the metrics of a dataset that an `accounting` tells of."""
    sides = {side: sum(counts[side] for counts in account["by_source"].values()) for side in SPLITS}
    return {
        "rows_in": account["rows_in"],
        "rows_kept": account["kept"],
        "rows_dropped": account["rows_in"] - account["kept"],
        **{f"{side}_rows": rows for side, rows in sides.items()},
    }


def told(account: dict[str, Any]) -> str:
    """Return what became of the rows, in one line for a person: what dropped and what is noted, by reason."""
    reasons = [*account["dropped"].items(), *account.get("noted", {}).items()]
    listed = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons)
    return f"{account['kept']:,} rows kept of {account['rows_in']:,}" + (f" ({listed})" if listed else "")
