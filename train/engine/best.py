"""Which step's weights held-out rows like best, and when to stop looking for better ones."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.train.checkpoints.protocol import checkpoint_path, checkpoint_problems

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Best:
    """The best evaluation so far of a metric."""

    metric: str | None = None
    """None where nothing is chosen."""
    patience: int | None = None
    value: float | None = None
    step: int | None = None
    worse: int = 0
    """Evaluations since then."""
    seen: int | None = None
    """Step of the last evaluation."""

    def note(self, metrics: dict[str, float], step: int) -> bool:
        """Take an evaluation, once for a step; returns whether its weights are the best so far."""
        if self.metric is None or step == self.seen:
            return False
        value = metrics[f"eval_{self.metric}"]
        sign = 1 if self.metric == "loss" else -1
        better = self.value is None or sign * value < sign * self.value
        self.value, self.step = (value, step) if better else (self.value, self.step)
        self.worse = 0 if better else self.worse + 1
        self.seen = step
        return better

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.worse >= self.patience

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {"value": self.value, "step": self.step, "worse": self.worse, "seen": self.seen}

    def take_up(self, state: dict[str, Any]) -> None:
        """Stand where `state` said."""
        self.value, self.step, self.worse, self.seen = (state[name] for name in ("value", "step", "worse", "seen"))


def best_checkpoint(directory: Path, step: int) -> Path:
    """Return the checkpoint of the best step. Raises PosttrainError where it is not as it was written."""
    path = checkpoint_path(directory, step)
    problems = checkpoint_problems(path)
    if problems:
        raise PosttrainError(f"the best weights, of step {step}, are lost: {problems[0]}; run the stage anew")
    return path


def require_held_out(metric: str | None, rows: int, where: str) -> None:
    """Raise UsageError where the best weights are to be chosen by rows that are not there."""
    if metric is not None and not rows:
        raise UsageError(f"{where}.best.metric={metric}: the data has no held-out rows to choose by; leave it out")
