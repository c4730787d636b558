"""Row accounting: for every source, rows in = rows kept + rows dropped by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.records import Split


@dataclass
class SourceCounts:
    """What became of the rows of one source."""

    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    """Rows kept, by split."""
    rejected_scored_higher: int = 0
    """Comparisons, kept or dropped later, whose own scores say the contrary of chosen and rejected."""
    labelled_both_ways: int = 0
    """Unpaired preferences, kept, whose answer another row labels the other way."""
    ignored_columns: Counter[str] = field(default_factory=Counter)
    """Rows with a column that nobody uses, by column."""
    ignored_content: Counter[str] = field(default_factory=Counter)
    """Those of them where the column looks like content."""

    def drop(self, reason: str) -> None:
        """Count one row as dropped."""
        self.dropped[reason] += 1

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
        further = {
            "rejected_scored_higher": self.rejected_scored_higher,
            "labelled_both_ways": self.labelled_both_ways,
            "ignored_columns": dict(sorted(self.ignored_columns.items())),
            "ignored_content": dict(sorted(self.ignored_content.items())),
        }
        said = {name: value for name, value in further.items() if value}
        dropped = dict(sorted(self.dropped.items()))
        return {"rows_in": self.rows_in, "kept": self.kept, "dropped": dropped, **sides, **said}


def accounting(by_source: dict[str, SourceCounts]) -> dict[str, Any]:
    """Return the contents of `accounting.json`, having checked the sum of every source and of the total."""
    total = SourceCounts()
    for name, counts in by_source.items():
        counts.check(name)
        total.rows_in += counts.rows_in
        total.dropped += counts.dropped
        total.sides += counts.sides
    total.check("total")
    summary = total.summary()
    return {
        "rows_in": summary["rows_in"],
        "kept": summary["kept"],
        "dropped": summary["dropped"],
        "by_source": {name: counts.summary() for name, counts in by_source.items()},
    }
