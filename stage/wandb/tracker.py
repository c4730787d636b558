"""W&B beside a stage that runs: in a thread of its own, so that nothing W&B does can hold the stage up."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from posttrain.stage.artifact import Manifest
from posttrain.stage.spec import StageSpec
from posttrain.stage.tracking import METRICS, read_metrics
from posttrain.stage.wandb.run import WandbRun, WandbService

log = logging.getLogger(__name__)

INIT_SECONDS = 10.0
"""How long a server may take to answer at the start; training does not wait for it."""
FINISH_SECONDS = 10.0
"""How long a stage waits at its end for a server to take what is left."""

Action = Callable[[], None]


class WandbTracker:
    """Hands everything to a thread. Its first failure is logged once and ends W&B for this process, nothing else.

    A stage that logs steps has its run from the first step on. Any other is mirrored when it is committed, and in
    offline mode only by `posttrain sync`: its manifest says all there is to say, and starting W&B costs a second.
    """

    def __init__(self, spec: StageSpec) -> None:
        self._spec = spec
        self._service: WandbService | None = None
        self._run: WandbRun | None = None
        self._actions: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = False
        self._complete = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one step."""
        sent, now = dict(metrics), time.time()
        self._submit(lambda: self._opened().log(sent, step, now))

    def rewind(self, step: int) -> None:
        """Open the run and send it the history so far, which `metrics.jsonl` holds once this step is its last."""
        path = Path(self._spec.work) / METRICS
        rows = [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        self._submit(lambda: self._opened().backfill(rows))

    def record(self, manifest: Manifest) -> None:
        """Mirror the committed artifact."""
        if self._thread is not None or self._spec.tracking.wandb == "online":
            self._submit(lambda: self._record(manifest))

    def finish(self) -> None:
        """Close the run, or give it up when it takes longer than `FINISH_SECONDS`."""
        if self._thread is None:
            return
        self._actions.put(self._finish)
        self._actions.put(None)
        self._thread.join(FINISH_SECONDS + 2)
        if self._thread.is_alive():
            self._warn("it does not answer")
            self._kill()
        self._thread = None

    def _opened(self) -> WandbRun:
        if self._run is None:
            self._service = WandbService()
            self._run = WandbRun(self._spec, self._spec.tracking.wandb, INIT_SECONDS, FINISH_SECONDS)
        return self._run

    def _record(self, manifest: Manifest) -> None:
        self._opened().record(manifest)
        self._complete = True

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish(self._complete)
        if self._service is not None:
            self._service.close()

    def _submit(self, action: Action) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()
        self._actions.put(action)

    def _work(self) -> None:
        while (action := self._actions.get()) is not None:
            if self._failed:
                continue
            try:
                action()
            except Exception as error:  # a tracker must never end a training run
                self._warn(f"{type(error).__name__}: {error}")
                self._kill()

    def _warn(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning("W&B is off for the rest of this stage (%s); `posttrain sync` brings it up to date", why)

    def _kill(self) -> None:
        if self._service is not None:
            self._service.kill()
