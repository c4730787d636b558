"""What a step makes of a row: it stays, changes or drops, for reasons that name what it lost to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.records import EvaluationItem, Record
from posttrain.data.steps.workers import Workers


@dataclass(frozen=True)
class Finding:
    """One thing that a step found in a row."""

    reason: str
    """Under which it is counted."""
    lost_to: dict[str, Any] = field(default_factory=dict)
    """Its duplicate, the item that it repeats, or the rule's value and limit; never a text that was found in it."""


@dataclass(frozen=True)
class Fate:
    """What becomes of one row in one step."""

    row: Record
    """The row as it came."""
    findings: tuple[Finding, ...] = ()
    drops: bool = False
    """Whether it drops, for the first finding."""
    changed: Record | None = None
    """The row as it goes on, where that is not as it came."""

    @property
    def record(self) -> Record | None:
        """The row as it goes on; None where it drops."""
        return None if self.drops else self.changed or self.row


@dataclass(frozen=True)
class StepResult:
    """What a step makes of all rows, in their order; they can be gone through once."""

    fates: Iterable[Fate]
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest says of the step besides; whole once all rows were gone through."""


@dataclass(frozen=True)
class Item:
    """An evaluation item that is not to be trained on."""

    id: str
    dataset: str
    """The input that it came with."""
    prompt: str
    """What it asks, the user's turns alone."""
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Surroundings:
    """What steps know beside the rows and their knobs."""

    items: Sequence[Item] = ()
    workers: Workers = field(default_factory=Workers)
    """Processes, which change no result."""
    source_facts: dict[str, Any] = field(default_factory=dict)
    """By source: what its configuration says of its licence."""


def is_trained_on(record: Record) -> bool:
    """Return whether a row is one to train on."""
    return record.split == "train" and not isinstance(record, EvaluationItem)
