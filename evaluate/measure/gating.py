"""May a model be built upon? Its target must have risen, and nothing guarded fallen: pure functions of scored items.

A guarded metric **fell** where the fall is certain (sign-flip test over questions, one-sided, Holm over all that is
guarded) and not shown to stay within the margin; it **held** where the interval stays above minus the margin; anything
else is **unclear**. The power is the chance that a true fall as large as the margin is certain: it is told from the
items and the model before, ahead of any comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.measure.paired import (
    Change,
    correlation_within,
    expected_error,
    holm,
    paired_change,
    power_at,
)
from posttrain.evaluate.measure.sourced import grounded_of
from posttrain.evaluate.measure.statistics import Interval, clustered_proportion

FELL, HELD, UNCLEAR, ROSE = "fell", "held", "unclear", "rose"
Read = Callable[[ScoredItem], float | None]
READS: dict[str, Read] = {
    "exact_match": lambda item: item.correct,
    "preference": lambda item: item.preference,
    "ended": lambda item: float(item.ended),
    "grounded": grounded_of,
}


class Metric(NamedTuple):
    """A figure over some items: ``exact match in arithmetic``."""

    name: str
    figure: str
    """One of `READS`."""
    part: Mapping[str, str]
    """Attributes of the items that it is over."""
    margin: float
    """How much it may fall; of a target, the rise that must be seen."""

    def items(self, items: Iterable[ScoredItem]) -> list[ScoredItem]:
        """Return the items that it is over."""
        return [
            item
            for item in items
            if all(getattr(item, key) == value for key, value in self.part.items())
            and READS[self.figure](item) is not None
        ]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of one metric."""

    metric: Metric
    power: float
    change: Change
    p_value: float
    """One-sided, adjusted for the number of guarded metrics."""
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        named = {"name": self.metric.name, "figure": self.metric.figure, "margin": self.metric.margin}
        return {
            **named,
            **self.change.as_dict(),
            "power": self.power,
            "adjusted": self.p_value,
            "verdict": self.verdict,
        }


def guarded_metrics(
    items: Sequence[ScoredItem],
    guard: Sequence[str],
    margin: float,
    margins: Mapping[str, float],
    ended_margin: float | None,
    grounded_margin: float | None = None,
) -> list[Metric]:
    """Return what must not fall: exact match in each part of the items, the shares of ended and of grounded responses.

    Grounded can only be what passages were given to.
    """
    found = []
    for by in guard:
        names = by.split("_and_")
        for values in sorted({tuple(getattr(item, name) for name in names) for item in items}):
            own = min((margins[value] for value in values if value in margins), default=margin)
            part = dict(zip(names, values, strict=True))
            found.append(Metric(f"exact match in {' '.join(values)}", "exact_match", part, own))
    if ended_margin is not None:
        found.append(Metric("responses ended", "ended", {}, ended_margin))
    if grounded_margin is not None:
        grounded = Metric("grounded share", "grounded", {}, grounded_margin)
        found += [grounded] if grounded.items(items) else []
    return found


def planned_power(
    metric: Metric, before: Sequence[ScoredItem], confidence: float, discordant: float, tests: int
) -> float:
    """Return how likely a change of the metric's margin is seen, of which nothing but the model before is known.

    ``discordant`` of the items are expected to change; ``tests`` metrics share the error of ``confidence``.
    """
    items = metric.items(before)
    clusters = [item.cluster for item in items]
    sizes: dict[str, int] = {}
    for cluster in clusters:
        sizes[cluster] = sizes.get(cluster, 0) + 1
    together = correlation_within([READS[metric.figure](item) or 0.0 for item in items], clusters)
    error = expected_error(list(sizes.values()), max(discordant, metric.margin), together)
    return power_at(metric.margin, error, 1 - (1 - confidence) / tests, two_sided=False)


def judge_guarded(
    metrics: Sequence[Metric],
    powers: Sequence[float],
    before: Sequence[ScoredItem],
    after: Sequence[ScoredItem],
    confidence: float,
    seed: int = 0,
) -> list[Finding]:
    """Return what became of each guarded metric on the items that both models answered."""
    changes = [_change(metric, before, after, confidence, seed) for metric in metrics]
    adjusted = holm([change.fall_p_value for change in changes])
    findings = []
    for metric, power, change, p_value in zip(metrics, powers, changes, adjusted, strict=True):
        verdict = HELD if change.low > -metric.margin else FELL if p_value < 1 - confidence else UNCLEAR
        findings.append(Finding(metric, power, change, p_value, verdict))
    return findings


def judge_target(
    metric: Metric,
    power: float,
    before: Sequence[ScoredItem],
    after: Sequence[ScoredItem],
    confidence: float,
    seed: int,
) -> Finding:
    """Return whether the target rose; a fall, or a rise that so many items would have shown, is that it did not."""
    change = _change(metric, before, after, confidence, seed)
    verdict = (
        ROSE if change.rise_p_value < 1 - confidence else FELL if change.fall_p_value < 1 - confidence else UNCLEAR
    )
    return Finding(metric, power, change, change.rise_p_value, verdict)


def floor_of(name: str, after: Sequence[ScoredItem], confidence: float, floors: int) -> Interval:
    """Return exact match in the task or language ``name``, between bounds each of which errs at ``confidence``.

    ``floors`` of them share the error. Raises ValueError when no item is of that task or language.
    """
    items = [item for item in after if name in (item.task, item.language)]
    if not items:
        raise ValueError(f"floors.{name}: no item is of that task or language")
    both = 1 - 2 * (1 - confidence) / floors
    return clustered_proportion([item.correct for item in items], [item.cluster for item in items], both)


def _change(
    metric: Metric, before: Sequence[ScoredItem], after: Sequence[ScoredItem], confidence: float, seed: int
) -> Change:
    pairs = paired_items(metric, before, after)
    if not pairs:
        raise ValueError(f"{metric.name}: no item that both models answered; score both on the same items")
    read = READS[metric.figure]
    # One-sided: the lower bound is that of an interval with both tails.
    both = 1 - 2 * (1 - confidence)
    x_N, y_N = ([read(item) or 0.0 for item in side] for side in zip(*pairs, strict=True))
    return paired_change(x_N, y_N, [item.cluster for _, item in pairs], both, seed=seed)


def paired_items(
    metric: Metric, before: Sequence[ScoredItem], after: Sequence[ScoredItem]
) -> list[tuple[ScoredItem, ScoredItem]]:
    """Return the items of a metric as (before, after), of those that both models answered."""
    earlier = {item.id: item for item in metric.items(before)}
    return [(earlier[item.id], item) for item in metric.items(after) if item.id in earlier]


def worst_items(metric: Metric, before: Sequence[ScoredItem], after: Sequence[ScoredItem]) -> list[dict[str, Any]]:
    """Return the items whose figure fell, those that lost most first."""
    read = READS[metric.figure]
    losses = [((read(x) or 0.0) - (read(y) or 0.0), x, y) for x, y in paired_items(metric, before, after)]
    worse = sorted((one for one in losses if one[0] > 0), key=lambda one: (-one[0], one[2].id))
    return [
        {"id": y.id, "task": y.task, "language": y.language, "lost": lost, "prompt": y.prompt}
        | {"before": x.shown, "after": y.shown, "reference": y.reference}
        for lost, x, y in worse
    ]
