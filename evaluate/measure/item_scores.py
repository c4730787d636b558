"""Scored responses to evaluation items: their Parquet file, and figures per task and language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.checks.scorers import preference_score, score
from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem
from posttrain.evaluate.measure.sourced import sourced_figures
from posttrain.evaluate.measure.statistics import Interval, clustered_mean, clustered_proportion
from posttrain.sample.choose.curves import majority_at_k, pass_at_k

ITEMS_FILE = "items.parquet"

_SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("id", "task", "language", "prompt", "response", "reference", "ideal", "scorer")
        ),
        ("correct", pa.float64()),
        ("preference", pa.float64()),
        ("ended", pa.bool_()),
        ("answer", pa.string()),
        ("reasoning_tokens", pa.int64()),
        ("answered", pa.bool_()),
        ("group", pa.string()),
        ("samples", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("answers", pa.list_(pa.string())),
    ]
)


class ScoredItem(NamedTuple):
    """One response with its scores."""

    id: str
    task: str
    language: str
    prompt: str
    response: str
    """All that was said."""
    reference: str
    ideal: str | None
    scorer: str
    correct: float
    """0 to 1; 1 is fully correct."""
    preference: float | None
    """Likeness to the ideal response; None for items that have none."""
    ended: bool
    """Whether the model ended its turn, with an answer, within the limit of tokens."""
    answer: str | None = None
    """What was scored: the response behind its reasoning; None in artifacts of before it was told apart."""
    reasoning_tokens: int = 0
    answered: bool = True
    """Whether the reasoning, where there is any, came to its end."""
    group: str | None = None
    """The question behind it, which its translations share; None where it is its own."""

    samples: list[str] | None = None
    """All responses, where there are several; `response` is the first, and the scores are means."""
    scores: list[float] | None = None
    """What the scorer says of each."""
    answers: list[str | None] | None = None
    """What each answers, as votes of a majority (`posttrain.sample.choose.answers`)."""

    @property
    def cluster(self) -> str:
        """What it wins and loses together with: its group, or itself."""
        return f"group {self.group}" if self.group is not None else f"item {self.id}"

    @property
    def shown(self) -> str:
        """What people read first: the answer."""
        return self.response if self.answer is None else self.answer


def scores_of(item: EvaluationItem, answer: str) -> tuple[float, float | None]:
    """Return what an item's scorer says of an answer, and its true preference; None where there is no ideal one."""
    preference = None
    if item.ideal is not None:
        preference = preference_score(answer, item.reference, item.scorer, item.ideal)
    return score(item.scorer, answer, item.reference), preference


def write_items(directory: Path, items: Iterable[ScoredItem]) -> None:
    """Write scored items into a scores artifact."""
    pq.write_table(pa.Table.from_pylist([item._asdict() for item in items], schema=_SCHEMA), directory / ITEMS_FILE)


def read_items(directory: Path) -> list[ScoredItem]:
    """Return the scored items of a policy's scores artifact; empty when it was scored on held-out loss alone."""
    path = directory / ITEMS_FILE
    return [ScoredItem(**row) for row in pq.read_table(path).to_pylist()] if path.exists() else []


def summarise_items(items: Sequence[ScoredItem], confidence: float = 0.95) -> dict[str, Any]:
    """Return exact match, preference and share of ended responses over all items, per task, per language and per both.

    Each figure is an `Interval` as a dictionary: Wilson's for exact match, Student's t for preference, both at the
    error clustered by question. `reasoning` is what `reasoning_figures` says, `sources` what
    `sourced_figures` does of items that are judged by their passages.
    """
    by_both: dict[str, dict[str, Any]] = defaultdict(dict)
    for (task, language), group in _grouped(items, lambda item: (item.task, item.language)):
        by_both[task][language] = _figures(group, confidence)
    return {
        "overall": _figures(items, confidence),
        "by_task": {key: _figures(group, confidence) for key, group in _grouped(items, lambda item: item.task)},
        "by_language": {key: _figures(group, confidence) for key, group in _grouped(items, lambda item: item.language)},
        "by_task_and_language": dict(by_both),
    }


def summarise_samples(items: Sequence[ScoredItem], confidence: float = 0.95) -> dict[str, Any]:
    """Return pass@k and the majority's exact match over k samples, for k = 1, 2, 4 … and all, of items with several.

    Both are unbiased over subsets of the samples; intervals are clustered by question.
    """
    sampled = [(item.scores, item.answers, item.cluster) for item in items if item.scores and item.answers]
    most = min(len(scores) for scores, _, _ in sampled)
    sizes = sorted({*(1 << power for power in range(most.bit_length())), most})
    clusters = [cluster for _, _, cluster in sampled]
    curve = []
    for k in sizes:
        passed = [pass_at_k(len(scores), sum(value >= 1 for value in scores), k) for scores, _, _ in sampled]
        voted = [majority_at_k(answers, scores, k) for scores, answers, _ in sampled]
        figures = {"pass": passed, "majority": voted}
        curve.append(
            {"k": k} | {name: clustered_proportion(v, clusters, confidence).as_dict() for name, v in figures.items()}
        )
    return {"n": len(sampled), "curve": curve}


def _grouped(items: Sequence[ScoredItem], key: Callable[[ScoredItem], Any]) -> list[tuple[Any, list[ScoredItem]]]:
    groups: dict[Any, list[ScoredItem]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return sorted(groups.items())


def _figures(items: Sequence[ScoredItem], confidence: float) -> dict[str, Any]:
    judged = [item for item in items if item.preference is not None]
    preference: Interval | None = None
    if judged:
        values, clusters = [item.preference for item in judged], [item.cluster for item in judged]
        preference = clustered_mean(np.array(values, dtype=np.float64), clusters, confidence)
    correct = clustered_proportion([item.correct for item in items], [item.cluster for item in items], confidence)
    return {
        "n": len(items),
        "exact_match": correct.as_dict(),
        "preference": preference.as_dict() if preference is not None else None,
        "ended": sum(item.ended for item in items) / len(items),
        "reasoning": reasoning_figures([item.reasoning_tokens for item in items], [item.answered for item in items]),
        "sources": sourced_figures(items, confidence),
    }


def reasoning_figures(tokens: Sequence[int], answered: Sequence[bool]) -> dict[str, float] | None:
    """Return the mean length of the reasoning of responses, and the share without an answer; None without any."""
    if not any(tokens) and all(answered):
        return None
    return {"tokens": sum(tokens) / len(tokens), "unanswered": answered.count(False) / len(answered)}


def prompt_text(messages: Sequence[Message]) -> str:
    """Return a prompt for people to read: one message as it is, several with their roles."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)
