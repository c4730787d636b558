"""Stopping on request: a stop signal sets a flag that all ranks agree on between two steps.

A training stage takes the signals over from `posttrain.stage.stop` while it has state to save. An evaluation between
two steps is put off when it stands in the way of a stop: the checkpoint says that it is owed, and the run that goes on
makes it up first.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.stage.stop import stop_signals


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends the training at the next step boundary after a signal on any rank."""

    def __init__(self) -> None:
        self.requested = False
        self.stopped = False
        self.evaluation_owed = False
        self._before = {number: signal.signal(number, self._request) for number in stop_signals()}

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def release(self) -> None:
        """Give the signals back: all there is to save is saved. One that came since the last step counts."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested:
            signal.raise_signal(signal.SIGTERM)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Agree with all ranks; when any was asked to stop, save and stop."""
        if self.any_rank_requested(args.device) and state.global_step < state.max_steps:
            self.obey(control, evaluation_owed=control.should_evaluate)
            control.should_evaluate = False
        return control

    def obey(self, control: TrainerControl, evaluation_owed: bool) -> None:
        """Have the trainer save a checkpoint of the step that just ended, and end."""
        self.stopped = True
        self.evaluation_owed = evaluation_owed
        control.should_save = True
        control.should_training_stop = True

    def any_rank_requested(self, device: torch.device) -> bool:
        """Return whether any rank was asked to stop; all ranks must call this."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.requested
        flag = torch.tensor(float(self.requested), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
