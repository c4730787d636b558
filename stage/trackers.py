"""The tracker of a rank: `metrics.jsonl`, and W&B beside it unless it is disabled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from posttrain.stage.artifact import Manifest
from posttrain.stage.spec import StageSpec
from posttrain.stage.tracking import METRICS, JsonlTracker, NullTracker, Tracker


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def rewind(self, step: int) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.rewind(step)

    def record(self, manifest: Manifest) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.record(manifest)

    def finish(self) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.finish()


def open_tracker(spec: StageSpec, main_process: bool) -> Tracker:
    """Return the tracker of this rank: `metrics.jsonl` in the work directory, and W&B unless it is disabled."""
    if not main_process:
        return NullTracker()
    trackers: list[Tracker] = [JsonlTracker(Path(spec.work) / METRICS)]
    if spec.tracking.wandb != "disabled":
        from posttrain.stage.wandb.tracker import WandbTracker  # W&B is slow to import

        trackers.append(WandbTracker(spec))
    return Trackers(trackers)
