"""What became of every row of a dataset that was tokenized, and how many tokens it costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from posttrain.data.records import Record
from posttrain.data.rows.accounting import SourceCounts, accounting, told
from posttrain.data.tokens.outcome import Outcome
from posttrain.stage.errors import UsageError

COUNTED = ("truncated", "responses_dropped", "reasoning_dropped", "turns_untrained")
"""What was left out of rows that stay, by the name of the outcome's field."""


class TokenAccounting:
    """Counts rows by source and reason, and tokens by language."""

    def __init__(self) -> None:
        self._sources: defaultdict[str, SourceCounts] = defaultdict(SourceCounts)
        self._languages: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._lengths: list[int] = []
        self._further: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def add(self, record: Record, outcome: Outcome) -> None:
        """Note the outcome of one record."""
        counts = self._sources[record.source]
        counts.rows_in += 1
        if outcome.row is None:
            counts.drop(outcome.reason)
            return
        counts.keep(record.split)
        self._languages[record.language].update(rows=1, tokens=sum(outcome.lengths), words=outcome.words)
        self._lengths.extend(outcome.lengths)
        self._further.update({name: getattr(outcome, name) for name in COUNTED})

    def summary(self) -> dict[str, Any]:
        """Return the contents of `accounting.json`.

        Raises UsageError when there were rows and none is left.
        """
        account = accounting(self._sources)
        if account["rows_in"] and not account["kept"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in account["dropped"].items())
            raise UsageError(f"no row of {account['rows_in']} is left ({reasons}); raise max_length or mend the data")
        return {**account, **self._further, "tokens": self._tokens()}

    def _tokens(self) -> dict[str, Any]:
        p50, p95 = np.percentile(self._lengths or [0], [50, 95]).round(1).tolist()
        by_language = {
            language: {
                "rows": counts["rows"],
                "tokens": counts["tokens"],
                "tokens_per_word": round(counts["tokens"] / max(counts["words"], 1), 3),
            }
            for language, counts in sorted(self._languages.items())
        }
        longest = max(self._lengths, default=0)
        return {"total": sum(self._lengths), "p50": p50, "p95": p95, "max": longest, "by_language": by_language}


def told_tokens(account: dict[str, Any], max_length: int) -> str:
    """Return what became of the rows, and the knob that decides which are too long, in one line for a person."""
    text = f"{told(account)}, {account['tokens']['total']:,} tokens"
    too_long = account["dropped"].get("overlong", 0) + account["truncated"]
    left_out = [f"{name.replace('_', ' ')} {account[name]:,}" for name in COUNTED[1:] if account[name]]
    text = ", ".join([text, *left_out])
    if not too_long:
        return text
    cut = f", {account['truncated']:,} truncated" if account["truncated"] else ""
    return f"{text}{cut}; {too_long / account['rows_in']:.1%} longer than data.tokenize.max_length={max_length}"
