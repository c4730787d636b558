"""A Chrome trace of a few steps: what the processor and the GPU do in them, operation by operation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)

TRACE = "trace.json.gz"
"""Name of the trace among the logs; chrome://tracing and Perfetto open it."""


class ProfileSteps(TrainerCallback):
    """Records some steps of this process after its first, which warms up, and writes what it saw."""

    def __init__(self, steps: int, path: Path) -> None:
        self._left, self._path = steps, path
        self._warm = False
        self._profile: profile | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin once a step has gone by."""
        if self._warm and self._left and self._profile is None:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self._profile.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End after the last of the steps."""
        self._warm = True
        if self._profile is not None:
            self._left -= 1
            if not self._left:
                self._write()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End with the training, where it has fewer steps."""
        self._left = 0
        if self._profile is not None:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._path))
        self._profile = None
        log.info("wrote %s", self._path.name)
